"""How ledgers are brought to agree: /finode/receipts/1, and records by gossip on `finode/receipts/1/<federation>`.

    opener   -> listener   Compare(ranges)        what I have, as fingerprints of ranges or as lists of hashes
    listener -> opener     Compared(ranges, ...)  where we differ: finer fingerprints, or hashes
                           ... until nothing is left to compare
    opener   -> listener   FetchRecords(hashes)   listener -> opener   LedgerRecords(records)
    opener   -> listener   LedgerRecords(records) listener -> opener   RecordsTaken

A record's hash is that of its envelope. All hashes are in one order, that of their *keys*: the epoch (8 bytes,
big-endian), the place of the kind in `RecordKind` (1 byte), the hash. A range is all keys from `start` up to, but
without, `until`; an empty `until` is the end. Bounds are keys, or shorter prefixes that compare alike. The fingerprint
of a range is the first 16 bytes of the hash (`ledger-range`) of its count (8 bytes, big-endian) and of the sum of its
hashes as big-endian numbers, modulo 2^256 (32 bytes, big-endian).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import ClassVar

from finode.wire import canonical
from finode.wire.message import KIB, MIB, Message, check, check_id, register
from finode.wire.receipts import HASH_BYTES, Equivocation
from finode.wire.receipts import PROTOCOL as PROTOCOL  # one protocol: the first message of a stream tells what it is

KEY_BYTES = 8 + 1 + HASH_BYTES
FINGERPRINT_BYTES = 16
MAX_RANGES = 1024
MAX_HASHES = 4096
"""Hashes of one message; where more differ, what is beyond is compared in a next pass."""
MAX_RECORD = Equivocation.limit
"""Bytes of the largest record: two contradictory statements."""
RECORDS_BYTES = MIB
"""Records of one message, together; a larger one travels alone."""


class RecordKind(StrEnum):
    """What a record is. The order is that of keys."""

    DEPLOYMENT = "deployment"
    RECEIPT = "receipt"
    STATEMENT = "statement"
    EQUIVOCATION = "equivocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A record as it travels and is kept: the canonical bytes of a signed deployment, of a `SignedReceipt`, of a
    `SignedStatement` or of an `Equivocation`."""

    kind: RecordKind
    data: bytes

    def __post_init__(self) -> None:
        check(0 < len(self.data) <= MAX_RECORD, "a record is too large")

    def hash(self) -> bytes:
        """Return the hash by which ledgers compare what they have."""
        return canonical.digest("ledger-record", canonical.encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRange:
    """What one side has in a range: the count and the fingerprint, or, without a fingerprint, all hashes."""

    start: bytes
    until: bytes
    count: int
    fingerprint: bytes
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check(len(self.start) <= KEY_BYTES and len(self.until) <= KEY_BYTES, "a bound is longer than a key")
        check(not self.until or self.start < self.until, "a range ends before it begins")
        check(0 <= self.count < 1 << 53, "count is not negative")
        check(len(self.fingerprint) in (0, FINGERPRINT_BYTES), "a fingerprint has 16 bytes or none")
        check(len(self.hashes) == (0 if self.fingerprint else self.count), "hashes of all, or a fingerprint")
        check(len(self.hashes) <= MAX_HASHES, f"at most {MAX_HASHES} hashes")
        for one in self.hashes:
            check_id(one, HASH_BYTES, "a hash")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Compare(Message):
    """Opener -> listener: what I have in these ranges, which ascend and do not overlap. Do you have the same?"""

    code: ClassVar[int] = 112
    limit: ClassVar[int] = 512 * KIB

    ranges: tuple[KeyRange, ...]

    def __post_init__(self) -> None:
        check(0 < len(self.ranges) <= MAX_RANGES, f"1 to {MAX_RANGES} ranges")
        check(all(one.until and one.until <= after.start for one, after in pairwise(self.ranges)), "ranges ascend")
        check(sum(len(one.hashes) for one in self.ranges) <= MAX_HASHES, f"at most {MAX_HASHES} hashes")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Message):
    """Listener -> opener: what I have in those ranges, or parts of them, where we differ.

    Of ranges that came as lists, `have` is what the listener has beyond them, and `want` what it lacks of them.
    What lies beyond a `until` that is not empty was not looked at: there was too much to say.
    """

    code: ClassVar[int] = 113
    limit: ClassVar[int] = 512 * KIB

    ranges: tuple[KeyRange, ...]
    have: tuple[bytes, ...]
    want: tuple[bytes, ...]
    until: bytes

    def __post_init__(self) -> None:
        check(len(self.ranges) <= MAX_RANGES, f"at most {MAX_RANGES} ranges")
        check(all(one.until and one.until <= after.start for one, after in pairwise(self.ranges)), "ranges ascend")
        check(len(self.have) <= MAX_HASHES and len(self.want) <= MAX_HASHES, f"at most {MAX_HASHES} hashes")
        check(len(self.until) <= KEY_BYTES, "a bound is longer than a key")
        for one in (*self.have, *self.want):
            check_id(one, HASH_BYTES, "a hash")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRecords(Message):
    """Opener -> listener: send me the records of these hashes."""

    code: ClassVar[int] = 114
    limit: ClassVar[int] = 160 * KIB

    hashes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check(0 < len(self.hashes) <= MAX_HASHES, f"1 to {MAX_HASHES} hashes")
        for one in self.hashes:
            check_id(one, HASH_BYTES, "a hash")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRecords(Message):
    """Either way: records, as they are now. `done` says how many of the hashes that were asked for, in their order,
    this answers; there is no record for a hash that the sender does not know."""

    code: ClassVar[int] = 115
    limit: ClassVar[int] = 6 * MIB

    records: tuple[Envelope, ...]
    done: int

    def __post_init__(self) -> None:
        check(len(self.records) <= MAX_HASHES, f"at most {MAX_HASHES} records")
        check(0 <= self.done <= MAX_HASHES, "done is not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsTaken(Message):
    """Listener -> opener: I have looked at all of them, and `new` brought something new."""

    code: ClassVar[int] = 116

    new: int

    def __post_init__(self) -> None:
        check(0 <= self.new <= MAX_HASHES, "new is not negative")
