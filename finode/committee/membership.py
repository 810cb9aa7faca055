"""A member's side of one committee (as party, dealer or owner): events in, actions out, no I/O and no clock.

    NEW --Proposed--> ACCEPTED --SealReceived--> SEALED --expiry, dissolve, abort--> ENDED
         '----------> REFUSED <---------'  (terms that break a rule, a seal that proves nothing)

Accepting means signing the hash of the terms: the signature is for all of the member's seats. A proposal or a seal that
comes a second time gets the same answer again, for its answer may have been lost. An acceptance that is never sealed
lapses. `handle` raises `LocalProtocolError` for an event of ours that the table does not have, `RemoteProtocolError`
for a peer's message out of place or by a peer that is not the querier; the state is unchanged after either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from finode.committee.rules import MemberView, objection
from finode.committee.sealed import SealedCommittee, verify_seal
from finode.config import Role
from finode.errors import LocalProtocolError, RemoteProtocolError, StorageFull, WireError
from finode.identity import Identity, PeerId
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
from finode.wire.signed import sign


class State(StrEnum):
    """Where the membership stands."""

    NEW = "new"
    ACCEPTED = "accepted"
    SEALED = "sealed"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Proposed:
    """A proposal came from `peer`. `view` is what this member knows now."""

    peer: PeerId
    message: Propose
    view: MemberView


@dataclass(frozen=True, slots=True)
class SealReceived:
    peer: PeerId
    message: Seal


@dataclass(frozen=True, slots=True)
class DissolveReceived:
    peer: PeerId
    message: Dissolve


@dataclass(frozen=True, slots=True)
class Lapsed:
    """The terms have expired, or the seal has not come in time."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """This node ends it: it shuts down, or a member is lost."""

    reason: str


Event = Proposed | SealReceived | DissolveReceived | Lapsed | Aborted
EVENTS: tuple[type[Event], ...] = (Proposed, SealReceived, DissolveReceived, Lapsed, Aborted)


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the message that was just handled."""

    message: Message


@dataclass(frozen=True, slots=True)
class Serve:
    """The committee is sealed: enter it into the book before the answer goes out."""

    committee: SealedCommittee


@dataclass(frozen=True, slots=True)
class End:
    """The committee is no more: drop it, end its sessions."""

    committee: CommitteeId
    reason: str


@dataclass(frozen=True, slots=True)
class SendDissolve:
    """Tell the querier that this member no longer holds its seats."""

    peer: PeerId
    message: Dissolve


Action = Reply | Serve | End | SendDissolve

_S = State
TRANSITIONS: Mapping[tuple[State, type[Event]], frozenset[State]] = MappingProxyType(
    {
        (_S.NEW, Proposed): frozenset({_S.ACCEPTED, _S.REFUSED}),
        (_S.ACCEPTED, Proposed): frozenset({_S.ACCEPTED}),
        (_S.ACCEPTED, SealReceived): frozenset({_S.SEALED, _S.REFUSED}),
        (_S.ACCEPTED, DissolveReceived): frozenset({_S.ENDED}),
        (_S.ACCEPTED, Lapsed): frozenset({_S.ENDED}),
        (_S.ACCEPTED, Aborted): frozenset({_S.ENDED}),
        (_S.SEALED, SealReceived): frozenset({_S.SEALED}),
        (_S.SEALED, DissolveReceived): frozenset({_S.ENDED}),
        (_S.SEALED, Lapsed): frozenset({_S.ENDED}),
        (_S.SEALED, Aborted): frozenset({_S.ENDED}),
        # The querier cannot know yet that we refused or ended it: its message crossed ours.
        (_S.REFUSED, DissolveReceived): frozenset({_S.REFUSED}),
        (_S.ENDED, DissolveReceived): frozenset({_S.ENDED}),
        (_S.ENDED, SealReceived): frozenset({_S.ENDED}),
    }
)
"""The whole machine: in this state, on this event, into one of these states. What is not here is an error."""


