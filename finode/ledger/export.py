"""The file that `finode receipts export` writes and `finode receipts verify` reads, with or without a daemon.

    finode ledger 1\\n                                  the first line
    u8 kind | u32 length (big-endian) | record         any number of records
    0 | 36 | u32 number of records, SHA-256 of all bytes before this one      the end

A record is the canonical bytes of an envelope, its kind the message code of what is signed: 98 `SignedReceipt`,
99 `Signed` of a `Deployment`, 101 `SignedStatement`, 102 `Equivocation`. Each proves itself by its signatures. The end
proves nothing against a forger, who can write another; it shows that a file was cut off or damaged on its way.

Nothing here does input or output of its own, and nothing is true because it stands in a file: `read_entries` gives
bytes, `Entry.open` a record, and only `finode.ledger.records` says whether that is true.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Final

from finode.errors import MalformedMessage
from finode.wire import canonical
from finode.wire.message import KIB
from finode.wire.receipts import Deployment, Equivocation, SignedReceipt, SignedStatement
from finode.wire.signed import Signed

MAGIC: Final = b"finode ledger 1\n"
_HEADER: Final = struct.Struct(">BI")
_END: Final = struct.Struct(">I32s")
_END_KIND: Final = 0

Exported = SignedReceipt | SignedStatement | Equivocation | Signed
"""What an export holds; a `Signed` is an owner's `Deployment`."""


class RecordKind(IntEnum):
    """The kind of a record: the message code of what is signed."""

    RECEIPT = SignedReceipt.code
    DEPLOYMENT = Deployment.code
    STATEMENT = SignedStatement.code
    PROOF = Equivocation.code


_TYPES: Final[dict[RecordKind, tuple[type[Exported], int]]] = {
    RecordKind.RECEIPT: (SignedReceipt, SignedReceipt.limit),
    RecordKind.DEPLOYMENT: (Signed, Deployment.limit + KIB),
    RecordKind.STATEMENT: (SignedStatement, SignedStatement.limit),
    RecordKind.PROOF: (Equivocation, Equivocation.limit),
}


class BrokenExport(MalformedMessage):
    """An export that cannot be read any further: not one at all, cut off, or damaged between its records."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a file as it stands there: its number, from 1, the offset of its header in bytes, and its bytes."""

    number: int
    offset: int
    kind: RecordKind
    data: bytes

    def open(self) -> Exported:
        """Return the envelope, of which nothing is checked yet; raise `MalformedMessage`."""
        return canonical.decode(self.data, _TYPES[self.kind][0])


def write_entries(records: Iterable[Exported]) -> Iterator[bytes]:
    """Yield the pieces of an export, in the order of `records`."""
    seen, count = hashlib.sha256(MAGIC), 0
    yield MAGIC
    for record in records:
        data = canonical.encode(record)
        piece = _HEADER.pack(_kind_of(record), len(data)) + data
        seen.update(piece)
        count += 1
        yield piece
    yield _HEADER.pack(_END_KIND, _END.size) + _END.pack(count, seen.digest())


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """Yield the records of an export; raise `BrokenExport` where it cannot be read any further.

    A length is checked against the limit of its kind before anything is read.
    """
    seen, number, offset = hashlib.sha256(), 0, len(MAGIC)
    if (first := file.read(len(MAGIC))) != MAGIC:
        raise BrokenExport("its first line is not that of an export")
    seen.update(first)
    while True:
        head = _read(file, _HEADER.size, offset)
        kind, length = _HEADER.unpack(head)
        if kind == _END_KIND:
            _check_end(_read(file, length, offset) if length == _END.size else b"", number, seen.digest(), offset)
            if file.read(1):
                raise BrokenExport("there are bytes after its end")
            return
        if kind not in RecordKind:
            raise BrokenExport(f"at byte {offset}: no record is of kind {kind}")
        limit = _TYPES[RecordKind(kind)][1]
        if length > limit:
            raise BrokenExport(f"at byte {offset}: a record of {length} bytes, the limit of its kind is {limit}")
        data = _read(file, length, offset)
        seen.update(head + data)
        number += 1
        yield Entry(number, offset, RecordKind(kind), data)
        offset += len(head) + length


def _kind_of(record: Exported) -> RecordKind:
    return next(kind for kind, (cls, _) in _TYPES.items() if isinstance(record, cls))


def _read(file: BinaryIO, size: int, offset: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise BrokenExport(f"at byte {offset}: it is cut off")
    return data


def _check_end(data: bytes, count: int, digest: bytes, offset: int) -> None:
    if not data:
        raise BrokenExport(f"at byte {offset}: its end is not one")
    stated, expected = _END.unpack(data)
    if stated != count:
        raise BrokenExport(f"it holds {count} records, its end says {stated}")
    if expected != digest:
        raise BrokenExport("its bytes are not those that were written: the hash at its end differs")
