"""Where a role hands in what it signed or was given: the ledger's door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finode.ledger.envelopes import Record as Record
from finode.wire.receipts import Receipt


class Filing(Protocol):
    """Takes records into the ledger and tells the federation."""

    async def file(self, record: Record) -> None:
        """Verify a record, keep it, and gossip it if it brought anything new.

        Raises `BadSignature` or `MalformedMessage` for one that is not true, `StorageFull` when it cannot be kept.
        """

    def receipts_of(self, session: bytes) -> Sequence[Receipt]:
        """Return the receipts of a session, the one that most members signed first; none if none has come (yet).

        There is more than one where somebody made one up, or members contradicted each other.
        """
