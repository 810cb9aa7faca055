"""Makes records for tests: members with fixed keys, and receipts, statements, deployments and proofs that they sign."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from finode.identity import Identity
from finode.ledger.envelopes import verify
from finode.ledger.records import VerifiedDeployment, VerifiedEquivocation, VerifiedReceipt, VerifiedStatement
from finode.wire.committee import ModelTerm, Reveal, RewardTerms, Scheme, Vote, deployment_id
from finode.wire.receipts import (
    CoSignature,
    Deployment,
    EpochStatement,
    Equivocation,
    ModelUse,
    Order,
    Outcome,
    Receipt,
    SignedReceipt,
    SignedStatement,
    StatementKind,
    Work,
)
from finode.wire.signed import Signed, co_sign, sign

FEDERATION = "test"
OWNER, FIRST, SECOND, DEALER, QUERIER, STRANGER = (Identity.from_seed(bytes([40 + index] * 32)) for index in range(6))
MEMBERS = (FIRST, SECOND, DEALER, QUERIER)
EPOCH_S = 3600
START_MS = 1_800_000_000_000
"""The first session of a test begins then (UTC): far from the ends of an epoch."""
REWARDS = RewardTerms(
    price=1000,
    owners=700,
    parties=200,
    dealer=100,
    scheme=Scheme.DAWID_SKENE,
    epoch_s=EPOCH_S,
    min_queries=50,
    sigma_milli=0,
    credit_limit=1_000_000,
)


def hash_of(text: str, size: int = 32) -> bytes:
    """Return bytes that look random and are the same in every run."""
    return hashlib.sha256(text.encode()).digest()[:size]


def model_use(name: str = "model") -> ModelUse:
    return ModelUse(version=hash_of(name), owner=OWNER.peer_id, deployment=deployment_of(name).deployment)


def deployment_of(name: str = "model", **changes: Any) -> Deployment:
    parties = (FIRST.peer_id, SECOND.peer_id)
    term = ModelTerm(version=hash_of(name), plan_digest=hash_of("plan"), owner=OWNER.peer_id, price=0)
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "deployment": deployment_id(term, parties, DEALER.peer_id, "native", 16),
        "version": term.version,
        "plan_digest": term.plan_digest,
        "owner": OWNER.peer_id,
        "parties": parties,
        "dealer": DEALER.peer_id,
        "engine": "native",
        "fractional_bits": 16,
        "signed_ms": START_MS,
    }
    return Deployment(**fields | changes)


def receipt_of(number: int = 0, **changes: Any) -> Receipt:
    """Return the receipt of the session of a number: each begins a second after the one before."""
    parties = (FIRST.peer_id, SECOND.peer_id)
    started_ms = START_MS + 1000 * number
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "session": hash_of(f"session {number}", 16),
        "committee": hash_of("committee"),
        "sealed": hash_of("sealed"),
        "querier": QUERIER.peer_id,
        "parties": parties,
        "dealer": DEALER.peer_id,
        "models": (model_use(),),
        "service": "digits",
        "engine": "native",
        "vote": Vote.SOFT,
        "reveal": Reveal.LABEL,
        "classes": 10,
        "count": 2,
        "serial": hash_of(f"serial {number}", 16),
        "rewards": REWARDS,
        "started_ms": started_ms,
        "ended_ms": started_ms + 250,
        "outcome": Outcome.ANSWERED,
        "verdict": None,
        "work": tuple(
            Work(peer=peer, rounds=20, bytes_sent=6400, bundle_bytes=3200, milliseconds=80)
            for peer in (*parties, DEALER.peer_id)
        ),
        "transcript": hash_of(f"transcript {number}"),
    }
    return Receipt(**fields | changes)


def order_of(receipt: Receipt, **changes: Any) -> Signed:
    fields: dict[str, Any] = {
        "session": receipt.session,
        "committee": receipt.committee,
        "serial": receipt.serial,
        "count": receipt.count,
        "created_ms": receipt.started_ms - 10,
        "agreed": receipt.agreed,
    }
    return sign(QUERIER, Order(**fields | changes))


def co_signed(body: bytes, cls: Any, signers: Iterable[Identity]) -> tuple[CoSignature, ...]:
    signatures = (CoSignature(peer=one.peer_id, signature=co_sign(one, body, cls)) for one in signers)
    return tuple(sorted(signatures, key=lambda one: one.peer))


def signed_receipt(
    receipt: Receipt, signers: Iterable[Identity] = MEMBERS, *, order: Signed | None = None
) -> SignedReceipt:
    body = receipt.encode()
    return SignedReceipt(body=body, order=order or order_of(receipt), signatures=co_signed(body, Receipt, signers))


def verified_receipt(number: int = 0, signers: Iterable[Identity] = MEMBERS, **changes: Any) -> VerifiedReceipt:
    verified = verify(signed_receipt(receipt_of(number, **changes), signers))
    assert isinstance(verified, VerifiedReceipt)
    return verified


def statement_of(numbers: Sequence[int] = (0, 1), **changes: Any) -> EpochStatement:
    """Return the statement of the sessions of these numbers."""
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "kind": StatementKind.AGREEMENT,
        "epoch": START_MS // (1000 * EPOCH_S),
        "models": (model_use("model"), model_use("other")),
        "parties": (FIRST.peer_id, SECOND.peer_id),
        "dealer": DEALER.peer_id,
        "vote": Vote.SOFT,
        "classes": 2,
        "sessions": tuple(sorted(hash_of(f"session {number}", 16) for number in numbers)),
        "samples": 64,
        "sigma_milli": 0,
        "joint": (30, 4, 3, 27),
        "counts": (34, 30, 33, 31),
        "agreement": (2_000_000, 2_194_304),
        "entropy": (2_097_152, 2_097_152),
    }
    return EpochStatement(**fields | changes)


def signed_statement(statement: EpochStatement, signers: Iterable[Identity] = MEMBERS[:3]) -> SignedStatement:
    body = statement.encode()
    return SignedStatement(body=body, signatures=co_signed(body, EpochStatement, signers))


def verified_statement(numbers: Sequence[int] = (0, 1), **changes: Any) -> VerifiedStatement:
    verified = verify(signed_statement(statement_of(numbers, **changes)))
    assert isinstance(verified, VerifiedStatement)
    return verified


def verified_deployment(name: str = "model", **changes: Any) -> VerifiedDeployment:
    verified = verify(sign(OWNER, deployment_of(name, **changes)))
    assert isinstance(verified, VerifiedDeployment)
    return verified


def proof_of(signer: Identity, one: bytes, other: bytes, cls: Any) -> Equivocation:
    first, second = sorted((one, other))
    return Equivocation(
        signer=signer.peer_id,
        of_statements=cls is EpochStatement,
        first=first,
        first_signature=co_sign(signer, first, cls),
        second=second,
        second_signature=co_sign(signer, second, cls),
    )


def verified_proof(signer: Identity = SECOND, number: int = 0) -> VerifiedEquivocation:
    bodies = receipt_of(number).encode(), receipt_of(number, count=3).encode()
    verified = verify(proof_of(signer, *bodies, Receipt))
    assert isinstance(verified, VerifiedEquivocation)
    return verified
