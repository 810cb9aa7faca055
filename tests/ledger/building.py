"""Receipts and statements for tests of what follows from them, with real peer ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from finode.identity import Identity, PeerId
from finode.ledger.records import VerifiedReceipt, VerifiedStatement
from finode.wire.committee import Reveal, RewardTerms, Scheme, Vote
from finode.wire.receipts import (
    CoSignature,
    EpochStatement,
    ModelUse,
    Order,
    Outcome,
    Receipt,
    SignedReceipt,
    SignedStatement,
    StatementKind,
    Work,
)
from finode.wire.shares import Fault, Verdict
from finode.wire.signed import co_sign, sign

NAMES = ("querier", "party-1", "party-2", "party-3", "dealer", "owner-1", "owner-2", "owner-3", "other")
IDENTITIES = {name: Identity.from_seed(hashlib.sha256(name.encode()).digest()) for name in NAMES}
PEERS: dict[str, PeerId] = {name: one.peer_id for name, one in IDENTITIES.items()}
QUERIER, DEALER, OTHER = PEERS["querier"], PEERS["dealer"], PEERS["other"]
PARTIES = (PEERS["party-1"], PEERS["party-2"], PEERS["party-3"])
OWNERS = (PEERS["owner-1"], PEERS["owner-2"], PEERS["owner-3"])
ALL_SIGN = frozenset((QUERIER, DEALER, *PARTIES))
EPOCH_S = 100


def digest(name: str, size: int = 32) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:size]


def models(count: int = 3) -> tuple[ModelUse, ...]:
    return tuple(
        ModelUse(version=digest(f"model-{index}"), owner=OWNERS[index % 3], deployment=digest(f"deployment-{index}"))
        for index in range(count)
    )


def rewards(scheme: Scheme = Scheme.EQUAL, price: int = 1000) -> RewardTerms:
    return RewardTerms(
        price=price,
        owners=700,
        parties=200,
        dealer=100,
        scheme=scheme,
        epoch_s=EPOCH_S,
        min_queries=1,
        sigma_milli=0,
        credit_limit=10**9,
    )


def receipt(
    name: str,
    *,
    terms: RewardTerms | None = None,
    count: int = 3,
    epoch: int = 5,
    rounds: Sequence[int] = (10, 10, 10),
    culprit: str | None = None,
    used: tuple[ModelUse, ...] | None = None,
    parties: tuple[PeerId, ...] = PARTIES,
    querier: PeerId = QUERIER,
    engine: str = "native",
    serial: str = "",
    classes: int = 2,
) -> Receipt:
    """Return a receipt of session `name`, aborted if there is a `culprit` ("" for nobody known)."""
    ended_ms = epoch * EPOCH_S * 1000 + 50
    work = [
        Work(peer=peer, rounds=done, bytes_sent=100, bundle_bytes=50, milliseconds=7)
        for peer, done in zip((*parties, DEALER), (*rounds, 0), strict=True)
    ]
    return Receipt(
        federation="test",
        session=digest(name, 16),
        committee=digest(f"{terms}{parties}"),
        sealed=digest("sealed"),
        querier=querier,
        parties=parties,
        dealer=DEALER,
        models=models() if used is None else used,
        service="digits",
        engine=engine,
        vote=Vote.SOFT,
        reveal=Reveal.LABEL,
        classes=classes,
        count=count,
        serial=digest(name + serial, 16),
        rewards=rewards() if terms is None else terms,
        started_ms=ended_ms - 20,
        ended_ms=ended_ms,
        outcome=Outcome.ANSWERED if culprit is None else Outcome.ABORTED,
        verdict=None if culprit is None else Verdict(culprit=culprit, round=1, fault=Fault.TIMEOUT),
        work=tuple(work),
        transcript=digest("transcript"),
    )


def signed_receipt(body: Receipt, signers: frozenset[PeerId] = ALL_SIGN) -> SignedReceipt:
    by_peer = {one.peer_id: one for one in IDENTITIES.values()}
    order = Order(
        session=body.session,
        committee=body.committee,
        serial=body.serial,
        count=body.count,
        created_ms=body.started_ms,
        agreed=body.agreed,
    )
    encoded = body.encode()
    return SignedReceipt(
        body=encoded,
        order=sign(by_peer[body.querier], order),
        signatures=tuple(
            CoSignature(peer=peer, signature=co_sign(by_peer[peer], encoded, Receipt)) for peer in sorted(signers)
        ),
    )


def verified(body: Receipt, signers: frozenset[PeerId] = ALL_SIGN) -> VerifiedReceipt:
    """Return a receipt as `verify_receipt` would, without the cost of signatures: `test_accounts` uses it once."""
    return VerifiedReceipt(
        id=body.id,
        receipt=body,
        signed=SignedReceipt(body=b"", order=sign(IDENTITIES["other"], ORDER), signatures=()),
        signers=signers,
        withheld=tuple(peer for peer in body.signers() if peer not in signers),
    )


ORDER = Order(session=bytes(16), committee=bytes(32), serial=bytes(16), count=1, created_ms=1, agreed=bytes(32))


def statement(
    sessions: Sequence[str],
    *,
    agreement: Sequence[int] = (1 << 16, 2 << 16, 3 << 16),
    correct: Sequence[int] = (),
    samples: int = 3,
    epoch: int = 5,
    parties: tuple[PeerId, ...] = PARTIES,
    used: tuple[ModelUse, ...] | None = None,
) -> EpochStatement:
    """Return sums over sessions: agreement (and equal entropy), or counts of right answers if those are given."""
    used = models() if used is None else used
    k = len(used)
    is_agreement = not correct
    return EpochStatement(
        federation="test",
        kind=StatementKind.AGREEMENT if is_agreement else StatementKind.LABELS,
        epoch=epoch,
        models=used,
        parties=parties,
        dealer=DEALER,
        vote=Vote.SOFT,
        classes=2,
        sessions=tuple(sorted(digest(name, 16) for name in sessions)),
        samples=samples,
        sigma_milli=0,
        joint=(samples, 0, 0, 0) * (k * (k - 1) // 2) if is_agreement else (),
        counts=(samples, 0) * k if is_agreement else (),
        agreement=tuple(agreement) if is_agreement else (),
        entropy=(samples << 16,) * k if is_agreement else (),
        correct=tuple(correct),
    )


def verified_statement(body: EpochStatement) -> VerifiedStatement:
    return VerifiedStatement(id=body.id, statement=body, signed=SignedStatement(body=b"", signatures=()))
