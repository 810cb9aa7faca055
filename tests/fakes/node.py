"""A node that answers without a federation: what the API, the client and the commands are tested with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import trio

from finode.errors import FinodeError, InputError, PeerRefused, UnknownRecord
from finode.ledger.envelopes import Record, envelope
from finode.ledger.export import write_entries
from finode.node.interface import (
    BalanceView,
    CommitteeView,
    ExplainedView,
    ExplanationView,
    FeedbackView,
    LeftOutView,
    ModelUseView,
    ModelView,
    OfferView,
    PeerView,
    ProgressCallback,
    QueryAnswer,
    QueryProgress,
    QueryRequest,
    ReceiptView,
    RewardsView,
    ServiceView,
    SessionView,
    StatusView,
    Timings,
    Traffic,
    WorkView,
)
from finode.wire.directory import Color, InputSpec
from tests.fakes import records

PEER = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeNode0000"
PARTIES = tuple(f"12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeParty{i}00" for i in range(2))
DEALER = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeDealer00"
OWNER = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeOwner000"
SILENT = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeSilent00"
SESSION = "ab" * 16
COMMITTEE = "cd" * 32
CLASSES = ("zero", "one", "two")
DIGITS = ServiceView(
    name="digits",
    input=InputSpec(shape=(1, 2, 2), color=Color.GRAY, scale=1 / 16),
    classes=CLASSES,
    offers=(OfferView(version="ef" * 32, owner=OWNER, organization="Clinic North", price=5, engines=("native",)),),
)
VECTORS = ServiceView(name="vectors", input=InputSpec(shape=(3,)), classes=CLASSES, offers=())

RECEIPT = "12" * 32
ABORTED = "34" * 32
EPOCH = 20_787

Behaviour = Callable[[QueryRequest, ProgressCallback], Awaitable[None]]


class FakeNode:
    """Implements `NodeService`. Class `k` is the answer to an input whose sum is `k` (mod 3).

    `before_answer` runs inside `query`: it may report progress, wait, or raise.
    """

    def __init__(self) -> None:
        self.requests: list[QueryRequest] = []
        self.cancelled: list[str] = []
        self.reloads = 0
        self.is_ready = True
        self.before_answer: Behaviour | None = None
        self.started = trio.Event()
        self.query_cancelled = trio.Event()
        self.reload_error: FinodeError | None = None
        self.asked_of_ledger: list[tuple[object, ...]] = []
        self.labels: list[tuple[int, ...]] = []

    async def query(self, request: QueryRequest, progress: ProgressCallback) -> QueryAnswer:
        self.requests.append(request)
        try:
            for phase in ("committee", "deployment", "preprocessing", "rounds"):
                await progress(QueryProgress(session=SESSION, phase=phase, done=1, total=2, detail=f"the {phase}"))
            self.started.set()
            if self.before_answer is not None:
                await self.before_answer(request, progress)
        except trio.Cancelled:
            self.query_cancelled.set()
            raise
        return answer_to(request)

    def ready(self) -> bool:
        return self.is_ready

    def status(self) -> StatusView:
        return StatusView(
            peer=PEER,
            organization="Clinic South",
            federation="finode",
            trust="roster",
            roles=("owner", "querier"),
            addresses=("/ip4/127.0.0.1/tcp/4001",),
            version="0.1.0",
            uptime_s=12.5,
            peers_connected=3,
            peers_known=4,
            sessions=1,
            capacity=4,
            workers=1,
            ready=self.is_ready,
        )

    def peers(self) -> tuple[PeerView, ...]:
        return tuple(
            PeerView(
                peer=peer,
                organization=name,
                roles=("party",),
                addresses=("/ip4/10.0.0.1/tcp/4001",),
                connected=rtt is not None,
                rtt_ms=rtt,
                standing=0.0,
                models=0,
                expires_in_s=90.0,
            )
            for peer, name, rtt in zip(
                PARTIES, ("Clinic East", "Clinic West of the Long Name"), (0.7, None), strict=True
            )
        )

    def services(self) -> tuple[ServiceView, ...]:
        return (DIGITS, VECTORS)

    def models(self) -> tuple[ModelView, ...]:
        return (
            ModelView(
                version="ef" * 32,
                service="digits",
                price=5,
                parameters=1234,
                steps=3,
                operators=("Gemm", "Relu"),
                input_shape=(1, 2, 2),
                classes=CLASSES,
                softmax_at_end=True,
                range_bits=8,
                added=1.7e9,
            ),
        )

    def sessions(self) -> tuple[SessionView, ...]:
        return (
            SessionView(
                session=SESSION,
                committee=COMMITTEE,
                service="digits",
                role="querier",
                querier=PEER,
                phase="rounds",
                round=3,
                batch=32,
                started=1.7e9,
                seconds=1.5,
            ),
        )

    async def cancel(self, session: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.cancelled.append(session)
        return session == SESSION

    async def reload(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.reload_error is not None:
            raise self.reload_error
        self.reloads += 1

    async def receipts(self, epoch: int | None = None, limit: int = 100) -> tuple[ReceiptView, ...]:
        await trio.lowlevel.checkpoint()
        self.asked_of_ledger.append(("receipts", epoch, limit))
        return tuple(view for view in (receipt_view(), aborted_view()) if epoch in (None, view.epoch))[:limit]

    async def receipt(self, id: str) -> ReceiptView:
        await trio.lowlevel.checkpoint()
        found = [view for view in (receipt_view(), aborted_view()) if view.id.startswith(id) or view.session == id]
        if not found:
            raise UnknownRecord(f"no receipt or session begins with {id!r}", hint="see `finode receipts list`")
        if len(found) > 1:
            raise InputError(f"{len(found)} receipts begin with {id!r}", hint="give more digits")
        return found[0]

    async def export_receipts(self, epoch: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked_of_ledger.append(("export", epoch))
        ledger: list[Record] = [records.deployment(0), records.deployment(1)]
        ledger.append(records.signed_receipt(records.receipt()))
        return b"".join(write_entries(map(envelope, ledger)))

    async def rewards(self, epoch: int | None = None) -> RewardsView:
        await trio.lowlevel.checkpoint()
        self.asked_of_ledger.append(("rewards", epoch))
        return rewards_view(epoch)

    async def explain(self, organization: str, epoch: int | None = None) -> ExplanationView:
        await trio.lowlevel.checkpoint()
        self.asked_of_ledger.append(("explain", organization, epoch))
        if organization != "Clinic East":
            raise UnknownRecord(f"{organization!r} neither paid nor earned anything", hint="see `finode rewards`")
        return EXPLANATION

    async def feedback(self, session: str, labels: tuple[int, ...]) -> FeedbackView:
        await trio.lowlevel.checkpoint()
        if session != SESSION:
            raise PeerRefused("the votes of that session are not kept any more", reason="not-kept")
        self.labels.append(labels)
        return FeedbackView(session=session, count=len(labels), labelled=sum(label >= 0 for label in labels))


def receipt_view() -> ReceiptView:
    """A session of 32 inputs that was answered; one owner's deployment is not in the ledger."""
    organizations = {PARTIES[0]: "Clinic East", PARTIES[1]: "Clinic West of the Long Name", DEALER: "Dealer Ltd"}
    work = tuple(
        WorkView(
            peer=peer,
            organization=name,
            role="dealer" if peer == DEALER else "party",
            rounds=0 if peer == DEALER else 17,
            bytes_sent=0 if peer == DEALER else 48_000,
            bundle_bytes=420_000 if peer == DEALER else 210_000,
            seconds=0.095 if peer == DEALER else 0.18,
        )
        for peer, name in organizations.items()
    )
    return ReceiptView(
        id=RECEIPT,
        session=SESSION,
        committee=COMMITTEE,
        sealed="56" * 32,
        service="digits",
        querier=PEER,
        organization="Clinic South",
        parties=PARTIES,
        dealer=DEALER,
        models=(
            ModelUseView(
                version="ef" * 32, owner=OWNER, organization="Clinic North", deployment="01" * 32, signed=True
            ),
            ModelUseView(
                version="fe" * 32, owner=PARTIES[0], organization="Clinic East", deployment="02" * 32, signed=False
            ),
        ),
        engine="native",
        vote="soft",
        reveal="probabilities",
        count=32,
        epoch=EPOCH,
        started=1.796e9,
        ended=1.796e9 + 0.25,
        outcome="answered",
        verdict="",
        work=work,
        transcript="78" * 32,
        price=32_000,
        scheme="dawid_skene",
        signers=(*PARTIES, DEALER),
        withheld=(PEER,),
        settled=False,
    )


