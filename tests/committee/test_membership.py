"""The member's machine: its table, every event that is not in it, and what each step says."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from finode.committee.consent import MemoryQuotas, day_of
from finode.committee.membership import (
    EVENTS,
    TRANSITIONS,
    Aborted,
    Action,
    DissolveReceived,
    End,
    Event,
    Lapsed,
    Membership,
    Proposed,
    Reply,
    SealReceived,
    SendDissolve,
    Serve,
    State,
)
from finode.committee.sealed import open_accept
from finode.errors import LocalProtocolError, RemoteProtocolError, StorageFull
from finode.wire.committee import Accepted, Dissolve, Propose, RefusalReason, Refuse, Seal, Sealed, Terms
from tests.committee.conftest import NOW, World

TIMERS = (Lapsed, Aborted)


class Member:
    """The membership of "dune", an owner, and shorthands for what reaches it."""

    def __init__(self, world: World, terms: Terms | None = None, **view: Any) -> None:
        self.world = world
        self.terms = terms or world.terms()
        self.view = world.view("dune", **view)
        self.machine = Membership(world.identity("dune"))

    def event(self, kind: type[Event]) -> Event:
        querier, committee = self.terms.querier, self.terms.committee_id()
        if kind is Proposed:
            return Proposed(querier, Propose(terms=self.terms), self.view)
        if kind is SealReceived:
            return SealReceived(querier, Seal(committee=committee, accepts=self.world.accepts(self.terms)))
        if kind is DissolveReceived:
            return DissolveReceived(querier, Dissolve(committee=committee, reason="done"))
        return Lapsed() if kind is Lapsed else Aborted("lost corp")

    def handle(self, kind: type[Event], now_ms: int = NOW) -> list[Action]:
        return self.machine.handle(self.event(kind), now_ms)

    def reach(self, state: State) -> Member:
        path: dict[State, list[type[Event]]] = {
            State.NEW: [],
            State.ACCEPTED: [Proposed],
            State.SEALED: [Proposed, SealReceived],
            State.ENDED: [Proposed, Lapsed],
            State.REFUSED: [Proposed],
        }
        if state is State.REFUSED:
            self.view = dataclasses.replace(self.view, shutting_down=True)
        for kind in path[state]:
            self.handle(kind)
        assert self.machine.state is state
        return self


@pytest.fixture
def member(world: World) -> Member:
    return Member(world)


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, EVENTS)))
def test_the_table_is_the_machine(world: World, state: State, kind: type[Event]) -> None:
    member = Member(world).reach(state)

    if (state, kind) in TRANSITIONS:
        member.handle(kind)
        assert member.machine.state in TRANSITIONS[state, kind]
        return
    with pytest.raises(LocalProtocolError if kind in TIMERS else RemoteProtocolError) as refused:
        member.handle(kind)

    assert member.machine.state is state
    assert kind.__name__ in refused.value.message
    assert str(state) in refused.value.message
    if isinstance(refused.value, RemoteProtocolError):
        assert refused.value.peer == member.terms.querier


def test_every_state_of_the_table_can_be_reached() -> None:
    targets = set().union(*TRANSITIONS.values())

    assert targets == set(State) - {State.NEW}


def test_an_acceptance_is_signed_and_lists_what_is_kept(world: World) -> None:
    terms = world.terms()
    kept = terms.deployment_id(terms.models[0])
    member = Member(world, terms, holds=frozenset({kept, bytes(32)}))

    [reply] = member.handle(Proposed)

    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Accepted)
    assert open_accept(reply.message.accept, terms, signer=world.peer("dune")).holds == (kept,)
    assert member.machine.terms == terms


def test_a_refusal_says_which_rule(world: World) -> None:
    member = Member(world, federation="other")

    [reply] = member.handle(Proposed)

    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refuse)
    assert reply.message.committee == member.terms.committee_id()
    assert (reply.message.reason, reply.message.subject) == (RefusalReason.WRONG_FEDERATION, "test")
    assert "other" in reply.message.detail


def test_a_seal_makes_a_committee(member: Member) -> None:
    member.reach(State.ACCEPTED)

    serve, reply = member.handle(SealReceived)

    assert isinstance(serve, Serve)
    assert serve.committee is member.machine.committee
    assert reply == Reply(Sealed(committee=member.terms.committee_id()))


@pytest.mark.parametrize("fault", ["forged", "duplicate", "missing", "foreign"])
def test_a_bad_seal_is_refused_and_ends_the_membership(member: Member, fault: str) -> None:
    member.reach(State.ACCEPTED)
    world, terms = member.world, member.terms
    accepts = list(world.accepts(terms))
    match fault:
        case "forged":
            accepts[0] = dataclasses.replace(accepts[0], signature=bytes(64))
        case "duplicate":
            accepts.append(accepts[0])
        case "missing":
            del accepts[1]
        case "foreign":
            accepts.append(world.accept("stranger", terms))

    seal = Seal(committee=terms.committee_id(), accepts=tuple(accepts))
    [reply] = member.machine.handle(SealReceived(terms.querier, seal), NOW)

    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refuse)
    assert reply.message.reason is RefusalReason.BAD_TERMS
    assert member.machine.state is State.REFUSED
    assert member.machine.committee is None


def test_a_seal_after_the_expiry_is_refused(member: Member) -> None:
    member.reach(State.ACCEPTED)

    [reply] = member.handle(SealReceived, member.terms.expires_ms)

    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refuse)
    assert reply.message.reason is RefusalReason.EXPIRED


def test_a_seal_after_the_end_is_refused(member: Member) -> None:
    member.reach(State.ENDED)

    [reply] = member.handle(SealReceived)

    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refuse)
    assert reply.message.reason is RefusalReason.NOT_SEALED


def test_repeated_messages_get_the_same_answer(member: Member) -> None:
    first, again = member.handle(Proposed), member.handle(Proposed)
    member.handle(SealReceived)

    assert first == again
    assert member.handle(SealReceived) == [Reply(Sealed(committee=member.terms.committee_id()))]


def test_the_quota_is_counted_once_and_only_on_acceptance(world: World) -> None:
    quotas = MemoryQuotas()
    Member(world, federation="other", quotas=quotas).handle(Proposed)
    assert quotas.used("asker", day_of(NOW)) == 0

    member = Member(world, quotas=quotas)
    member.handle(Proposed)
    member.handle(Proposed)
    member.handle(DissolveReceived)

    assert quotas.used("asker", day_of(NOW)) == member.terms.quota


def test_a_quota_that_cannot_be_written_down_is_not_granted(world: World) -> None:
    class FullDisk:
        def used(self, querier: str, day: str) -> int:
            return 0

        def add(self, querier: str, day: str, inputs: int) -> None:
            raise StorageFull("cannot write quotas.db")

    [reply] = Member(world, quotas=FullDisk()).handle(Proposed)

    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Refuse)
    assert (reply.message.reason, reply.message.subject) == (RefusalReason.STORAGE_FULL, "owner")


def test_only_the_querier_may_seal_or_dissolve(member: Member) -> None:
    member.reach(State.ACCEPTED)
    beta = member.world.peer("beta")
    committee = member.terms.committee_id()

    for event in (
        SealReceived(beta, Seal(committee=committee, accepts=member.world.accepts(member.terms))),
        DissolveReceived(beta, Dissolve(committee=committee, reason="")),
        DissolveReceived(member.terms.querier, Dissolve(committee=bytes(32), reason="")),
    ):
        with pytest.raises(RemoteProtocolError):
            member.machine.handle(event, NOW)
    assert member.machine.state is State.ACCEPTED


def test_other_terms_do_not_replace_accepted_ones(member: Member) -> None:
    member.reach(State.ACCEPTED)
    other = dataclasses.replace(member.terms, nonce=bytes([1] * 16))

    with pytest.raises(RemoteProtocolError):
        member.machine.handle(Proposed(other.querier, Propose(terms=other), member.view), NOW)
    with pytest.raises(RemoteProtocolError):
        member.machine.handle(Proposed(member.world.peer("beta"), Propose(terms=member.terms), member.view), NOW)


def test_the_view_is_the_identitys(world: World) -> None:
    machine = Membership(world.identity("acme"))
    terms = world.terms()

    with pytest.raises(LocalProtocolError):
        machine.handle(Proposed(terms.querier, Propose(terms=terms), world.view("dune")), NOW)


def test_how_it_ends(member: Member) -> None:
    committee = member.terms.committee_id()
    reasons = {}
    for kind, now_ms in ((DissolveReceived, NOW), (Lapsed, NOW), (Lapsed, member.terms.expires_ms)):
        end = Member(member.world).reach(State.SEALED).handle(kind, now_ms)[0]
        assert isinstance(end, End)
        assert end.committee == committee
        reasons[kind, now_ms] = end.reason

    assert list(reasons.values()) == ["dissolved by the querier: done", "not sealed in time", "expired"]


def test_an_abort_tells_the_querier(member: Member) -> None:
    member.reach(State.SEALED)
    committee = member.terms.committee_id()

    assert member.handle(Aborted) == [
        End(committee, "lost corp"),
        SendDissolve(member.terms.querier, Dissolve(committee=committee, reason="lost corp")),
    ]
    assert member.machine.committee is None
    assert member.handle(DissolveReceived) == []
