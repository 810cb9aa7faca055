"""One example of every registered message, and the tools to spoil its bytes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgpack

import finode.wire
from finode.config import Role
from finode.identity import Identity
from finode.wire import (
    committee,
    contribution,
    control,
    cosigning,
    directory,
    preprocessing,
    receipts,
    reconciliation,
    session,
    shares,
)
from finode.wire.message import Message
from finode.wire.signed import sign

OWNER, FIRST, SECOND, DEALER, QUERIER = (Identity.from_seed(bytes([index] * 32)) for index in range(5))
SPEC = directory.ServiceSpec(
    name="chest-xray",
    input=directory.InputSpec(
        shape=(3, 8, 8), color=directory.Color.RGB, mean=(0.5, 0.5, 0.5), deviation=(0.2, 0.2, 0.2)
    ),
    classes=("healthy", "ill"),
)
OFFER = directory.ModelOffer(version=bytes(32), plan_digest=bytes([1] * 32), service=SPEC.name, price=7)
RECORD = directory.NodeRecord(
    peer=OWNER.peer_id,
    federation="test",
    organization="acme",
    roles=(Role.OWNER, Role.PARTY),
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    versions=(1,),
    services=(SPEC,),
    models=(OFFER,),
    engines=("native",),
    capacity=4,
    party_price=1,
    dealer_price=2,
    deployments=(
        directory.DeploymentRef(model=bytes(32), parties=(FIRST.peer_id, SECOND.peer_id), dealer=DEALER.peer_id),
    ),
    sequence=3,
    issued_ms=1000,
    expires_ms=2000,
)
REWARDS = committee.RewardTerms(
    price=1000,
    owners=700,
    parties=200,
    dealer=100,
    scheme=committee.Scheme.DAWID_SKENE,
    epoch_s=3600,
    min_queries=50,
    sigma_milli=0,
    credit_limit=1_000_000,
)
TERMS = committee.Terms(
    federation="test",
    service=SPEC.name,
    service_digest=SPEC.digest(),
    classes=2,
    input_shape=(3, 8, 8),
    models=(committee.ModelTerm(version=bytes(32), plan_digest=bytes(32), owner=OWNER.peer_id, price=7),),
    engine="native",
    fractional_bits=16,
    profile="latency",
    parties=(FIRST.peer_id, SECOND.peer_id),
    dealer=DEALER.peer_id,
    querier=QUERIER.peer_id,
    vote=committee.Vote.SOFT,
    reveal=committee.Reveal.TOP1,
    max_batch=32,
    quota=128,
    party_price=1,
    dealer_price=2,
    rewards=REWARDS,
    session_timeout_s=60,
    created_ms=1000,
    expires_ms=2000,
    nonce=bytes(16),
)
WEIGHTED = replace(TERMS, vote=committee.Vote.WEIGHTED, vote_weights=(3,))
AUGMENTED = replace(TERMS, vote=committee.Vote.AUGMENTED, copies=3, gamma=-256)
ACCEPT = committee.Accept(committee=TERMS.committee_id(), peer=FIRST.peer_id, holds=(bytes(32),))
ID16, ID32 = bytes(range(16)), bytes(range(32))
VERDICT = shares.Verdict(culprit=FIRST.peer_id, round=3, fault=shares.Fault.TIMEOUT, detail="no frame")
USE = receipts.ModelUse(version=ID32, owner=OWNER.peer_id, deployment=ID32)
ORDER = receipts.Order(session=ID16, committee=TERMS.committee_id(), serial=ID16, count=2, created_ms=1500, agreed=ID32)
RECEIPT = receipts.Receipt(
    federation="test",
    session=ID16,
    committee=TERMS.committee_id(),
    sealed=ID32,
    querier=QUERIER.peer_id,
    parties=TERMS.parties,
    dealer=DEALER.peer_id,
    models=(USE,),
    service=SPEC.name,
    engine="native",
    vote=committee.Vote.SOFT,
    reveal=committee.Reveal.TOP1,
    classes=2,
    count=2,
    serial=ID16,
    rewards=REWARDS,
    started_ms=1500,
    ended_ms=1600,
    outcome=receipts.Outcome.ANSWERED,
    verdict=None,
    work=tuple(
        receipts.Work(peer=peer, rounds=20, bytes_sent=64, bundle_bytes=32, milliseconds=80)
        for peer in (*TERMS.parties, DEALER.peer_id)
    ),
    transcript=ID32,
)
STATEMENT = receipts.EpochStatement(
    federation="test",
    kind=receipts.StatementKind.LABELS,
    epoch=3,
    models=(USE,),
    parties=TERMS.parties,
    dealer=DEALER.peer_id,
    vote=committee.Vote.SOFT,
    classes=2,
    sessions=(ID16,),
    samples=64,
    sigma_milli=0,
    correct=(60,),
)
DEPLOYMENT = receipts.Deployment(
    federation="test",
    deployment=ID32,
    version=ID32,
    plan_digest=ID32,
    owner=OWNER.peer_id,
    parties=TERMS.parties,
    dealer=DEALER.peer_id,
    engine="native",
    fractional_bits=16,
    signed_ms=1500,
)
SET = contribution.DeploymentSet(
    federation="test",
    kind=receipts.StatementKind.AGREEMENT,
    models=(USE,),
    parties=TERMS.parties,
    dealer=DEALER.peer_id,
    vote=committee.Vote.SOFT,
    classes=2,
    epoch_s=3600,
    min_queries=50,
    sigma_milli=0,
)
OPENING = contribution.Opening(of=SET, epoch=3, sessions=(ID16,), samples=64)
KEY_RANGE = reconciliation.KeyRange(start=b"", until=bytes(9), count=1, fingerprint=b"", hashes=(ID32,))
ENVELOPE = reconciliation.Envelope(kind=reconciliation.RecordKind.RECEIPT, data=b"a record")
CO_SIGNATURES = tuple(
    receipts.CoSignature(peer=peer, signature=bytes(64)) for peer in sorted((FIRST.peer_id, SECOND.peer_id))
)

EXAMPLES: tuple[Message, ...] = (
    control.Hello(federation="test", versions=(1,), agent="finode/0.1.0"),
    control.Goodbye(reason="bye", versions=(1,)),
    control.Ping(number=5),
    control.Pong(number=5),
    RECORD,
    directory.DirectorySync(have=((OWNER.peer_id, 3),)),
    directory.DirectoryRecords(records=(sign(OWNER, RECORD),), wanted=(FIRST.peer_id,)),
    TERMS,
    committee.Propose(terms=TERMS),
    committee.Propose(terms=WEIGHTED),
    committee.Propose(terms=AUGMENTED),
    ACCEPT,
    committee.Accepted(accept=sign(FIRST, ACCEPT)),
    committee.Refuse(committee=ID32, reason=committee.RefusalReason.BUSY, subject="4", detail="4 sessions run"),
    committee.Seal(committee=ID32, accepts=(sign(FIRST, ACCEPT),)),
    committee.Sealed(committee=ID32),
    committee.Dissolve(committee=ID32, reason="done"),
    shares.OfferDeployment(
        committee=ID32,
        deployment=ID32,
        version=ID32,
        plan=b"plan",
        share_bytes=8,
        share_digest=ID32,
        signed=sign(OWNER, DEPLOYMENT),
    ),
    shares.DeploymentWanted(deployment=ID32, wanted=True),
    shares.DeploymentStored(deployment=ID32),
    shares.WithdrawModel(version=ID32),
    shares.Prepare(committee=ID32, run=ID16),
    shares.Prepared(committee=ID32, bytes_sent=9, seconds=0.5, max_batch=64),
    shares.StartSession(session=ID16, committee=ID32, serial=ID16, batch=2, input_bytes=16, order=sign(QUERIER, ORDER)),
    shares.SessionProgress(session=ID16, phase=shares.Phase.ROUNDS, done=1, total=2),
    shares.SessionResult(session=ID16, output_bytes=16, meter=shares.Meter(rounds=3, online_s=0.25)),
    shares.Failed(subject=ID16, verdict=VERDICT),
    shares.HandOut(committee=ID32),
    ORDER,
    RECEIPT,
    receipts.SignedReceipt(body=RECEIPT.encode(), order=sign(QUERIER, ORDER), signatures=CO_SIGNATURES),
    DEPLOYMENT,
    STATEMENT,
    receipts.SignedStatement(body=STATEMENT.encode(), signatures=CO_SIGNATURES),
    receipts.Equivocation(
        signer=FIRST.peer_id,
        of_statements=False,
        first=b"a",
        first_signature=bytes(64),
        second=b"b",
        second_signature=bytes(64),
    ),
    cosigning.AskReport(session=ID16, committee=ID32, serial=ID16),
    cosigning.Report(
        session=ID16,
        ending=cosigning.Ending.ABORTED,
        verdict=VERDICT,
        work=RECEIPT.work[0],
        transcript=ID32,
        dealt=(32, 64),
    ),
    cosigning.AskSignature(
        receipt=receipts.SignedReceipt(body=RECEIPT.encode(), order=sign(QUERIER, ORDER), signatures=CO_SIGNATURES)
    ),
    cosigning.Signature(session=ID16, body=b"", signature=bytes(64)),
    cosigning.Decline(session=ID16, reason=cosigning.DeclineReason.DISAGREES, detail="another transcript"),
    cosigning.Finished(
        receipt=receipts.SignedReceipt(body=RECEIPT.encode(), order=sign(QUERIER, ORDER), signatures=CO_SIGNATURES)
    ),
    contribution.ProposeOpening(opening=OPENING),
    contribution.OpeningReady(opening=OPENING.id, lacking=(ID16,)),
    contribution.CommitShare(opening=OPENING.id, commitment=ID32),
    contribution.OpenShares(opening=OPENING.id, salt=ID32),
    contribution.StatementSigned(statement=STATEMENT.id, signature=bytes(64)),
    contribution.SignStatement(statement=STATEMENT),
    contribution.GiveLabels(session=ID16, count=2, labelled=1),
    contribution.BallotsKept(session=ID16, kept=True),
    contribution.LabelsCounted(session=ID16),
    contribution.JoinFeedback(session=ID16),
    reconciliation.Compare(ranges=(KEY_RANGE,)),
    reconciliation.Compared(ranges=(KEY_RANGE,), have=(ID32,), want=(ID32,), until=bytes(9)),
    reconciliation.FetchRecords(hashes=(ID32,)),
    reconciliation.LedgerRecords(records=(ENVELOPE,), done=1),
    reconciliation.RecordsTaken(new=1),
    preprocessing.RequestMasks(committee=ID32),
    preprocessing.Masks(committee=ID32, seeds=(ID32,)),
    preprocessing.Deal(committee=ID32, serial=ID16, batch=2),
    preprocessing.Dealt(serial=ID16, batch=2, ahead=True, bytes_sent=(32, 64), seconds=0.5),
    preprocessing.OfferBundle(committee=ID32, serial=ID16, batch=2, ahead=False, seed=ID32, correction_bytes=8),
    preprocessing.BundleStored(serial=ID16),
    preprocessing.Spent(serial=ID16),
    preprocessing.Dealing(serial=ID16, batch=2),
    session.JoinLane(committee=ID32, key=ID32, contribution=ID32),
    session.LaneJoined(committee=ID32, key=ID32, contribution=ID32),
)


def load_all() -> None:
    """Import every module of finode.wire, so that the table of types is complete."""
    for module in pkgutil.iter_modules(finode.wire.__path__):
        importlib.import_module(f"finode.wire.{module.name}")


def names(messages: Iterable[Message]) -> list[str]:
    return [type(message).__name__ for message in messages]


def unpack(payload: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(payload)
    return fields


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
