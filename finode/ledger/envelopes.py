"""Records as they travel and are kept, and back: `Envelope` <-> `Record` -> `Verified`.

`open_envelope` and `verify` are for bytes that came from somewhere. `recall` is for what this ledger kept after it was
verified: it parses, which takes a fiftieth of the time, and checks no signature again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import msgspec

from finode.errors import FinodeError, MalformedMessage
from finode.ledger.records import (
    Verified,
    VerifiedDeployment,
    VerifiedEquivocation,
    VerifiedReceipt,
    VerifiedStatement,
    verify_deployment,
    verify_equivocation,
    verify_receipt,
    verify_statement,
)
from finode.wire import canonical
from finode.wire.message import check
from finode.wire.receipts import (
    Deployment,
    EpochStatement,
    Equivocation,
    Receipt,
    ReceiptId,
    SignedReceipt,
    SignedStatement,
    StatementId,
)
from finode.wire.reconciliation import Envelope, RecordKind
from finode.wire.signed import Signed

T = TypeVar("T")
Record = SignedReceipt | SignedStatement | Equivocation | Signed
"""A record that nobody has checked; a `Signed` is an owner's `Deployment`."""
_CLASSES: Mapping[RecordKind, type[Record]] = MappingProxyType(
    {
        RecordKind.DEPLOYMENT: Signed,
        RecordKind.RECEIPT: SignedReceipt,
        RecordKind.STATEMENT: SignedStatement,
        RecordKind.EQUIVOCATION: Equivocation,
    }
)
LIMITS: Mapping[RecordKind, int] = MappingProxyType(
    {
        RecordKind.DEPLOYMENT: Deployment.limit + 256,
        RecordKind.RECEIPT: SignedReceipt.limit,
        RecordKind.STATEMENT: SignedStatement.limit,
        RecordKind.EQUIVOCATION: Equivocation.limit,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record stands: two versions of one record have the same `kind` and `id`.

    `epoch` and `time_ms` (UTC) are those of a receipt's end; a statement has an epoch alone, the others have none.
    """

    kind: RecordKind
    id: bytes
    epoch: int
    time_ms: int


def envelope(record: Record) -> Envelope:
    """Return a record as it travels."""
    return Envelope(kind=_kind(record), data=canonical.encode(record))


def open_envelope(envelope: Envelope) -> Record:
    """Return the record of an envelope; raise `MalformedMessage`. Nothing of it is checked yet."""
    check(len(envelope.data) <= LIMITS[envelope.kind], f"the {envelope.kind} is too large")
    return canonical.decode(envelope.data, _CLASSES[envelope.kind])


def verify(record: Record) -> Verified:
    """Check a record's signatures; raise `BadSignature` or `MalformedMessage`."""
    match record:
        case SignedReceipt():
            return verify_receipt(record)
        case SignedStatement():
            return verify_statement(record)
        case Equivocation():
            return verify_equivocation(record)
        case Signed():
            return verify_deployment(record)


def recall(kind: RecordKind, id: bytes, data: bytes) -> Verified:
    """Return a record that was verified before it was kept; raise `MalformedMessage` for bytes that are none."""
    match kind:
        case RecordKind.RECEIPT:
            signed = _parse(data, SignedReceipt)
            receipt = _parse(signed.body, Receipt)
            signers = frozenset(one.peer for one in signed.signatures)
            withheld = tuple(peer for peer in receipt.signers() if peer not in signers)
            return VerifiedReceipt(id=ReceiptId(id), receipt=receipt, signed=signed, signers=signers, withheld=withheld)
        case RecordKind.STATEMENT:
            statement = _parse(data, SignedStatement)
            body = _parse(statement.body, EpochStatement)
            return VerifiedStatement(id=StatementId(id), statement=body, signed=statement)
        case RecordKind.DEPLOYMENT:
            owned = _parse(data, Signed)
            return VerifiedDeployment(deployment=_parse(owned.body, Deployment), signed=owned)
        case RecordKind.EQUIVOCATION:
            proof = _parse(data, Equivocation)
            return VerifiedEquivocation(signer=proof.signer, signed=proof)


def place_of(record: Verified) -> Place:
    """Return where a record stands."""
    match record:
        case VerifiedReceipt():
            receipt = record.receipt
            return Place(kind=RecordKind.RECEIPT, id=record.id, epoch=receipt.epoch, time_ms=receipt.ended_ms)
        case VerifiedStatement():
            return Place(kind=RecordKind.STATEMENT, id=record.id, epoch=record.statement.epoch, time_ms=0)
        case VerifiedDeployment():
            return Place(kind=RecordKind.DEPLOYMENT, id=record.deployment.deployment, epoch=0, time_ms=0)
        case VerifiedEquivocation():
            id = canonical.digest("equivocation", record.signer.encode())
            return Place(kind=RecordKind.EQUIVOCATION, id=id, epoch=0, time_ms=0)


def _kind(record: Record) -> RecordKind:
    return next(kind for kind, cls in _CLASSES.items() if isinstance(record, cls))


def _parse(data: bytes, cls: type[T]) -> T:
    # Canonical bytes are msgpack, which msgspec reads in one step. That they are canonical was checked when they came.
    try:
        return msgspec.msgpack.decode(data, type=cls)
    except (msgspec.MsgspecError, ValueError, FinodeError) as error:
        raise MalformedMessage(f"not a valid {cls.__name__}: {error}") from None
