"""What may enter this node's ledger of what is true: records of this federation, of accepted peers, of the past."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from finode.identity import PeerId
from finode.ledger.records import (
    Verified,
    VerifiedDeployment,
    VerifiedEquivocation,
    VerifiedReceipt,
    VerifiedStatement,
    open_body,
)
from finode.wire.receipts import EpochStatement, Receipt

SKEW_MS = 600_000
"""How far ahead of ours the clocks of those may be who ended a session."""


class Objection(StrEnum):
    """Why a record that is true stays out. The last two may be over later on: rosters are edited, time goes by."""

    WRONG_FEDERATION = "wrong-federation"
    NOT_ON_ROSTER = "not-on-roster"
    FROM_THE_FUTURE = "from-the-future"


def objection(record: Verified, *, federation: str, accepts: Callable[[PeerId], bool], now_ms: int) -> Objection | None:
    """Return why a record stays out, None if it may enter. `accepts` is the roster's word on those who sign it."""
    named, members, time_ms = _facts(record)
    if named != federation:
        return Objection.WRONG_FEDERATION
    if not all(accepts(peer) for peer in members):
        return Objection.NOT_ON_ROSTER
    if time_ms > now_ms + SKEW_MS:
        return Objection.FROM_THE_FUTURE
    return None


def _facts(record: Verified) -> tuple[str, tuple[PeerId, ...], int]:
    """Return the federation, who signs, and the UTC time in milliseconds, 0 where a record states none."""
    match record:
        case VerifiedReceipt():
            receipt = record.receipt
            return receipt.federation, receipt.signers(), receipt.ended_ms
        case VerifiedStatement():
            return record.statement.federation, record.statement.signers(), 0
        case VerifiedDeployment():
            return record.deployment.federation, (record.deployment.owner,), record.deployment.signed_ms
        case VerifiedEquivocation():
            cls: type[Receipt] | type[EpochStatement] = EpochStatement if record.signed.of_statements else Receipt
            return open_body(record.signed.first, cls).federation, (record.signer,), 0
