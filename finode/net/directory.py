"""The directory: every peer's newest signed record, and what is wrong with a record that is dropped. No I/O.

A record comes by gossip or by sync, from any sender. `Directory.insert` says what became of it; the table `FAULT_OF`
says what that does to the sender's standing. The sequence of a peer's newest record is remembered after the record has
expired, so an older one never takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from finode.config import Role
from finode.errors import BadSignature, WireError
from finode.identity import Identity, PeerId
from finode.net.roster import Roster
from finode.net.standing import PeerFault
from finode.wire import canonical
from finode.wire.directory import (
    DeploymentRef,
    DirectoryRecords,
    DirectorySync,
    ModelOffer,
    NodeRecord,
    ServiceSpec,
)
from finode.wire.message import KIB, MIB
from finode.wire.signed import Signed, open_signed, sign

SKEW_MS = 60_000
"""How far ahead of ours a peer's clock may be."""
MAX_LIFETIME_MS = 3600_000
"""Longest life of a record: the most that `record_lifetime_s` can be set to."""
MAX_RECORDS = 2048
"""Peers of an open federation that one node remembers; a roster bounds itself."""
ENVELOPE_BYTES = KIB
"""What a signature and its envelope add to a record."""
MAX_ENVELOPE = NodeRecord.limit + ENVELOPE_BYTES
SYNC_BYTES = 4 * MIB
"""Records of one answer to a sync; the rest comes with the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a node says of itself in its record, besides who and where it is."""

    roles: tuple[Role, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    models: tuple[ModelOffer, ...] = ()
    engines: tuple[str, ...] = ()
    capacity: int = 0
    party_price: int = 0
    dealer_price: int = 0
    deployments: tuple[DeploymentRef, ...] = ()


class Verdict(StrEnum):
    """What became of a record."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    OVERSIZED = "oversized"
    BAD_SIGNATURE = "bad-signature"
    MALFORMED = "malformed"
    PEER_MISMATCH = "peer-mismatch"
    WRONG_FEDERATION = "wrong-federation"
    NOT_ON_ROSTER = "not-on-roster"
    WRONG_ORGANIZATION = "wrong-organization"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from-the-future"
    LIVES_TOO_LONG = "lives-too-long"
    REPLAYED = "replayed"
    CONTRADICTORY = "contradictory"
    FULL = "full"

    @property
    def is_good(self) -> bool:
        return self in (Verdict.ACCEPTED, Verdict.KNOWN)


FAULT_OF: Mapping[Verdict, PeerFault] = MappingProxyType(
    {
        Verdict.OVERSIZED: PeerFault.BAD_RECORD,
        Verdict.BAD_SIGNATURE: PeerFault.BAD_RECORD,
        Verdict.MALFORMED: PeerFault.BAD_RECORD,
        Verdict.PEER_MISMATCH: PeerFault.BAD_RECORD,
        Verdict.WRONG_FEDERATION: PeerFault.BAD_RECORD,
        Verdict.LIVES_TOO_LONG: PeerFault.BAD_RECORD,
        Verdict.EXPIRED: PeerFault.STALE_RECORD,
        Verdict.FROM_THE_FUTURE: PeerFault.STALE_RECORD,
        Verdict.REPLAYED: PeerFault.STALE_RECORD,
        # Rosters differ for a while when they are edited, and the sender only passes on what its own roster allows:
        # NOT_ON_ROSTER, WRONG_ORGANIZATION and FULL cost nothing. CONTRADICTORY is its signer's doing, not the
        # sender's, and costs the signer.
    }
)


@dataclass(frozen=True, slots=True)
class KnownRecord:
    """A record whose signature and contents were checked, with the envelope that proves it."""

    record: NodeRecord
    signed: Signed


class Directory:
    """All records that count now."""

    def __init__(self, own: PeerId, federation: str, roster: Roster) -> None:
        self._own = own
        self._federation = federation
        self._roster = roster
        self._known: dict[PeerId, KnownRecord] = {}
        self._sequences: dict[PeerId, int] = {}

    def insert(self, signed: Signed, now_ms: int) -> Verdict:
        """Check a signed record and keep it when it is the newest of its peer."""
        if len(signed.body) > NodeRecord.limit:
            return Verdict.OVERSIZED
        known = self._known.get(signed.signer)
        if known is not None and known.signed == signed:
            return Verdict.KNOWN
        try:
            record = open_signed(signed, NodeRecord)
        except BadSignature:
            return Verdict.BAD_SIGNATURE
        except WireError:
            return Verdict.MALFORMED
        verdict = self._judge(signed, record, now_ms)
        if verdict is Verdict.ACCEPTED:
            self._known[record.peer] = KnownRecord(record, signed)
            self._sequences[record.peer] = record.sequence
        return verdict

    def _judge(self, signed: Signed, record: NodeRecord, now_ms: int) -> Verdict:
        if record.peer != signed.signer:
            return Verdict.PEER_MISMATCH
        if record.federation != self._federation:
            return Verdict.WRONG_FEDERATION
        if not self._accepts(record.peer):
            return Verdict.NOT_ON_ROSTER
        named = self._roster.organization_of(record.peer)
        if named and record.organization not in ("", named):
            return Verdict.WRONG_ORGANIZATION
        if record.expires_ms <= now_ms:
            return Verdict.EXPIRED
        if record.issued_ms > now_ms + SKEW_MS:
            return Verdict.FROM_THE_FUTURE
        if record.expires_ms - record.issued_ms > MAX_LIFETIME_MS:
            return Verdict.LIVES_TOO_LONG
        newest = self._sequences.get(record.peer, -1)
        if record.sequence < newest:
            return Verdict.REPLAYED
        if record.sequence == newest:
            # The same sequence with another body: its signer says two things at once.
            return Verdict.CONTRADICTORY
        if newest < 0 and len(self._sequences) >= MAX_RECORDS:
            return Verdict.FULL
        return Verdict.ACCEPTED

    def expire(self, now_ms: int) -> frozenset[PeerId]:
        """Drop what has expired and return whose records went."""
        gone = frozenset(peer for peer, known in self._known.items() if known.record.expires_ms <= now_ms)
        for peer in gone:
            del self._known[peer]
        return gone

    def drop_unaccepted(self) -> None:
        """Drop the records of peers that the roster no longer accepts."""
        for peer in [peer for peer in self._known if not self._accepts(peer)]:
            del self._known[peer]

    def _accepts(self, peer: PeerId) -> bool:
        return peer == self._own or self._roster.accepts(peer)

    def records(self, now_ms: int) -> dict[PeerId, NodeRecord]:
        """Return the records that have not expired."""
        return {peer: known.record for peer, known in self._known.items() if known.record.expires_ms > now_ms}

    def record_of(self, peer: PeerId, now_ms: int) -> NodeRecord | None:
        known = self._known.get(peer)
        return known.record if known is not None and known.record.expires_ms > now_ms else None

    def have(self) -> DirectorySync:
        """Return what this directory has, for a sync."""
        return DirectorySync(have=tuple((peer, known.record.sequence) for peer, known in sorted(self._known.items())))

    def answer(self, sync: DirectorySync) -> DirectoryRecords:
        """Return what is newer here than there, and ask for what is newer there."""
        theirs = dict(sync.have)
        newer = [peer for peer, known in self._known.items() if known.record.sequence > theirs.get(peer, -1)]
        wanted = tuple(
            peer for peer, sequence in sync.have if sequence > self._sequences.get(peer, -1) and self._accepts(peer)
        )
        return DirectoryRecords(records=self._envelopes(newer), wanted=wanted[:MAX_RECORDS])

    def wanted(self, request: DirectoryRecords) -> DirectoryRecords:
        """Return the records that the other side asked for."""
        return DirectoryRecords(records=self._envelopes([peer for peer in request.wanted if peer in self._known]))

    def _envelopes(self, peers: list[PeerId]) -> tuple[Signed, ...]:
        room = SYNC_BYTES
        chosen: list[Signed] = []
        for peer in peers:
            signed = self._known[peer].signed
            room -= len(signed.body) + ENVELOPE_BYTES
            if room < 0:
                break
            chosen.append(signed)
        return tuple(chosen)


class RecordWriter:
    """Writes a node's own records: each with a higher sequence than the last, also across restarts."""

    def __init__(self, identity: Identity, *, federation: str, organization: str, lifetime_s: float) -> None:
        self._identity = identity
        self._federation = federation
        self._organization = organization
        self._lifetime_ms = round(lifetime_s * 1000)
        self._sequence = 0

    def skip_to(self, sequence: int) -> None:
        """Go on above a sequence that others have seen of us: our clock was ahead once."""
        self._sequence = max(self._sequence, sequence)

    def write(self, offer: Offer, *, addresses: tuple[str, ...], versions: tuple[int, ...], now_ms: int) -> Signed:
        """Return a signed record of `offer`, issued now."""
        # Milliseconds of the clock, so a restarted node goes on above what it said before.
        self._sequence = max(self._sequence + 1, now_ms)
        record = NodeRecord(
            peer=self._identity.peer_id,
            federation=self._federation,
            organization=self._organization,
            roles=offer.roles,
            addresses=addresses,
            versions=versions,
            services=offer.services,
            models=offer.models,
            engines=offer.engines,
            capacity=offer.capacity,
            party_price=offer.party_price,
            dealer_price=offer.dealer_price,
            deployments=offer.deployments,
            sequence=self._sequence,
            issued_ms=now_ms,
            expires_ms=now_ms + self._lifetime_ms,
        )
        return sign(self._identity, record)


def to_gossip(signed: Signed) -> bytes:
    """Return a signed record as the payload of a gossip message."""
    return canonical.encode(signed)


def from_gossip(data: bytes) -> Signed:
    """Return the signed record of a gossip message; raise `WireError`."""
    return canonical.decode(data, Signed)
