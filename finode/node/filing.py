"""Where a role hands in what it signed or was given: the ledger's door."""

from __future__ import annotations

from typing import Protocol

from structlog.typing import FilteringBoundLogger

from finode.ledger.records import verify_deployment, verify_receipt, verify_statement
from finode.wire.receipts import Equivocation, Receipt, SignedReceipt, SignedStatement
from finode.wire.signed import Signed

Record = SignedReceipt | SignedStatement | Equivocation | Signed
"""What the ledger takes; a `Signed` is an owner's `Deployment`."""


class Filing(Protocol):
    """Takes records into the ledger and tells the federation."""

    async def file(self, record: Record) -> None:
        """Verify a record, keep it, and gossip it if it brought anything new.

        Raises `BadSignature` or `MalformedMessage` for one that is not true, `StorageFull` when it cannot be kept.
        """

    def receipt_of(self, session: bytes) -> Receipt | None:
        """Return the receipt of a session, None if none has come (yet)."""


class LogFiling:
    """Files into the log: what a node does that keeps no ledger. Records are verified all the same."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log

    async def file(self, record: Record) -> None:
        """See `Filing.file`."""
        match record:
            case SignedReceipt():
                verified = verify_receipt(record)
                self._log.info("receipt", id=verified.id.hex(), withheld=list(verified.withheld))
            case SignedStatement():
                self._log.info("epoch statement", id=verify_statement(record).id.hex())
            case Signed():
                self._log.info("deployment", id=verify_deployment(record).deployment.deployment.hex())
            case Equivocation():
                self._log.warning("contradiction", signer=record.signer)

    def receipt_of(self, session: bytes) -> Receipt | None:
        """See `Filing.receipt_of`."""
        return None
