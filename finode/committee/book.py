"""The sealed committees that a node serves, and those that its own queries may reuse.

`CommitteeBook` is a member's: no session starts but through `begin`, which checks that the committee is sealed, that it
has not expired, that its quota lasts, and that the node has a seat free. What a session takes of the quota is never
given back, for it may have learned what it asked for. `QuerierCache` is the querier's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finode.committee.agreement import Agreement
from finode.committee.policy import Request
from finode.committee.sealed import SealedCommittee
from finode.errors import LocalProtocolError, PeerRefused
from finode.identity import PeerId
from finode.wire.committee import CommitteeId, RefusalReason


@dataclass(slots=True)
class _Entry:
    committee: SealedCommittee
    left: int


def _refused(reason: RefusalReason, message: str, hint: str = "") -> PeerRefused:
    return PeerRefused(message, reason=reason, hint=hint)


class CommitteeBook:
    """A member's sealed committees, the inputs left on each, and the seats that running sessions take."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[CommitteeId, _Entry] = {}
        self._seats: dict[bytes, CommitteeId] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SealedCommittee]:
        return iter([entry.committee for entry in self._entries.values()])

    def promised_by(self, is_theirs: Callable[[PeerId], bool]) -> int:
        """Return the micro-credits that queriers may still spend on committees that are open here; what of it they have
        spent already may be in receipts as well."""
        terms = [entry.committee.terms for entry in self._entries.values() if is_theirs(entry.committee.terms.querier)]
        return sum(one.quota * one.rewards.price for one in terms)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def seats_in_use(self) -> int:
        """How many sessions run now."""
        return len(self._seats)

    def add(self, committee: SealedCommittee) -> None:
        """Enter a sealed committee with its full quota; one that is entered already keeps what is left of it."""
        self._entries.setdefault(committee.id, _Entry(committee, committee.terms.quota))

    def get(self, committee: bytes, now_ms: int) -> SealedCommittee:
        """Return a sealed committee; raise `PeerRefused` with the reason NOT_SEALED or EXPIRED."""
        return self._entry(committee, now_ms).committee

    def left(self, committee: bytes, now_ms: int) -> int:
        """Return how many inputs may still be asked on it; raises as `get` does."""
        return self._entry(committee, now_ms).left

    def spend(self, committee: bytes, batch: int, now_ms: int) -> SealedCommittee:
        """Take `batch` inputs off the quota, for good; raise `PeerRefused` (BATCH_TOO_LARGE, QUOTA_USED)."""
        entry = self._entry(committee, now_ms)
        most = entry.committee.terms.max_batch
        if not 1 <= batch <= most:
            raise _refused(RefusalReason.BATCH_TOO_LARGE, f"a batch of {batch} inputs; the terms allow 1 to {most}")
        if batch > entry.left:
            raise _refused(
                RefusalReason.QUOTA_USED,
                f"a batch of {batch} inputs; {entry.left} of {entry.committee.terms.quota} are left on this committee",
                "agree on a new committee",
            )
        entry.left -= batch
        return entry.committee

    def begin(self, committee: bytes, session: bytes, batch: int, now_ms: int) -> SealedCommittee:
        """Take a seat and `batch` inputs of the quota for a session; give the seat back with `end`.

        Raises `PeerRefused`: NOT_SEALED, EXPIRED, BATCH_TOO_LARGE, QUOTA_USED, BUSY, or BAD_TERMS for a session id
        that is running. Nothing is taken then.
        """
        self._entry(committee, now_ms)
        if session in self._seats:
            raise _refused(RefusalReason.BAD_TERMS, f"session {session.hex()} runs already")
        if self.seats_in_use >= self._capacity:
            raise _refused(
                RefusalReason.BUSY, f"{self.seats_in_use} sessions run here, which is all this node takes", "ask later"
            )
        sealed = self.spend(committee, batch, now_ms)
        self._seats[session] = sealed.id
        return sealed

    def end(self, session: bytes) -> None:
        """Give back the seat of a session; raise `LocalProtocolError` if it has none."""
        if self._seats.pop(session, None) is None:
            raise LocalProtocolError(f"session {session.hex()} has no seat")

    def sessions_of(self, committee: bytes) -> tuple[bytes, ...]:
        """Return the sessions that run on a committee."""
        return tuple(session for session, of in self._seats.items() if of == committee)

    def drop(self, committee: bytes) -> SealedCommittee | None:
        """Forget a committee; its running sessions keep their seats until they end. None if it is not here."""
        entry = self._entries.pop(CommitteeId(committee), None)
        return None if entry is None else entry.committee

    def drop_expired(self, now_ms: int) -> tuple[SealedCommittee, ...]:
        """Forget the committees that have expired and return them."""
        expired = tuple(committee for committee in self if committee.expired(now_ms))
        for committee in expired:
            del self._entries[committee.id]
        return expired

    def _entry(self, committee: bytes, now_ms: int) -> _Entry:
        entry = self._entries.get(CommitteeId(committee))
        if entry is None:
            raise _refused(
                RefusalReason.NOT_SEALED, f"no sealed committee {committee.hex()[:12]} here", "agree on a new committee"
            )
        if entry.committee.expired(now_ms):
            raise _refused(
                RefusalReason.EXPIRED, f"committee {committee.hex()[:12]} has expired", "agree on a new committee"
            )
        return entry