class Membership:
    """This node's part in one committee. Drive it with `handle`; read `state`, `terms` and `committee`."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._state = State.NEW
        self._terms: Terms | None = None
        self._accepted: Accepted | None = None
        self._committee: SealedCommittee | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def terms(self) -> Terms | None:
        """The terms of the proposal, accepted or refused; None before it."""
        return self._terms

    @property
    def committee(self) -> SealedCommittee | None:
        """The committee while it is sealed."""
        return self._committee if self._state is State.SEALED else None

    def handle(self, event: Event, now_ms: int) -> list[Action]:
        """Take in one event and return what to do, in this order."""
        allowed = TRANSITIONS.get((self._state, type(event)))
        if allowed is None:
            name = type(event).__name__
            if isinstance(event, Proposed | SealReceived | DissolveReceived):
                raise RemoteProtocolError(f"{event.peer}: {name} while {self._state}", peer=event.peer)
            raise LocalProtocolError(f"the membership is {self._state}: {name} is not possible")
        before = self._state
        actions = self._dispatch(event, now_ms)
        if self._state not in allowed:
            raise LocalProtocolError(f"the membership went from {before} to {self._state} on {type(event).__name__}")
        return actions

    def _dispatch(self, event: Event, now_ms: int) -> list[Action]:
        match event:
            case Proposed(peer, message, view):
                return self._proposed(peer, message.terms, view, now_ms)
            case SealReceived(peer, message):
                return self._sealed(self._of_querier(peer, message.committee), peer, message, now_ms)
            case DissolveReceived(peer, message):
                terms = self._of_querier(peer, message.committee)
                if self._state not in (State.ACCEPTED, State.SEALED):
                    return []
                return self._end(terms, f"dissolved by the querier: {message.reason[:256]}")
            case Lapsed():
                terms = self._known_terms()
                expired = now_ms >= terms.expires_ms
                return self._end(terms, "expired" if expired else "not sealed in time")
            case Aborted(reason):
                terms = self._known_terms()
                dissolve = Dissolve(committee=terms.committee_id(), reason=reason[:256])
                return [*self._end(terms, reason), SendDissolve(terms.querier, dissolve)]

    def _proposed(self, peer: PeerId, terms: Terms, view: MemberView, now_ms: int) -> list[Action]:
        if self._accepted is not None:
            if self._terms != terms or peer != terms.querier:
                raise RemoteProtocolError(f"{peer} proposed other terms for a committee agreed already", peer=peer)
            return [Reply(self._accepted)]
        if view.peer != self._identity.peer_id:
            raise LocalProtocolError(f"the view is that of {view.peer}, the identity {self._identity.peer_id}")
        self._terms = terms
        broken = objection(terms, peer, view, now_ms)
        if broken is not None:
            self._state = State.REFUSED
            return [self._refuse(terms, broken.reason, broken.subject, broken.detail)]
        if view.peer in terms.owners():
            # Before the signature leaves: see consent.py. What cannot be written down is not consented to.
            try:
                view.policy.charge(
                    terms, owner=view.peer, organization_of=view.organization_here, quotas=view.quotas, now_ms=now_ms
                )
            except StorageFull as error:
                self._state = State.REFUSED
                return [self._refuse(terms, RefusalReason.STORAGE_FULL, Role.OWNER, error.message)]
        deployments = (terms.deployment_id(model) for model in terms.models)
        accept = Accept(
            committee=terms.committee_id(),
            peer=view.peer,
            holds=tuple(deployment for deployment in deployments if deployment in view.holds),
        )
        self._accepted = Accepted(accept=sign(self._identity, accept))
        self._state = State.ACCEPTED
        return [Reply(self._accepted)]

    def _sealed(self, terms: Terms, peer: PeerId, seal: Seal, now_ms: int) -> list[Action]:
        sealed = Sealed(committee=terms.committee_id())
        if self._state is State.SEALED:
            return [Reply(sealed)]
        if self._state is State.ENDED:
            return [self._refuse(terms, RefusalReason.NOT_SEALED, "", "this member's acceptance has ended")]
        if now_ms >= terms.expires_ms:
            self._state = State.REFUSED
            return [self._refuse(terms, RefusalReason.EXPIRED, str(terms.expires_ms), "expired before the seal")]
        try:
            self._committee = verify_seal(terms, seal)
        except WireError as error:
            self._state = State.REFUSED
            return [self._refuse(terms, RefusalReason.BAD_TERMS, peer, f"bad seal: {error.message}")]
        self._state = State.SEALED
        return [Serve(self._committee), Reply(sealed)]

    def _end(self, terms: Terms, reason: str) -> list[Action]:
        self._state = State.ENDED
        self._committee = None
        return [End(terms.committee_id(), reason)]

    @staticmethod
    def _refuse(terms: Terms, reason: RefusalReason, subject: str, detail: str) -> Reply:
        return Reply(Refuse(committee=terms.committee_id(), reason=reason, subject=subject[:256], detail=detail[:1024]))

    def _known_terms(self) -> Terms:
        if self._terms is None:
            raise LocalProtocolError("there are no terms yet")
        return self._terms

    def _of_querier(self, peer: PeerId, committee: bytes) -> Terms:
        terms = self._known_terms()
        if peer != terms.querier:
            raise RemoteProtocolError(f"{peer} is not the querier of this committee", peer=peer)
        if committee != terms.committee_id():
            raise RemoteProtocolError(f"{peer} named another committee", peer=peer)
        return terms
