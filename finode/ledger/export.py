"""The file that `finode receipts export` writes and `finode receipts verify` reads, with or without a daemon.

    finode ledger 1\\n                                  the first line
    u8 kind | u32 length (big-endian) | record         any number of records
    0 | 36 | u32 number of records, SHA-256 of all bytes before this one      the end

A record is the canonical bytes of an envelope, its kind the message code of what is signed: 98 `SignedReceipt`,
99 `Signed` of a `Deployment`, 101 `SignedStatement`, 102 `Equivocation`. Each proves itself by its signatures. The end
proves nothing against a forger, who can write another; it shows that a file was cut off or damaged on its way.

Nothing here does input or output of its own, and nothing is true because it stands in a file: `read_entries` gives
envelopes, `open_envelope` a record, and only `verify` says whether that is true.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from finode.errors import MalformedMessage
from finode.ledger.envelopes import LIMITS
from finode.wire.receipts import Deployment, Equivocation, SignedReceipt, SignedStatement
from finode.wire.reconciliation import Envelope, RecordKind

MAGIC: Final = b"finode ledger 1\n"
_HEADER: Final = struct.Struct(">BI")
_END: Final = struct.Struct(">I32s")
_END_CODE: Final = 0
_CODES: Final = {
    RecordKind.RECEIPT: SignedReceipt.code,
    RecordKind.DEPLOYMENT: Deployment.code,
    RecordKind.STATEMENT: SignedStatement.code,
    RecordKind.EQUIVOCATION: Equivocation.code,
}
_KINDS: Final = {code: kind for kind, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a file as it stands there: its number, from 1, and the offset of its header in bytes."""

    number: int
    offset: int
    envelope: Envelope


def write_entries(envelopes: Iterable[Envelope]) -> Iterator[bytes]:
    """Yield the pieces of an export, its records in the order given."""
    seen, count = hashlib.sha256(MAGIC), 0
    yield MAGIC
    for envelope in envelopes:
        piece = _HEADER.pack(_CODES[envelope.kind], len(envelope.data)) + envelope.data
        seen.update(piece)
        count += 1
        yield piece
    yield _HEADER.pack(_END_CODE, _END.size) + _END.pack(count, seen.digest())


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """Yield the records of an export; raise `MalformedMessage` where it cannot be read any further.

    A length is checked against the limit of its kind before anything is read.
    """
    seen, number, offset = hashlib.sha256(), 0, len(MAGIC)
    if (first := file.read(len(MAGIC))) != MAGIC:
        raise MalformedMessage("its first line is not that of an export")
    seen.update(first)
    while True:
        head = _read(file, _HEADER.size, offset)
        code, length = _HEADER.unpack(head)
        if code == _END_CODE:
            _check_end(_read(file, length, offset) if length == _END.size else b"", number, seen.digest(), offset)
            if file.read(1):
                raise MalformedMessage("there are bytes after its end")
            return
        if (kind := _KINDS.get(code)) is None:
            raise MalformedMessage(f"at byte {offset}: no record is of kind {code}")
        if not 0 < length <= LIMITS[kind]:
            raise MalformedMessage(f"at byte {offset}: a {kind} of {length} bytes, it has 1 to {LIMITS[kind]}")
        data = _read(file, length, offset)
        seen.update(head + data)
        number += 1
        yield Entry(number, offset, Envelope(kind=kind, data=data))
        offset += len(head) + length


def _read(file: BinaryIO, size: int, offset: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise MalformedMessage(f"at byte {offset}: it is cut off")
    return data


def _check_end(data: bytes, count: int, digest: bytes, offset: int) -> None:
    if not data:
        raise MalformedMessage(f"at byte {offset}: its end is not one")
    stated, expected = _END.unpack(data)
    if stated != count:
        raise MalformedMessage(f"it holds {count} records, its end says {stated}")
    if expected != digest:
        raise MalformedMessage("its bytes are not those that were written: the hash at its end differs")
