"""The epoch statements of an export of the ledger, for those who want to see the sums and not only what they pay."""

from __future__ import annotations

import io

from finode.ledger.envelopes import open_envelope, verify
from finode.ledger.export import read_entries
from finode.ledger.records import VerifiedStatement
from finode.wire.receipts import EpochStatement
from finode.wire.reconciliation import RecordKind


def read_statements(export: bytes) -> tuple[EpochStatement, ...]:
    """Return the statements of what `Client.export_receipts` gave, each with all its signatures checked.

    Raises `MalformedMessage` or `BadSignature` where the export is damaged, or a statement in it is not true.
    """
    found: list[EpochStatement] = []
    for entry in read_entries(io.BytesIO(export)):
        if entry.envelope.kind is RecordKind.STATEMENT:
            record = verify(open_envelope(entry.envelope))
            if isinstance(record, VerifiedStatement):
                found.append(record.statement)
    return tuple(found)
