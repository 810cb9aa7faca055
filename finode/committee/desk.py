"""A member's desk: routes each message of /finode/committee/1 to the membership it belongs to, and keeps the book.

Still no I/O: `receive` takes a message and gives the answer. The driver reads a message from a stream, hands it in,
sends the answer back; it calls `tick` from time to time, and `abort` when a member is lost or the node stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finode.committee.book import CommitteeBook
from finode.committee.membership import (
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
from finode.committee.rules import MemberView
from finode.errors import RemoteProtocolError
from finode.identity import Identity, PeerId
from finode.wire.committee import CommitteeId, Dissolve, Propose, RefusalReason, Refuse, Seal
from finode.wire.message import Message

SEAL_WAIT_MS = 60_000
"""How long an acceptance waits for its seal: the querier waits for the slowest member's answer in between."""
MOST_OF_ONE_QUERIER = 64
"""Most agreements that one querier may have open here: each keeps up to 64 KiB of terms in memory."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a desk wants done: the answer to the message, committees that ended, and what to tell queriers."""

    reply: Message | None = None
    ended: tuple[End, ...] = ()
    notices: tuple[SendDissolve, ...] = ()


@dataclass(slots=True)
class _Open:
    membership: Membership
    querier: PeerId
    lapses_ms: int
    expires_ms: int


class Desk:
    """All memberships of one node. `view` is called for each proposal, so that it is what the node knows then.

    `since_ms` is when this node started: it refuses terms made before, of which it may have forgotten the end.
    """

    def __init__(
        self,
        identity: Identity,
        view: Callable[[], MemberView],
        book: CommitteeBook,
        *,
        seal_wait_ms: int = SEAL_WAIT_MS,
        since_ms: int = 0,
    ) -> None:
        self._identity = identity
        self._view = view
        self._book = book
        self._seal_wait_ms = seal_wait_ms
        self._since_ms = since_ms
        self._open: dict[CommitteeId, _Open] = {}
        self._over: dict[CommitteeId, int] = {}

    @property
    def book(self) -> CommitteeBook:
        return self._book

    def __iter__(self) -> Iterator[Membership]:
        return iter([entry.membership for entry in self._open.values()])

    def receive(self, peer: PeerId, message: Message, now_ms: int) -> Outcome:
        """Take in a peer's message and return the answer to it.

        Raises `RemoteProtocolError` for what the protocol does not allow; nothing has changed then.
        """
        match message:
            case Propose(terms=terms):
                return self._propose(peer, message, terms.committee_id(), now_ms)
            case Seal(committee=committee):
                return self._seal(peer, message, CommitteeId(committee), now_ms)
            case Dissolve(committee=committee):
                # One that lapsed here meanwhile needs no dissolving.
                if CommitteeId(committee) not in self._open:
                    return Outcome()
                return self._apply(CommitteeId(committee), DissolveReceived(peer, message), now_ms)
        raise RemoteProtocolError(f"{peer} sent {type(message).__name__} to a committee's member", peer=peer)

    def tick(self, now_ms: int) -> Outcome:
        """End what has expired or was not sealed in time; call it every second or so."""
        self._over = {identifier: expires for identifier, expires in self._over.items() if expires > now_ms}
        due = [identifier for identifier, entry in self._open.items() if now_ms >= entry.lapses_ms]
        ended = [end for identifier in due for end in self._apply(identifier, Lapsed(), now_ms).ended]
        return Outcome(ended=tuple(ended))

    def abort(self, committee: bytes, reason: str, now_ms: int) -> Outcome:
        """End one committee of ours, whether sealed yet or not, and tell its querier; nothing if it is not here."""
        if CommitteeId(committee) not in self._open:
            return Outcome()
        return self._apply(CommitteeId(committee), Aborted(reason), now_ms)

    def abort_all(self, reason: str, now_ms: int, *, member: PeerId | None = None) -> Outcome:
        """End all committees, or those that `member` has a seat in or asked for."""
        ended: list[End] = []
        notices: list[SendDissolve] = []
        for identifier, entry in list(self._open.items()):
            terms = entry.membership.terms
            if member is None or (terms is not None and member in (*terms.members(), terms.querier)):
                outcome = self.abort(identifier, reason, now_ms)
                ended.extend(outcome.ended)
                notices.extend(outcome.notices)
        return Outcome(ended=tuple(ended), notices=tuple(notices))

    def _propose(self, peer: PeerId, message: Propose, identifier: CommitteeId, now_ms: int) -> Outcome:
        view = self._view()
        if identifier in self._over or (identifier not in self._open and message.terms.created_ms < self._since_ms):
            # An owner's signature on these terms is still out there: with it, each new seal would bring a new quota
            # that the owner never counted. What ended, or was made before this node can remember, stays ended.
            detail = "these terms ended here, or were made before this node started: propose new ones"
            return Outcome(reply=Refuse(committee=identifier, reason=RefusalReason.EXPIRED, detail=detail))
        if identifier not in self._open:
            crowd = sum(entry.querier == peer for entry in self._open.values())
            if crowd >= MOST_OF_ONE_QUERIER:
                return Outcome(
                    reply=Refuse(
                        committee=identifier,
                        reason=RefusalReason.BUSY,
                        subject=peer,
                        detail=f"{crowd} agreements with this querier are open: dissolve some",
                    )
                )
            lapses_ms = min(now_ms + self._seal_wait_ms, message.terms.expires_ms)
            self._open[identifier] = _Open(Membership(self._identity), peer, lapses_ms, message.terms.expires_ms)
        try:
            return self._apply(identifier, Proposed(peer, message, view), now_ms)
        finally:
            # What raised before it had a state must not lapse later.
            if identifier in self._open and self._open[identifier].membership.state is State.NEW:
                del self._open[identifier]

    def _seal(self, peer: PeerId, message: Seal, identifier: CommitteeId, now_ms: int) -> Outcome:
        if identifier not in self._open:
            detail = "this node has not accepted these terms, or its acceptance has lapsed"
            return Outcome(reply=Refuse(committee=identifier, reason=RefusalReason.NOT_SEALED, detail=detail))
        return self._apply(identifier, SealReceived(peer, message), now_ms)

    def _apply(self, identifier: CommitteeId, event: Event, now_ms: int) -> Outcome:
        entry = self._open[identifier]
        actions: list[Action] = entry.membership.handle(event, now_ms)
        reply: Message | None = None
        ended: list[End] = []
        notices: list[SendDissolve] = []
        for action in actions:
            match action:
                case Reply(answer):
                    reply = answer
                case Serve(committee):
                    self._book.add(committee)
                    entry.lapses_ms = committee.terms.expires_ms
                case End(committee=gone):
                    self._over[gone] = entry.expires_ms
                    self._book.drop(gone)
                    ended.append(action)
                case SendDissolve():
                    notices.append(action)
        if entry.membership.state in (State.REFUSED, State.ENDED):
            del self._open[identifier]
        return Outcome(reply, tuple(ended), tuple(notices))
