"""The querier's side of an agreement: events in, actions out, no I/O and no clock.

    CHOOSING --Start--> PROPOSED --all accepted--> SEALING --all sealed--> SEALED --expiry, dissolve, loss--> DISSOLVED
                           ^  |                       |
                           '--+-- somebody refused ---'        attempts, candidates or time used up: FAILED

A proposal ends when every member has answered or is given up as silent: then, if anybody refused, whoever had accepted
is told that these terms are off, and all that was learned goes into the next choice (`replacement.py`). New terms have
a new hash, so everybody is asked again; learning from a whole round rather than from its first refusal keeps the
number of rounds small.

The driver sends what the actions say, each `Send...` to a peer of its own accord, and hands in what comes back with
`receive`, or `Silent` when nothing came in time or the peer broke the protocol. `handle` raises `LocalProtocolError`
for an event of ours that the table does not have, `RemoteProtocolError` for a peer's message out of place; the state
is unchanged after either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from finode.committee.policy import Candidate, Request, Selection, choose
from finode.committee.replacement import Refusal, Replacements
from finode.committee.sealed import SealedCommittee, open_accept
from finode.errors import (
    CommitteeError,
    FinodeError,
    LocalProtocolError,
    PeerRefused,
    RemoteProtocolError,
    TooFewParties,
    WireError,
)
from finode.identity import PeerId
from finode.wire.committee import (
    Accept,
    Accepted,
    CommitteeId,
    Dissolve,
    Propose,
    RefusalReason,
    Refuse,
    Seal,
    Sealed,
    Terms,
)
from finode.wire.message import Message
from finode.wire.signed import Signed, open_signed

NONCE_BYTES = 16
Random = Callable[[int], bytes]
_REMEDIES = MappingProxyType(
    {
        RefusalReason.OTHER_REWARDS: "write the same [federation] settings on all nodes, this one too, and restart",
        RefusalReason.NO_CREDIT: "`finode rewards` shows what this organization owes: earn, settle, or agree on "
        "another [federation] credit_limit; a smaller [querier] quota makes terms cost less",
    }
)


class State(StrEnum):
    """Where the negotiation stands."""

    CHOOSING = "choosing"
    PROPOSED = "proposed"
    SEALING = "sealing"
    SEALED = "sealed"
    FAILED = "failed"
    DISSOLVED = "dissolved"


@dataclass(frozen=True, slots=True)
class Start:
    """Choose and propose."""


@dataclass(frozen=True, slots=True)
class AcceptedBy:
    peer: PeerId
    message: Accepted


@dataclass(frozen=True, slots=True)
class RefusedBy:
    peer: PeerId
    message: Refuse


@dataclass(frozen=True, slots=True)
class SealedBy:
    peer: PeerId
    message: Sealed


@dataclass(frozen=True, slots=True)
class DissolvedBy:
    peer: PeerId
    message: Dissolve


@dataclass(frozen=True, slots=True)
class Late:
    """A peer's answer to a proposal that is off already. `receive` and `handle` make it out of the events above."""

    peer: PeerId
    committee: CommitteeId
    accepted: bool


@dataclass(frozen=True, slots=True)
class Silent:
    """The peer did not answer in time, could not be reached, was lost, or broke the protocol: `detail` says which."""

    peer: PeerId
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Expired:
    """Our deadline has passed or, once sealed, the terms' expiry."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The querier gives up, or no longer needs the committee."""

    reason: str = "cancelled"


Event = Start | AcceptedBy | RefusedBy | SealedBy | DissolvedBy | Late | Silent | Expired | Cancelled
EVENTS: tuple[type[Event], ...] = (
    Start,
    AcceptedBy,
    RefusedBy,
    SealedBy,
    DissolvedBy,
    Late,
    Silent,
    Expired,
    Cancelled,
)


@dataclass(frozen=True, slots=True)
class SendPropose:
    peer: PeerId
    message: Propose


@dataclass(frozen=True, slots=True)
class SendSeal:
    peer: PeerId
    message: Seal


@dataclass(frozen=True, slots=True)
class SendDissolve:
    peer: PeerId
    message: Dissolve


