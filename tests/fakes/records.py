"""Ledger records as members would sign them, with fixed keys: two parties, a dealer, a querier, owners."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from finode.identity import Identity, PeerId
from finode.wire import canonical
from finode.wire.committee import ModelTerm, Reveal, RewardTerms, Scheme, Vote, deployment_id
from finode.wire.message import Message
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
from finode.wire.shares import Fault, Verdict
from finode.wire.signed import Signed, co_sign, sign


def key(number: int) -> Identity:
    """Return the identity of a fixed seed."""
    return Identity.from_seed(bytes([number]) * 32)


PARTY_KEYS = (key(1), key(2))
DEALER_KEY = key(3)
QUERIER_KEY = key(4)
OWNER_KEYS = (key(5), key(6), key(7))
ORGANIZATIONS: dict[PeerId, str] = {
    PARTY_KEYS[0].peer_id: "Clinic East",
    PARTY_KEYS[1].peer_id: "Clinic West",
    DEALER_KEY.peer_id: "Dealer Ltd",
    QUERIER_KEY.peer_id: "Clinic South",
    OWNER_KEYS[0].peer_id: "Clinic North",
    OWNER_KEYS[1].peer_id: "Clinic East",
}
"""The third owner's is not known."""
EPOCH_S = 3600
BEGAN_MS = 1_700_000_000_000


def terms(scheme: Scheme = Scheme.DAWID_SKENE, price: int = 1000) -> RewardTerms:
    return RewardTerms(
        price=price,
        owners=700,
        parties=200,
        dealer=100,
        scheme=scheme,
        epoch_s=EPOCH_S,
        min_queries=50,
        sigma_milli=0,
        credit_limit=10**9,
    )


def uses(count: int = 2) -> tuple[ModelUse, ...]:
    """Return the models of the first `count` owners."""
    models = (
        ModelTerm(
            version=_hash("version", index),
            plan_digest=_hash("plan", index),
            owner=OWNER_KEYS[index].peer_id,
            price=0,
        )
        for index in range(count)
    )
    parties = tuple(party.peer_id for party in PARTY_KEYS)
    return tuple(
        ModelUse(
            version=model.version,
            owner=model.owner,
            deployment=deployment_id(model, parties, DEALER_KEY.peer_id, "native", 16),
        )
        for model in models
    )


def receipt(
    number: int = 0,
    *,
    models: int = 2,
    count: int = 32,
    rewards: RewardTerms | None = None,
    culprit: PeerId | None = None,
    epochs_later: int = 0,
) -> Receipt:
    """Return the body of a receipt; each `number` is another session. With a `culprit` it was aborted."""
    work = tuple(
        Work(peer=party.peer_id, rounds=17, bytes_sent=48_000, bundle_bytes=210_000, milliseconds=180)
        for party in PARTY_KEYS
    )
    dealt = Work(peer=DEALER_KEY.peer_id, rounds=0, bytes_sent=0, bundle_bytes=420_000, milliseconds=95)
    ended_ms = BEGAN_MS + 1000 * (number + EPOCH_S * epochs_later)
    return Receipt(
        federation="finode",
        session=_session(number),
        committee=_hash("committee", 0),
        sealed=_hash("sealed", 0),
        querier=QUERIER_KEY.peer_id,
        parties=tuple(party.peer_id for party in PARTY_KEYS),
        dealer=DEALER_KEY.peer_id,
        models=uses(models),
        service="digits",
        engine="native",
        vote=Vote.SOFT,
        reveal=Reveal.PROBABILITIES,
        classes=3,
        count=count,
        serial=_hash("serial", number)[:16],
        rewards=rewards or terms(),
        started_ms=ended_ms - 250,
        ended_ms=ended_ms,
        outcome=Outcome.ANSWERED if culprit is None else Outcome.ABORTED,
        verdict=None if culprit is None else Verdict(culprit=culprit, fault=Fault.TIMEOUT, round=9, detail="silent"),
        work=(*work, dealt),
        transcript=_hash("transcript", number),
    )


def signed_receipt(body: Receipt, signers: Sequence[Identity] | None = None) -> SignedReceipt:
    """Return a receipt with its order, signed by all members or by those named."""
    order = Order(
        session=body.session,
        committee=body.committee,
        serial=body.serial,
        count=body.count,
        created_ms=body.started_ms,
        agreed=body.agreed,
    )
    by = (*PARTY_KEYS, DEALER_KEY, QUERIER_KEY) if signers is None else signers
    data = body.encode()
    return SignedReceipt(body=data, order=sign(QUERIER_KEY, order), signatures=_signatures(data, Receipt, by))


def deployment(index: int) -> Signed:
    """Return what the owner of that index signed once."""
    use = uses(len(OWNER_KEYS))[index]
    body = Deployment(
        federation="finode",
        deployment=use.deployment,
        version=use.version,
        plan_digest=_hash("plan", index),
        owner=use.owner,
        parties=tuple(party.peer_id for party in PARTY_KEYS),
        dealer=DEALER_KEY.peer_id,
        engine="native",
        fractional_bits=16,
        signed_ms=BEGAN_MS,
    )
    return sign(OWNER_KEYS[index], body)


def statement(sessions: Sequence[bytes], *, epoch: int, models: int = 2, samples: int = 64) -> SignedStatement:
    """Return the sums of some sessions, in which the first model agrees with the vote more often than the others."""
    others = samples // (models + 1)
    body = EpochStatement(
        federation="finode",
        kind=StatementKind.AGREEMENT,
        epoch=epoch,
        models=uses(models),
        parties=tuple(party.peer_id for party in PARTY_KEYS),
        dealer=DEALER_KEY.peer_id,
        vote=Vote.SOFT,
        classes=3,
        sessions=tuple(sorted(sessions)),
        samples=samples,
        sigma_milli=0,
        joint=(samples // 2, 4, 4, 4, samples // 4, 0, 0, 0, samples - samples // 2 - samples // 4 - 12)
        * (models * (models - 1) // 2),
        counts=(samples // 2, samples // 4, samples - samples // 2 - samples // 4) * models,
        agreement=((samples - others * (models - 1)) << 16, *([others << 16] * (models - 1))),
        entropy=((samples - others * (models - 1)) << 16, *([others << 16] * (models - 1))),
    )
    data = body.encode()
    return SignedStatement(body=data, signatures=_signatures(data, EpochStatement, (*PARTY_KEYS, DEALER_KEY)))


def proof(first: Receipt, second: Receipt, signer: Identity = PARTY_KEYS[1]) -> Equivocation:
    """Return the proof that one key signed two receipts of one session."""
    low, high = sorted((first.encode(), second.encode()))
    return Equivocation(
        signer=signer.peer_id,
        of_statements=False,
        first=low,
        first_signature=co_sign(signer, low, Receipt),
        second=high,
        second_signature=co_sign(signer, high, Receipt),
    )


def _signatures(data: bytes, cls: type[Message], by: Sequence[Identity]) -> tuple[CoSignature, ...]:
    ordered = sorted({one.peer_id: one for one in by}.items())
    return tuple(CoSignature(peer=peer, signature=co_sign(one, data, cls)) for peer, one in ordered)


def _session(number: int) -> bytes:
    return _hash("session", number)[:16]


def _hash(name: str, number: int) -> bytes:
    return hashlib.sha256(canonical.encode([name, number])).digest()
