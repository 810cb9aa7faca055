"""From what anybody may send to what is true: trust carried by types.

A `SignedReceipt` is bytes that came from somewhere. `verify_receipt` gives a `VerifiedReceipt`: its body is canonical,
its order is the querier's, every signature in it is a signer's and over this body. Only verified records reach the
ledger. A signature that lacks is no error: `withheld` names who did not give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from finode.errors import BadSignature
from finode.identity import PeerId
from finode.wire import canonical
from finode.wire.message import Message, check
from finode.wire.receipts import (
    CoSignature,
    Deployment,
    EpochStatement,
    Order,
    Receipt,
    ReceiptId,
    SignedReceipt,
    SignedStatement,
    StatementId,
)
from finode.wire.signed import Signed, check_co_signature, open_signed

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A receipt whose order and signatures were checked. Made by `verify_receipt` alone."""

    id: ReceiptId
    receipt: Receipt
    signed: SignedReceipt
    signers: frozenset[PeerId]
    withheld: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedStatement:
    """An epoch statement that all of its parties and its dealer signed. Made by `verify_statement` alone."""

    id: StatementId
    statement: EpochStatement
    signed: SignedStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDeployment:
    """A deployment that its owner signed. Made by `verify_deployment` alone."""

    deployment: Deployment
    signed: Signed


def verify_receipt(signed: SignedReceipt) -> VerifiedReceipt:
    """Check a receipt, its order and its signatures.

    Raises `BadSignature` or `MalformedMessage`. At least one party must have signed.
    """
    receipt = open_body(signed.body, Receipt)
    order = open_signed(signed.order, Order, signer=receipt.querier)
    stated = (receipt.session, receipt.committee, receipt.serial, receipt.count)
    if (order.session, order.committee, order.serial, order.count) != stated:
        raise BadSignature("the receipt's order is of another session")
    signers = _check_signatures(signed.body, Receipt, signed.signatures, receipt.signers())
    if not signers & set(receipt.parties):
        raise BadSignature("no party signed the receipt")
    withheld = tuple(peer for peer in receipt.signers() if peer not in signers)
    return VerifiedReceipt(id=receipt.id, receipt=receipt, signed=signed, signers=signers, withheld=withheld)


def verify_statement(signed: SignedStatement) -> VerifiedStatement:
    """Check an epoch statement: all parties and the dealer must have signed it. Raises as `verify_receipt`."""
    statement = open_body(signed.body, EpochStatement)
    signers = _check_signatures(signed.body, EpochStatement, signed.signatures, statement.signers())
    if lacking := [peer for peer in statement.signers() if peer not in signers]:
        raise BadSignature(f"the statement lacks the signature of {lacking[0]}")
    return VerifiedStatement(id=statement.id, statement=statement, signed=signed)


def verify_deployment(signed: Signed) -> VerifiedDeployment:
    """Check that an owner signed a deployment. Raises as `verify_receipt`."""
    deployment = open_signed(signed, Deployment)
    if signed.signer != deployment.owner:
        raise BadSignature(f"signed by {signed.signer} instead of the owner {deployment.owner}")
    return VerifiedDeployment(deployment=deployment, signed=signed)


def open_body(body: bytes, cls: type[M]) -> M:
    """Return the canonical body of a co-signed record; raise `MalformedMessage`."""
    check(len(body) <= cls.limit, f"{cls.__name__} of {len(body)} bytes, its limit is {cls.limit}")
    return canonical.decode(body, cls)


def _check_signatures(
    body: bytes, cls: type[Message], signatures: Sequence[CoSignature], allowed: Sequence[PeerId]
) -> frozenset[PeerId]:
    for one in signatures:
        if one.peer not in allowed:
            raise BadSignature(f"{one.peer} signed and is no member")
        check_co_signature(body, cls, one.peer, one.signature)
    return frozenset(one.peer for one in signatures)