@dataclass(frozen=True, slots=True)
class Done:
    """Every member has sealed: queries may go."""

    committee: SealedCommittee


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no committee."""

    error: FinodeError


@dataclass(frozen=True, slots=True)
class Ended:
    """The sealed committee is no more; `culprit` is the peer that ended it or was lost, "" for none."""

    committee: CommitteeId
    culprit: str
    reason: str


Action = SendPropose | SendSeal | SendDissolve | Done | Failed | Ended

_S = State
TRANSITIONS: Mapping[tuple[State, type[Event]], frozenset[State]] = MappingProxyType(
    {
        (_S.CHOOSING, Start): frozenset({_S.PROPOSED, _S.FAILED}),
        (_S.CHOOSING, Expired): frozenset({_S.FAILED}),
        (_S.CHOOSING, Cancelled): frozenset({_S.FAILED}),
        (_S.PROPOSED, AcceptedBy): frozenset({_S.PROPOSED, _S.SEALING, _S.FAILED}),
        (_S.PROPOSED, RefusedBy): frozenset({_S.PROPOSED, _S.FAILED}),
        (_S.PROPOSED, DissolvedBy): frozenset({_S.PROPOSED, _S.FAILED}),
        (_S.PROPOSED, Silent): frozenset({_S.PROPOSED, _S.FAILED}),
        (_S.PROPOSED, Late): frozenset({_S.PROPOSED}),
        (_S.PROPOSED, Expired): frozenset({_S.FAILED}),
        (_S.PROPOSED, Cancelled): frozenset({_S.FAILED}),
        (_S.SEALING, SealedBy): frozenset({_S.SEALING, _S.SEALED, _S.PROPOSED, _S.FAILED}),
        (_S.SEALING, RefusedBy): frozenset({_S.SEALING, _S.PROPOSED, _S.FAILED}),
        (_S.SEALING, DissolvedBy): frozenset({_S.SEALING, _S.PROPOSED, _S.FAILED}),
        (_S.SEALING, Silent): frozenset({_S.SEALING, _S.PROPOSED, _S.FAILED}),
        (_S.SEALING, Late): frozenset({_S.SEALING}),
        (_S.SEALING, Expired): frozenset({_S.FAILED}),
        (_S.SEALING, Cancelled): frozenset({_S.FAILED}),
        (_S.SEALED, DissolvedBy): frozenset({_S.DISSOLVED}),
        (_S.SEALED, Silent): frozenset({_S.DISSOLVED}),
        (_S.SEALED, Late): frozenset({_S.SEALED}),
        (_S.SEALED, Expired): frozenset({_S.DISSOLVED}),
        (_S.SEALED, Cancelled): frozenset({_S.DISSOLVED}),
        (_S.FAILED, Late): frozenset({_S.FAILED}),
        (_S.DISSOLVED, Late): frozenset({_S.DISSOLVED}),
    }
)
"""The whole machine: in this state, on this event, into one of these states. What is not here is an error."""


class Negotiation:
    """One negotiation of one committee. Drive it with `start`, `receive` and `handle`; read `state`.

    `candidates` are the peers known now, our own node among them if it may hold a seat (then the driver hands what is
    addressed to it to its own desk). `deadline_ms` is the moment after which no new proposal is made.
    """

    def __init__(
        self,
        request: Request,
        candidates: Iterable[Candidate],
        *,
        deadline_ms: int,
        random: Random = os.urandom,
    ) -> None:
        self._request = request
        self._candidates = tuple(candidates)
        self._deadline_ms = deadline_ms
        self._random = random
        self._replacements = Replacements()
        self._state = State.CHOOSING
        self._attempts = 0
        self._terms: Terms | None = None
        self._selection: Selection | None = None
        self._accepts: dict[PeerId, Signed] = {}
        self._refusals: dict[PeerId, Refusal] = {}
        self._sealed_by: set[PeerId] = set()
        self._committee: SealedCommittee | None = None
        self._off: set[tuple[PeerId, CommitteeId]] = set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def terms(self) -> Terms | None:
        """The terms proposed last."""
        return self._terms

    @property
    def selection(self) -> Selection | None:
        """The choice proposed last: its spec, its candidates, how many offers conflict."""
        return self._selection

    @property
    def attempts(self) -> int:
        """How many proposals were made."""
        return self._attempts

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Everybody who refused or was silent, and why, over all attempts."""
        return tuple(self._replacements.refusals)

    def waiting_for(self) -> tuple[PeerId, ...]:
        """Return the members whose answer is still to come."""
        if self._terms is None or self._state not in (State.PROPOSED, State.SEALING):
            return ()
        answered = self._sealed_by if self._state is State.SEALING else self._accepts.keys()
        return tuple(peer for peer in self._terms.members() if peer not in answered and peer not in self._refusals)

    def start(self, now_ms: int) -> list[Action]:
        """Make the first proposal."""
        return self.handle(Start(), now_ms)

    def receive(self, peer: PeerId, message: Message, now_ms: int) -> list[Action]:
        """Take in a peer's message; raise `RemoteProtocolError` if it is none of this protocol's answers."""
        match message:
            case Accepted():
                return self.handle(AcceptedBy(peer, message), now_ms)
            case Refuse():
                return self.handle(RefusedBy(peer, message), now_ms)
            case Sealed():
                return self.handle(SealedBy(peer, message), now_ms)
            case Dissolve():
                return self.handle(DissolvedBy(peer, message), now_ms)
        raise RemoteProtocolError(f"{peer} sent {type(message).__name__} in a negotiation", peer=peer)

    def handle(self, event: Event, now_ms: int) -> list[Action]:
        """Take in one event and return what to do."""
        event = self._late(event)
        allowed = TRANSITIONS.get((self._state, type(event)))
        if allowed is None:
            name = type(event).__name__
            if isinstance(event, AcceptedBy | RefusedBy | SealedBy | DissolvedBy):
                raise RemoteProtocolError(f"{event.peer}: {name} while {self._state}", peer=event.peer)
            raise LocalProtocolError(f"the negotiation is {self._state}: {name} is not possible")
        before = self._state
        actions = self._dispatch(event, now_ms)
        if self._state not in allowed:
            raise LocalProtocolError(f"the negotiation went from {before} to {self._state} on {type(event).__name__}")
        return actions

    def _dispatch(self, event: Event, now_ms: int) -> list[Action]:
        match event:
            case Start():
                return self._propose(now_ms)
            case AcceptedBy(peer, message):
                return self._accepted(peer, message.accept, now_ms)
            case RefusedBy(peer, message):
                self._expect(peer, message.committee)
                self._expect_first_answer(peer)
                return self._refused(Refusal(peer, message.reason, message.subject, message.detail), now_ms)
            case SealedBy(peer, message):
                self._expect(peer, message.committee)
                self._expect_first_answer(peer)
                self._sealed_by.add(peer)
                return self._conclude(now_ms)
            case DissolvedBy(peer, message):
                self._expect(peer, message.committee)
                if self._state is State.SEALED:
                    return self._end(peer, message.reason)
                return self._refused(Refusal(peer, RefusalReason.SHUTTING_DOWN, "", message.reason), now_ms)
            case Silent(peer, detail):
                return self._silent(peer, detail, now_ms)
            case Late(peer, committee, accepted):
                return [SendDissolve(peer, Dissolve(committee=committee, reason="superseded"))] if accepted else []
            case Expired():
                if self._state is State.SEALED:
                    return self._end("", "expired", tell=False)
                unanswered = "".join(f"; {peer} has not answered yet" for peer in self.waiting_for())
                told = f"{self._told()}{unanswered}"
                return self._fail(CommitteeError(f"no committee before the deadline{told}"), "deadline")
            case Cancelled(reason):
                if self._state is State.SEALED:
                    return self._end("", reason)
                return self._fail(CommitteeError(f"the negotiation was given up: {reason}"), reason)

    # What peers say

    def _late(self, event: Event) -> Event:
        """Turn an answer to a proposal that is off, by a peer that had been asked, into `Late`."""
        match event:
            case AcceptedBy(peer, message):
                try:
                    committee = open_signed(message.accept, Accept, signer=peer).committee
                except WireError:
                    return event
                if (peer, committee) in self._off:
                    return Late(peer, CommitteeId(committee), True)
            case RefusedBy(peer, message) | SealedBy(peer, message) | DissolvedBy(peer, message):
                if (peer, message.committee) in self._off:
                    return Late(peer, CommitteeId(message.committee), False)
        return event

    def _expect(self, peer: PeerId, committee: bytes) -> Terms:
        if self._terms is None or peer not in self._terms.members():
            raise RemoteProtocolError(f"{peer} answered but is no member of the committee", peer=peer)
        if committee != self._terms.committee_id():
            raise RemoteProtocolError(f"{peer} answered about a committee that was not proposed", peer=peer)
        return self._terms

    def _expect_first_answer(self, peer: PeerId) -> None:
        if peer not in self.waiting_for():
            raise RemoteProtocolError(f"{peer} answered twice", peer=peer)

    def _accepted(self, peer: PeerId, signed: Signed, now_ms: int) -> list[Action]:
        terms = self._terms
        if terms is None or peer not in terms.members():
            raise RemoteProtocolError(f"{peer} accepted but is no member of the committee", peer=peer)
        try:
            open_accept(signed, terms, signer=peer)
        except WireError as error:
            raise RemoteProtocolError(f"{peer}: not a valid acceptance: {error.message}", peer=peer) from error
        self._expect_first_answer(peer)
        self._accepts[peer] = signed
        return self._conclude(now_ms)

    def _refused(self, refusal: Refusal, now_ms: int) -> list[Action]:
        self._refusals[refusal.peer] = refusal
        self._accepts.pop(refusal.peer, None)
        self._sealed_by.discard(refusal.peer)
        return self._conclude(now_ms)

    def _silent(self, peer: PeerId, detail: str, now_ms: int) -> list[Action]:
        if self._terms is None or peer not in self._terms.members():
            raise LocalProtocolError(f"{peer} is no member of the committee: it cannot be silent in it")
        if self._state is State.SEALED:
            return self._end(peer, detail or "lost")
        self._refusals.setdefault(peer, Refusal(peer, None, "", detail))
        return self._conclude(now_ms)

    # What follows from it

    def _conclude(self, now_ms: int) -> list[Action]:
        """Go on once everybody has answered."""
        if self.waiting_for() or self._terms is None:
            return []
        if self._refusals:
            off = self._call_off("others refused")
            self._replacements.learn(self._terms, self._refusals)
            return off + self._propose(now_ms)
        if self._state is State.PROPOSED:
            accepts = tuple(self._accepts[peer] for peer in self._terms.members())
            self._committee = SealedCommittee(self._terms, accepts)
            self._state = State.SEALING
            seal = self._committee.seal()
            return [SendSeal(peer, seal) for peer in self._terms.members()]
        if self._committee is None:
            raise LocalProtocolError("everybody sealed, but there is no seal")
        self._state = State.SEALED
        return [Done(self._committee)]

    def _call_off(self, reason: str) -> list[Action]:
        """Tell those who hold a seat in the present terms that these are off, and remember whose answer may be late."""
        if self._terms is None:
            return []
        identifier = self._terms.committee_id()
        self._off.update((peer, identifier) for peer in self._terms.members())
        self._committee = None
        message = Dissolve(committee=identifier, reason=reason[:256])
        return [SendDissolve(peer, message) for peer in self._terms.members() if peer in self._accepts]

    def _propose(self, now_ms: int) -> list[Action]:
        """Choose, within what refusals left over, and ask everybody."""
        self._accepts, self._refusals, self._sealed_by = {}, {}, set()
        if now_ms >= self._deadline_ms:
            return self._fail(CommitteeError(f"no committee before the deadline{self._told()}"))
        if self._attempts >= self._request.max_attempts:
            return self._fail(CommitteeError(f"no committee after {self._attempts} proposals{self._told()}"))
        try:
            self._selection = self._choose()
        except FinodeError as error:
            return self._fail(self._explained(error))
        self._attempts += 1
        self._terms = self._selection.terms(self._request, now_ms=now_ms, nonce=self._random(NONCE_BYTES))
        self._state = State.PROPOSED
        propose = Propose(terms=self._terms)
        return [SendPropose(peer, propose) for peer in self._terms.members()]

    def _choose(self) -> Selection:
        while True:
            try:
                return choose(self._candidates, self._request, self._replacements.constraints())
            except CommitteeError:
                if not self._replacements.give_up_a_wish():
                    raise

    def _told(self) -> str:
        """Return who refused and why, those who said the same in one."""
        said: dict[str, dict[PeerId, None]] = {}
        for refusal in self._replacements.refusals:
            said.setdefault(refusal.words, {})[refusal.peer] = None
        return "".join(f"; {' and '.join(peers)} {words}" for words, peers in said.items())

    def _explained(self, error: FinodeError) -> FinodeError:
        """Return the error of a choice with who refused and why; the refusal itself where it is the only one."""
        refusals = self._replacements.refusals
        if not refusals:
            return error
        only = refusals[0]
        if len(refusals) == 1 and only.reason is not None:
            return PeerRefused(
                f"{only}; without it: {error.message}", peer=only.peer, reason=only.reason, hint=self._hint(error)
            )
        kind = TooFewParties if isinstance(error, TooFewParties) else CommitteeError
        return kind(f"{error.message}{self._told()}", hint=self._hint(error))

    def _hint(self, error: FinodeError) -> str:
        """Return what to do about the reasons that members gave; the error's own hint if that says more."""
        reasons = dict.fromkeys(refusal.reason for refusal in self._replacements.refusals if refusal.reason)
        return "; ".join(_REMEDIES[reason] for reason in reasons if reason in _REMEDIES) or error.hint

    def _fail(self, error: FinodeError, reason: str = "given up") -> list[Action]:
        actions: list[Action] = self._call_off(reason) if self._state in (State.PROPOSED, State.SEALING) else []
        self._state = State.FAILED
        return [*actions, Failed(error)]

    def _end(self, culprit: str, reason: str, *, tell: bool = True) -> list[Action]:
        if self._terms is None or self._committee is None:
            raise LocalProtocolError("a committee ends that was never sealed")
        identifier = self._committee.id
        self._off.update((peer, identifier) for peer in self._terms.members())
        self._state = State.DISSOLVED
        others = [peer for peer in self._terms.members() if tell and peer != culprit]
        message = Dissolve(committee=identifier, reason=reason[:256])
        return [*(SendDissolve(peer, message) for peer in others), Ended(identifier, culprit, reason)]
