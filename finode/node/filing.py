"""Where a role hands in what it signed or was given: the ledger's door."""

from __future__ import annotations

from typing import Protocol

from finode.ledger.envelopes import Record as Record
from finode.wire.receipts import Receipt


class Filing(Protocol):
    """Takes records into the ledger and tells the federation."""

    async def file(self, record: Record) -> None:
        """Verify a record, keep it, and gossip it if it brought anything new.

        Raises `BadSignature` or `MalformedMessage` for one that is not true, `StorageFull` when it cannot be kept.
        """

    def receipt_of(self, session: bytes) -> Receipt | None:
        """Return the receipt of a session, None if none has come (yet)."""
