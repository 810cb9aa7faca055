"""From what anybody may send to what is true: trust carried by types.

A `SignedReceipt` is bytes that came from somewhere. `verify_receipt` gives a `VerifiedReceipt`: its body is canonical,
its order is the querier's, every signature in it is a signer's and over this body. Only verified records reach the
ledger. A signature that lacks is no error: `withheld` names who did not give it.

An `Equivocation` is verified on its own: its two bodies and its signer's signatures are all that it takes, so it
convinces a node that has neither of the two records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from finode.errors import BadSignature
from finode.identity import PeerId
from finode.wire import canonical
from finode.wire.committee import ModelTerm, deployment_id
from finode.wire.message import Message, check
from finode.wire.receipts import (
    CoSignature,
    Deployment,
    EpochStatement,
    Equivocation,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEquivocation:
    """A proof that `signer` signed two bodies that contradict each other. Made by `verify_equivocation` alone."""

    signer: PeerId
    signed: Equivocation


Verified = VerifiedReceipt | VerifiedStatement | VerifiedDeployment | VerifiedEquivocation
"""What the ledger keeps. `signed` is the record as it travels."""


def verify_receipt(signed: SignedReceipt) -> VerifiedReceipt:
    """Check a receipt, its order and its signatures.

    Raises `BadSignature` or `MalformedMessage`. At least one party must have signed.
    """
    receipt = open_body(signed.body, Receipt)
    order = open_signed(signed.order, Order, signer=receipt.querier)
    stated = (receipt.session, receipt.committee, receipt.serial, receipt.count)
    if (order.session, order.committee, order.serial, order.count) != stated:
        raise BadSignature("the receipt's order is of another session")
    if order.agreed != receipt.agreed:
        raise BadSignature("the receipt's order is of other members, other models or another price")
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
    """Check that an owner signed a deployment, and that its id is that of what it says. Raises as `verify_receipt`."""
    deployment = open_signed(signed, Deployment)
    if signed.signer != deployment.owner:
        raise BadSignature(f"signed by {signed.signer} instead of the owner {deployment.owner}")
    model = ModelTerm(version=deployment.version, plan_digest=deployment.plan_digest, owner=deployment.owner, price=0)
    stated = deployment_id(model, deployment.parties, deployment.dealer, deployment.engine, deployment.fractional_bits)
    check(deployment.deployment == stated, "the deployment's id is not that of its model, parties and dealer")
    return VerifiedDeployment(deployment=deployment, signed=signed)


def verify_equivocation(signed: Equivocation) -> VerifiedEquivocation:
    """Check that the two bodies contradict each other and that the signer, a member of both, signed both. Raises as
    `verify_receipt`."""
    cls: type[Receipt] | type[EpochStatement] = EpochStatement if signed.of_statements else Receipt
    first, second = open_body(signed.first, cls), open_body(signed.second, cls)
    check(contradict(first, second), "the two bodies do not contradict each other")
    check(signed.signer in first.signers() and signed.signer in second.signers(), "the signer is no member of both")
    check_co_signature(signed.first, cls, signed.signer, signed.first_signature)
    check_co_signature(signed.second, cls, signed.signer, signed.second_signature)
    return VerifiedEquivocation(signer=signed.signer, signed=signed)


def contradict(first: Receipt | EpochStatement, second: Receipt | EpochStatement) -> bool:
    """Return whether nobody may sign both: two receipts of one session, or two statements of a kind that share one.

    Sessions are told apart within one federation only: whoever opens them in two could give two the same id.
    """
    if first == second or first.federation != second.federation:
        return False
    if isinstance(first, Receipt) and isinstance(second, Receipt):
        return first.session == second.session
    if isinstance(first, EpochStatement) and isinstance(second, EpochStatement):
        return first.kind is second.kind and not set(first.sessions).isdisjoint(second.sessions)
    return False


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