@dataclass(slots=True)
class _Reusable:
    request: Request
    agreement: Agreement
    left: int

    @property
    def committee(self) -> SealedCommittee:
        return self.agreement.committee


class QuerierCache:
    """The querier's sealed committees, to be used again for the same request until they expire.

    The same request means: everything in `Request` is equal. A committee with under `margin_ms` to live is not taken,
    for the session would outlive it at some member.
    """

    def __init__(self, *, margin_ms: int = 5_000) -> None:
        self._margin_ms = margin_ms
        self._entries: list[_Reusable] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, committee: bytes) -> bool:
        return any(entry.committee.id == committee for entry in self._entries)

    def put(self, request: Request, agreement: Agreement, batch: int = 0) -> None:
        """Keep a committee; `batch` inputs of its quota go to the session that it was agreed for."""
        committee = agreement.committee
        if all(entry.committee.id != committee.id for entry in self._entries):
            self._entries.append(_Reusable(request, agreement, committee.terms.quota - batch))

    def take(self, request: Request, batch: int, now_ms: int) -> Agreement | None:
        """Return a committee for one session of `batch` inputs and count them off its quota; None if there is none."""
        self.drop_expired(now_ms)
        for entry in self._entries:
            terms = entry.committee.terms
            lasts = terms.expires_ms - now_ms > self._margin_ms
            if entry.request == request and lasts and batch <= min(terms.max_batch, entry.left):
                entry.left -= batch
                return entry.agreement
        return None

    def drop(self, committee: bytes) -> SealedCommittee | None:
        """Forget a committee, because it was dissolved or failed; None if it is not here."""
        return next(iter(self._remove(lambda sealed: sealed.id == committee)), None)

    def drop_member(self, peer: PeerId) -> tuple[SealedCommittee, ...]:
        """Forget the committees in which a peer holds a seat, because it is lost, and return them: dissolve these."""
        return self._remove(lambda sealed: peer in sealed.terms.members())

    def drop_expired(self, now_ms: int) -> tuple[SealedCommittee, ...]:
        """Forget the committees that have expired and return them."""
        return self._remove(lambda sealed: sealed.expired(now_ms))

    def _remove(self, gone: Callable[[SealedCommittee], bool]) -> tuple[SealedCommittee, ...]:
        removed = tuple(entry.committee for entry in self._entries if gone(entry.committee))
        self._entries = [entry for entry in self._entries if not gone(entry.committee)]
        return removed
