"""The querier's machine: its table, every event that is not in it, replacements, and the words of its failures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finode.committee.negotiation import (
    EVENTS,
    TRANSITIONS,
    AcceptedBy,
    Action,
    Cancelled,
    DissolvedBy,
    Done,
    Ended,
    Event,
    Expired,
    Failed,
    Late,
    Negotiation,
    RefusedBy,
    SealedBy,
    SendDissolve,
    SendPropose,
    SendSeal,
    Silent,
    Start,
    State,
)
from finode.committee.organizations import shared_organization
from finode.committee.replacement import CONCESSIONS
from finode.config import Role
from finode.errors import (
    CommitteeError,
    LocalProtocolError,
    PeerRefused,
    RemoteProtocolError,
    TooFewParties,
    UnknownService,
)
from finode.identity import PeerId
from finode.wire.committee import Accepted, Dissolve, RefusalReason, Refuse, Sealed, Terms
from finode.wire.control import Ping
from tests.committee.conftest import NOW, World

NAMES = ("acme", "beta", "corp", "dune", "eden")
LOCAL = (Start, Silent, Expired, Cancelled)
No = tuple[RefusalReason, str]
Mood = Callable[[Terms], "No | str | None"]
"""What a peer says to terms: None to accept, a reason and a subject to refuse, or a string: silent because of it."""


class Play:
    """A negotiation with peers that accept everything, but for those with a mood."""

    def __init__(self, world: World, *, candidates: dict[str, dict[str, Any]] | None = None, **request: Any) -> None:
        self.world = world
        self.moods: dict[str, Mood] = {}
        self.seal_moods: dict[str, Mood] = {}
        self.asked: list[list[str]] = []
        self.dissolved: list[str] = []
        self.outcome: Action | None = None
        self.machine = Negotiation(
            world.request(**request),
            world.federation(NAMES, **(candidates or {})),
            deadline_ms=NOW + 30_000,
            random=lambda size: bytes([len(self.asked)] * size),
        )

    @property
    def terms(self) -> Terms:
        assert self.machine.terms is not None
        return self.machine.terms

    def member(self, index: int) -> PeerId:
        return self.terms.members()[index]

    def refuse(self, name: str, reason: RefusalReason, subject: str = "") -> None:
        self.moods[name] = lambda terms: (reason, subject)

    def silence(self, name: str) -> None:
        self.moods[name] = lambda terms: "timed out"

    def accepted(self, peer: PeerId) -> AcceptedBy:
        return AcceptedBy(peer, Accepted(accept=self.world.accept(self.world.name(peer), self.terms)))

    def refused(self, peer: PeerId, reason: RefusalReason, subject: str = "") -> RefusedBy:
        return RefusedBy(peer, Refuse(committee=self.terms.committee_id(), reason=reason, subject=subject))

    def event(self, kind: type[Event]) -> Event:
        """Return an event that would be fine in the right state, by the first member."""
        if kind in (Start, Expired, Cancelled):
            return kind()
        known = self.machine.terms is not None
        terms = self.terms if known else self.world.terms()
        peer, committee = terms.members()[0], terms.committee_id()
        made: dict[type[Event], Event] = {
            AcceptedBy: AcceptedBy(peer, Accepted(accept=self.world.accept(self.world.name(peer), terms))),
            RefusedBy: RefusedBy(peer, Refuse(committee=committee, reason=RefusalReason.BUSY)),
            SealedBy: SealedBy(peer, Sealed(committee=committee)),
            DissolvedBy: DissolvedBy(peer, Dissolve(committee=committee, reason="")),
            Late: Late(peer, committee, True),
            Silent: Silent(peer),
        }
        return made[kind]

    def run(self) -> Play:
        """Play to the end: everybody answers as its mood says."""
        queue = self._act(self.machine.start(NOW))
        while queue:
            queue.extend(self._act(self.machine.handle(queue.pop(0), NOW)))
        return self

    def error(self) -> Exception:
        assert isinstance(self.outcome, Failed), self.outcome
        return self.outcome.error

    def party_names(self) -> set[str]:
        return {self.world.name(peer) for peer in self.terms.parties}

    def owner_names(self) -> set[str]:
        return {self.world.name(peer) for peer in self.terms.owners()}

    def _act(self, actions: list[Action]) -> list[Event]:
        events: list[Event] = []
        proposals = [action for action in actions if isinstance(action, SendPropose)]
        if proposals:
            self.asked.append([self.world.name(action.peer) for action in proposals])
        for action in actions:
            match action:
                case SendPropose(peer):
                    events.append(self._answer(peer, self.moods) or self.accepted(peer))
                case SendSeal(peer):
                    events.append(
                        self._answer(peer, self.seal_moods)
                        or SealedBy(peer, Sealed(committee=self.terms.committee_id()))
                    )
                case SendDissolve(peer):
                    self.dissolved.append(self.world.name(peer))
                case _:
                    assert self.outcome is None
                    self.outcome = action
        return events

    def _answer(self, peer: PeerId, moods: dict[str, Mood]) -> Event | None:
        mood = moods.get(self.world.name(peer))
        said = None if mood is None else mood(self.terms)
        if said is None:
            return None
        return Silent(peer, said) if isinstance(said, str) else self.refused(peer, *said)


@pytest.fixture
def play(world: World) -> Play:
    return Play(world)


def reach(play: Play, state: State) -> None:
    machine = play.machine
    if state is State.CHOOSING:
        return
    machine.start(NOW)
    if state is State.FAILED:
        machine.handle(Expired(), NOW)
    elif state is not State.PROPOSED:
        for peer in play.terms.members():
            machine.handle(play.accepted(peer), NOW)
        if state is not State.SEALING:
            for peer in play.terms.members():
                machine.handle(SealedBy(peer, Sealed(committee=play.terms.committee_id())), NOW)
        if state is State.DISSOLVED:
            machine.handle(Expired(), NOW)
    assert machine.state is state


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, EVENTS)))
def test_the_table_is_the_machine(play: Play, state: State, kind: type[Event]) -> None:
    reach(play, state)
    event = play.event(kind)

    if (state, kind) in TRANSITIONS:
        play.machine.handle(event, NOW)
        assert play.machine.state in TRANSITIONS[state, kind]
        return
    if state in (State.FAILED, State.DISSOLVED) and kind not in LOCAL:
        # All that peers may still say is late by then.
        assert isinstance(play.machine.handle(event, NOW), list)
        assert play.machine.state is state
        return
    with pytest.raises(LocalProtocolError if kind in (*LOCAL, Late) else RemoteProtocolError) as refused:
        play.machine.handle(event, NOW)

    assert play.machine.state is state
    assert kind.__name__ in refused.value.message
    assert str(state) in refused.value.message


@pytest.mark.parametrize("state", [State.FAILED, State.DISSOLVED])
@pytest.mark.parametrize("kind", [AcceptedBy, RefusedBy, SealedBy, DissolvedBy])
def test_a_stranger_is_out_of_place_even_after_the_end(play: Play, state: State, kind: type[Event]) -> None:
    reach(play, state)
    stranger = play.world.terms(parties=("zeta", "eta"))
    event = play.event(kind)
    assert isinstance(event, AcceptedBy | RefusedBy | SealedBy | DissolvedBy)
    foreign = dataclasses.replace(event, peer=stranger.parties[0])

    with pytest.raises(RemoteProtocolError) as refused:
        play.machine.handle(foreign, NOW)

    assert refused.value.peer == stranger.parties[0]


def test_every_state_of_the_table_can_be_reached() -> None:
    assert set().union(*TRANSITIONS.values()) == set(State) - {State.CHOOSING}


def test_all_agree(play: Play) -> None:
    play.run()

    assert isinstance(play.outcome, Done)
    assert play.machine.state is State.SEALED
    assert play.outcome.committee.terms == play.terms
    assert set(play.asked[0]) == set(NAMES)
    assert (play.machine.attempts, play.machine.refusals, play.dissolved) == (1, (), [])


def test_messages_are_events(play: Play) -> None:
    play.machine.start(NOW)
    committee = play.terms.committee_id()

    for peer in play.terms.members():
        assert peer in play.machine.waiting_for()
        actions = play.machine.receive(peer, play.accepted(peer).message, NOW)
        assert peer not in play.machine.waiting_for() or play.machine.state is State.SEALING
    assert [action.peer for action in actions if isinstance(action, SendSeal)] == list(play.terms.members())
    for peer in play.terms.members():
        actions = play.machine.receive(peer, Sealed(committee=committee), NOW)
    [done] = actions
    assert isinstance(done, Done)
    ended = play.machine.receive(play.member(0), Dissolve(committee=committee, reason="full"), NOW)

    assert ended[-1] == Ended(committee, play.member(0), "full")
    with pytest.raises(RemoteProtocolError):
        play.machine.receive(play.member(0), Ping(number=1), NOW)


@pytest.mark.parametrize("reason", [RefusalReason.BUSY, RefusalReason.STORAGE_FULL, RefusalReason.UNSUPPORTED_ENGINE])
def test_a_party_that_refuses_is_replaced_and_stays_an_owner(world: World, reason: RefusalReason) -> None:
    play = Play(world)
    first = play.run().party_names()
    refusing = min(first)
    again = Play(world)
    again.refuse(refusing, reason)
    again.moods[refusing] = lambda terms: (reason, "") if world.peer(refusing) in terms.parties else None

    again.run()

    assert isinstance(again.outcome, Done)
    assert refusing not in again.party_names()
    assert refusing in again.owner_names()
    assert again.machine.attempts == 2
    assert set(again.dissolved) == set(NAMES) - {refusing}


def test_a_dealer_that_refuses_is_replaced(world: World) -> None:
    dealer = world.name(Play(world).run().terms.dealer)
    play = Play(world)
    play.moods[dealer] = lambda terms: (
        (RefusalReason.ROLE_NOT_OFFERED, "dealer") if terms.dealer == world.peer(dealer) else None
    )

    play.run()

    assert isinstance(play.outcome, Done)
    assert world.name(play.terms.dealer) != dealer


@pytest.mark.parametrize("silent", NAMES)
def test_a_silent_peer_is_left_out_altogether(play: Play, silent: str) -> None:
    play.silence(silent)

    play.run()

    assert isinstance(play.outcome, Done)
    assert silent not in play.asked[1]
    assert play.machine.attempts == 2
    assert str(play.machine.refusals[0]) == f"{play.world.peer(silent)} did not answer: timed out"


def test_all_refusals_of_a_round_are_learned_at_once(play: Play) -> None:
    for name in ("acme", "beta"):
        play.silence(name)

    play.run()

    assert isinstance(play.outcome, Done)
    assert [set(names) for names in play.asked] == [set(NAMES), {"corp", "dune", "eden"}]


@pytest.mark.parametrize(
    "reason",
    [
        RefusalReason.QUERIER_NOT_ALLOWED,
        RefusalReason.QUERY_LIMIT,
        RefusalReason.REVEALS_TOO_MUCH,
        RefusalReason.UNKNOWN_SERVICE,
    ],
)
def test_an_owner_that_refuses_is_left_out_and_stays_a_party(world: World, reason: RefusalReason) -> None:
    party = min(Play(world).run().party_names())
    play = Play(world)
    play.moods[party] = lambda terms: (reason, "") if world.peer(party) in terms.owners() else None

    play.run()

    assert isinstance(play.outcome, Done)
    assert play.owner_names() == set(NAMES) - {party}
    assert party in play.party_names()


def test_only_the_refused_model_is_left_out(world: World) -> None:
    play = Play(world, candidates={"eden": {"owned": 2}})
    version = world.offer("eden#0").version
    play.moods["eden"] = lambda terms: (
        (RefusalReason.UNKNOWN_MODEL, version.hex()) if version in [m.version for m in terms.models] else None
    )

    play.run()

    assert isinstance(play.outcome, Done)
    assert len(play.terms.models) == 5
    assert "eden" in play.owner_names()


def test_an_owner_gets_the_party_it_insists_on(world: World) -> None:
    play = Play(world, candidates={"eden": {"rtt_ms": 80.0}})
    play.moods["dune"] = lambda terms: (
        None if world.peer("eden") in terms.parties else (RefusalReason.REQUIRED_PARTY_MISSING, "zeta | Eden")
    )

    play.run()

    assert isinstance(play.outcome, Done)
    assert "eden" in play.party_names()
    assert "dune" in play.owner_names()


def test_an_owner_that_insists_on_the_impossible_is_left_out(play: Play) -> None:
    play.refuse("dune", RefusalReason.REQUIRED_PARTY_MISSING, "zeta")

    play.run()

    assert isinstance(play.outcome, Done)
    assert play.owner_names() == set(NAMES) - {"dune"}


@pytest.mark.parametrize("role", [Role.PARTY, Role.DEALER])
def test_a_party_or_dealer_that_an_owner_does_not_allow_is_replaced(world: World, role: Role) -> None:
    first = Play(world).run().terms
    unwanted = first.parties[0] if role is Role.PARTY else first.dealer
    owner = next(name for name in NAMES if world.peer(name) != unwanted)
    play = Play(world)

    def mood(terms: Terms) -> No | None:
        seated = terms.parties if role is Role.PARTY else (terms.dealer,)
        reason = RefusalReason.PARTY_NOT_ALLOWED if role is Role.PARTY else RefusalReason.DEALER_NOT_ALLOWED
        return (reason, unwanted) if unwanted in seated else None

    play.moods[owner] = mood

    play.run()

    assert isinstance(play.outcome, Done)
    assert play.owner_names() == set(NAMES)
    assert unwanted not in (play.terms.parties if role is Role.PARTY else (play.terms.dealer,))


def test_a_wish_is_forgotten_with_its_owner(world: World) -> None:
    """What an owner did not want is wanted again once that owner is left out for another reason."""
    preferred = Play(world).run().terms
    owner = next(name for name in NAMES if world.peer(name) not in (*preferred.parties, preferred.dealer))
    play = Play(world)

    def mood(terms: Terms) -> No | None:
        if world.peer(owner) not in terms.owners():
            return None
        unwanted = preferred.parties[0]
        if unwanted in terms.parties:
            return RefusalReason.PARTY_NOT_ALLOWED, unwanted
        return RefusalReason.REVEALS_TOO_MUCH, "probabilities"

    play.moods[owner] = mood

    play.run()

    assert isinstance(play.outcome, Done)
    assert play.machine.attempts == 3
    assert play.owner_names() == set(NAMES) - {owner}
    assert play.terms.parties == preferred.parties


def test_an_owner_cannot_steer_for_ever(world: World) -> None:
    play = Play(world, max_attempts=CONCESSIONS + 2)
    play.moods["dune"] = lambda terms: (
        (RefusalReason.PARTY_NOT_ALLOWED, terms.parties[0]) if world.peer("dune") in terms.owners() else None
    )

    play.run()

    assert isinstance(play.outcome, Done)
    assert "dune" not in play.owner_names()


def test_a_peer_unknown_to_most_is_replaced_and_not_those_who_say_so(world: World) -> None:
    newcomer = Play(world).run().terms.parties[0]
    play = Play(world)
    for name in NAMES:
        if world.peer(name) != newcomer:
            play.moods[name] = lambda terms: (
                (RefusalReason.NOT_ON_ROSTER, newcomer) if newcomer in terms.members() else None
            )

    play.run()

    assert isinstance(play.outcome, Done)
    assert set(play.asked[1]) == set(NAMES) - {world.name(newcomer)}


def test_one_that_knows_nobody_goes_alone(world: World) -> None:
    play = Play(world)
    play.refuse("dune", RefusalReason.NOT_ON_ROSTER, world.peer("acme"))

    play.run()

    assert isinstance(play.outcome, Done)
    assert set(play.asked[1]) == set(NAMES) - {"dune"}


def test_a_refusal_of_the_seal_forms_a_new_committee(world: World) -> None:
    play = Play(world)
    play.seal_moods["acme"] = lambda terms: (RefusalReason.SHUTTING_DOWN, "")
    play.seal_moods["beta"] = lambda terms: "lost"

    play.run()

    assert isinstance(play.outcome, Done)
    assert set(play.asked[1]) == {"corp", "dune", "eden"}
    assert set(play.dissolved) == set(NAMES) - {"acme"}


def test_a_dissolution_before_the_seal_is_a_refusal(play: Play) -> None:
    play.machine.start(NOW)
    leaver = play.member(0)
    play.machine.handle(play.accepted(leaver), NOW)
    play.machine.handle(DissolvedBy(leaver, Dissolve(committee=play.terms.committee_id(), reason="shutting down")), NOW)
    first = play.terms
    for peer in first.members()[1:]:
        play.machine.handle(AcceptedBy(peer, Accepted(accept=play.world.accept(play.world.name(peer), first))), NOW)

    assert play.machine.attempts == 2
    assert leaver not in play.terms.members()


def test_when_nobody_is_left_all_are_named(world: World) -> None:
    play = Play(world)
    for name in NAMES:
        play.moods[name] = lambda terms: (RefusalReason.BUSY, "4")

    play.run()

    error = play.error()
    assert isinstance(error, TooFewParties)
    assert "refused or silent" in error.message
    for refusal in play.machine.refusals:
        assert refusal.peer in error.message
    assert play.machine.state is State.FAILED


def test_when_no_owner_consents_each_rule_is_told(world: World) -> None:
    play = Play(world)
    for name in NAMES:
        play.refuse(name, RefusalReason.QUERY_LIMIT, world.peer("asker"))

    error = play.run().error()

    assert type(error) is CommitteeError
    assert str(error).count("query-limit") == 1
    assert all(world.peer(name) in error.message for name in NAMES)


def test_the_only_refusal_is_the_error(world: World) -> None:
    play = Play(world, min_models=len(NAMES))
    play.refuse("dune", RefusalReason.QUERIER_NOT_ALLOWED, world.peer("asker"))

    error = play.run().error()

    assert isinstance(error, PeerRefused)
    assert (error.peer, error.reason) == (world.peer("dune"), RefusalReason.QUERIER_NOT_ALLOWED)


def test_an_unknown_service_fails_at_once(world: World) -> None:
    play = Play(world, service="xray").run()

    assert isinstance(play.error(), UnknownService)
    assert play.asked == []


def test_attempts_are_bounded(world: World) -> None:
    play = Play(world, max_attempts=1)
    play.silence("dune")

    error = play.run().error()

    assert isinstance(error, CommitteeError)
    assert "after 1 proposals" in error.message
    assert world.peer("dune") in error.message


def test_no_proposal_is_made_after_the_deadline(play: Play) -> None:
    [failed] = play.machine.start(NOW + 30_000)

    assert isinstance(failed, Failed)
    assert "deadline" in str(failed.error)


def test_the_deadline_names_those_who_have_not_answered(play: Play) -> None:
    play.machine.start(NOW)
    play.machine.handle(play.accepted(play.member(0)), NOW)

    *dissolves, failed = play.machine.handle(Expired(), NOW + 30_000)

    assert [action.peer for action in dissolves if isinstance(action, SendDissolve)] == [play.member(0)]
    assert isinstance(failed, Failed)
    assert f"{play.member(1)} has not answered yet" in str(failed.error)


def test_giving_up_frees_the_seats(play: Play) -> None:
    reach(play, State.SEALING)

    *dissolves, failed = play.machine.handle(Cancelled("the program went away"), NOW)

    assert [action.peer for action in dissolves if isinstance(action, SendDissolve)] == list(play.terms.members())
    assert isinstance(failed, Failed)
    assert "the program went away" in str(failed.error)


@pytest.mark.parametrize(
    ("event", "told", "culprit"),
    [(Cancelled("done"), 5, False), (Expired(), 0, False), (None, 4, True)],
)
def test_how_a_sealed_committee_ends(play: Play, event: Event | None, told: int, culprit: bool) -> None:
    reach(play, State.SEALED)
    lost = play.member(2)

    *dissolves, ended = play.machine.handle(event or Silent(lost, "lost"), NOW)

    assert len(dissolves) == told
    assert isinstance(ended, Ended)
    assert ended.culprit == (lost if culprit else "")
    assert play.machine.state is State.DISSOLVED


def test_a_late_acceptance_is_told_that_the_terms_are_off(world: World) -> None:
    play = Play(world)
    play.silence("dune")
    first: list[Terms] = []

    def remember(terms: Terms) -> None:
        first.append(terms)

    play.moods["acme"] = remember
    play.run()
    late = world.accept("dune", first[0])

    assert play.machine.receive(world.peer("dune"), Accepted(accept=late), NOW) == [
        SendDissolve(world.peer("dune"), Dissolve(committee=first[0].committee_id(), reason="superseded"))
    ]
    refuse = Refuse(committee=first[0].committee_id(), reason=RefusalReason.BUSY)
    assert play.machine.receive(world.peer("dune"), refuse, NOW) == []
    assert play.machine.state is State.SEALED


def test_what_is_not_by_the_member_or_not_for_these_terms(play: Play) -> None:
    play.machine.start(NOW)
    world, terms, peer = play.world, play.terms, play.member(0)
    name, other = world.name(peer), dataclasses.replace(terms, nonce=bytes([9] * 16))
    forged = dataclasses.replace(world.accept(name, terms), signature=bytes(64))
    cases: list[Event] = [
        AcceptedBy(peer, Accepted(accept=forged)),
        AcceptedBy(peer, Accepted(accept=world.accept(name, other))),
        AcceptedBy(peer, Accepted(accept=world.accept(world.name(play.member(1)), terms))),
        AcceptedBy(peer, Accepted(accept=world.accept(name, terms, holds=(bytes(32),)))),
        AcceptedBy(world.peer("zeta"), Accepted(accept=world.accept("zeta", terms))),
        RefusedBy(peer, Refuse(committee=other.committee_id(), reason=RefusalReason.BUSY)),
        RefusedBy(world.peer("zeta"), Refuse(committee=terms.committee_id(), reason=RefusalReason.BUSY)),
        DissolvedBy(world.peer("zeta"), Dissolve(committee=terms.committee_id(), reason="")),
    ]

    for event in cases:
        assert isinstance(event, AcceptedBy | RefusedBy | DissolvedBy)
        with pytest.raises(RemoteProtocolError) as refused:
            play.machine.handle(event, NOW)
        assert refused.value.peer == event.peer
    assert play.machine.state is State.PROPOSED
    assert play.machine.waiting_for() == terms.members()


def test_nobody_answers_twice(play: Play) -> None:
    play.machine.start(NOW)
    peer = play.member(0)
    play.machine.handle(play.accepted(peer), NOW)

    for event in (play.accepted(peer), play.refused(peer, RefusalReason.BUSY)):
        with pytest.raises(RemoteProtocolError, match="twice"):
            play.machine.handle(event, NOW)


def test_only_a_member_can_be_silent(play: Play) -> None:
    play.machine.start(NOW)

    with pytest.raises(LocalProtocolError):
        play.machine.handle(Silent(play.world.peer("zeta")), NOW)


ANSWERS = st.one_of(
    st.none(),
    st.just("timed out"),
    st.tuples(st.sampled_from(RefusalReason), st.sampled_from([*NAMES, "party", "dealer", "zeta | beta", ""])),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    parties=st.integers(2, 3),
    moody=st.dictionaries(st.sampled_from(NAMES), st.lists(ANSWERS, min_size=1, max_size=4), max_size=4),
)
def test_whatever_peers_answer_it_ends_and_keeps_the_rules(
    data: st.DataObject, parties: int, moody: dict[str, list[No | str | None]]
) -> None:
    world = World()
    play = Play(world, parties=parties)

    def mood_of(answers: list[No | str | None]) -> Mood:
        def mood(terms: Terms) -> No | str | None:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, tuple) and answer[1] in NAMES:
                return answer[0], world.peer(answer[1])
            return answer

        return mood

    for name, answers in moody.items():
        (play.moods if data.draw(st.booleans()) else play.seal_moods)[name] = mood_of(answers)

    play.run()

    assert play.machine.state in (State.SEALED, State.FAILED)
    assert len(play.asked) <= world.request().max_attempts
    if isinstance(play.outcome, Done):
        terms = play.outcome.committee.terms
        assert shared_organization(terms, world.organization_of) is None
        silent = {refusal.peer for refusal in play.machine.refusals if refusal.reason is None}
        assert not silent & set(terms.members())
    else:
        assert isinstance(play.outcome, Failed)
        assert len(play.machine.refusals) > 0


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [(RefusalReason.NO_CREDIT, "quota"), (RefusalReason.OTHER_REWARDS, "the same [federation] settings on all nodes")],
)
def test_where_all_owners_refuse_for_a_reason_its_remedy_is_said(
    play: Play, reason: RefusalReason, remedy: str
) -> None:
    for name in NAMES:
        play.refuse(name, reason)

    play.run()

    assert isinstance(play.outcome, Failed)
    assert remedy in play.outcome.error.hint