def aborted_view() -> ReceiptView:
    """A session that ended early, of the epoch before."""
    return replace(
        receipt_view(),
        id=ABORTED,
        session="ba" * 16,
        epoch=EPOCH - 1,
        outcome="aborted",
        verdict=f"{PARTIES[1]}: timeout at round 9: silent",
        signers=(PARTIES[0], DEALER, PEER),
        withheld=(PARTIES[1],),
        transcript="",
    )


def rewards_view(epoch: int | None) -> RewardsView:
    """What follows from the two receipts."""
    return RewardsView(
        epoch=epoch,
        epochs=(EPOCH - 1, EPOCH),
        receipts=2,
        statements=0,
        paid_in=38_400,
        paid_out=16_000,
        pending=22_400,
        schemes={"dawid_skene": 0},
        balances=(
            BalanceView(
                organization="Clinic East",
                peers=(PARTIES[0],),
                balance=6_400,
                paid=0,
                as_owner=0,
                as_party=6_400,
                as_dealer=0,
            ),
            BalanceView(
                organization="Clinic South",
                peers=(PEER,),
                balance=-38_400,
                paid=38_400,
                as_owner=0,
                as_party=0,
                as_dealer=0,
            ),
            BalanceView(
                organization="Clinic West of the Long Name",
                peers=(PARTIES[1],),
                balance=3_200,
                paid=0,
                as_owner=0,
                as_party=3_200,
                as_dealer=0,
            ),
            BalanceView(
                organization=DEALER, peers=(DEALER,), balance=6_400, paid=0, as_owner=0, as_party=0, as_dealer=6_400
            ),
        ),
        digest="9a" * 32,
    )


