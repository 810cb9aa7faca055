"""The file format of exports: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from io import BytesIO

import pytest

from finode.errors import MalformedMessage
from finode.ledger.envelopes import Record, envelope, open_envelope
from finode.ledger.export import MAGIC, Entry, read_entries, write_entries
from finode.wire.receipts import SignedReceipt
from finode.wire.reconciliation import Envelope, RecordKind
from tests.fakes.records import deployment, proof, receipt, signed_receipt, statement

BODY = receipt()
RECORDS: tuple[Record, ...] = (
    deployment(0),
    signed_receipt(BODY),
    statement([BODY.session], epoch=BODY.epoch),
    proof(BODY, receipt(count=33)),
)


def written(records: Sequence[Record] = RECORDS) -> bytes:
    return b"".join(write_entries(map(envelope, records)))


def read(data: bytes) -> list[Entry]:
    return list(read_entries(BytesIO(data)))


def test_what_was_written_is_read() -> None:
    entries = read(written())

    assert [entry.envelope.kind for entry in entries] == [
        RecordKind.DEPLOYMENT,
        RecordKind.RECEIPT,
        RecordKind.STATEMENT,
        RecordKind.EQUIVOCATION,
    ]
    assert tuple(open_envelope(entry.envelope) for entry in entries) == RECORDS
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    for entry in entries:
        assert written()[entry.offset + 5 :].startswith(entry.envelope.data)


def test_the_layout_is_the_documented_one() -> None:
    record = signed_receipt(BODY)
    data = record.encode()
    expected = b"finode ledger 1\n" + struct.pack(">BI", 98, len(data)) + data
    expected += struct.pack(">BI", 0, 36) + struct.pack(">I", 1) + hashlib.sha256(expected).digest()

    assert written([record]) == expected


def test_an_empty_ledger_is_an_export_too() -> None:
    assert read(written([])) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "first line"),
        (b"finode ledger 2\n", "first line"),
        (MAGIC, "cut off"),
        (written()[:-1], "cut off"),
        (written([])[:-40], "cut off"),
        (written()[:200], "cut off"),
        (written() + b"x", "bytes after its end"),
        (MAGIC + struct.pack(">BI", 7, 0), "no record is of kind 7"),
        (MAGIC + struct.pack(">BI", 98, SignedReceipt.limit + 1), "a receipt of 81921 bytes, it has 1 to 81920"),
        (MAGIC + struct.pack(">BI", 98, 0), "a receipt of 0 bytes"),
        (MAGIC + struct.pack(">BI", 0, 35) + bytes(35), "its end is not one"),
        (written([])[:-32] + bytes(32), "the hash at its end differs"),
        (MAGIC + written()[len(written()) - 41 :], "holds 0 records, its end says 4"),
    ],
    ids=range(13),
)
def test_what_is_no_export_says_why(data: bytes, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        read(data)


def test_a_length_over_the_limit_is_not_read() -> None:
    class Watched(BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.most = max(self.most, size or 0)
            return super().read(size)

    file = Watched(MAGIC + struct.pack(">BI", 98, 0xFFFFFFFF) + bytes(64))

    with pytest.raises(MalformedMessage):
        list(read_entries(file))

    assert file.most == len(MAGIC)


def test_records_come_one_by_one() -> None:
    entries = read_entries(BytesIO(written()[:-60]))

    assert [next(entries).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(MalformedMessage, match="cut off"):
        next(entries)


def test_bytes_that_are_no_record_are_said_to_be_none() -> None:
    (entry,) = read(written([signed_receipt(BODY)]))

    with pytest.raises(MalformedMessage, match="SignedStatement"):
        open_envelope(Envelope(kind=RecordKind.STATEMENT, data=entry.envelope.data))