EXPLANATION = ExplanationView(
    organization="Clinic East",
    balance=6_400,
    amounts=tuple(
        ExplainedView(
            receipt=receipt,
            session=session,
            epoch=epoch,
            role="party",
            amount=3_200,
            scheme="dawid_skene",
            why="17 of the 34 rounds that the parties who signed ran",
        )
        for receipt, session, epoch in ((RECEIPT, SESSION, EPOCH), (ABORTED, "ba" * 16, EPOCH - 1))
    ),
)


def answer_to(request: QueryRequest) -> QueryAnswer:
    """Return the fake's answer, with as much as the request lets it reveal."""
    indices = [round(float(np.sum(x))) % 3 for x in request.inputs]
    rows = tuple(tuple(0.8 if i == index else 0.1 for i in range(3)) for index in indices)
    return QueryAnswer(
        session=SESSION,
        service=request.service,
        labels=tuple(CLASSES[index] for index in indices),
        label_indices=tuple(indices),
        probabilities=rows if request.reveal == "probabilities" else None,
        top=None if request.reveal == "label" else tuple(max(row) for row in rows),
        classes=CLASSES,
        committee=CommitteeView(
            id=COMMITTEE,
            parties=PARTIES,
            dealer=DEALER,
            owners=(OWNER,),
            organizations={
                PARTIES[0]: "Clinic East",
                PARTIES[1]: "Clinic West",
                DEALER: "Dealer Ltd",
                OWNER: "Clinic North",
                SILENT: "Clinic South",
            },
            left_out=(LeftOutView(owner=SILENT, version="5a" * 32, reason="did not answer within 5 s"),),
        ),
        timings=Timings(negotiation_s=0.1, deployment_s=0.2, offline_s=0.3, online_s=0.4, total_s=1.0),
        traffic=Traffic(rounds=17, bytes_sent_per_party=(1000, 1001), offline_bytes=5000),
        engine="native",
    )
