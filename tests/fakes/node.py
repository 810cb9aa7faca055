"""A node that answers without a federation: what the API, the client and the commands are tested with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import trio

from finode.errors import FinodeError
from finode.node.interface import (
    CommitteeView,
    ModelView,
    OfferView,
    PeerView,
    ProgressCallback,
    QueryAnswer,
    QueryProgress,
    QueryRequest,
    ServiceView,
    SessionView,
    StatusView,
    Timings,
    Traffic,
)
from finode.wire.directory import Color, InputSpec

PEER = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeNode0000"
PARTIES = tuple(f"12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeParty{i}00" for i in range(2))
DEALER = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeDealer00"
OWNER = "12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeOwner000"
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
            },
        ),
        timings=Timings(negotiation_s=0.1, deployment_s=0.2, offline_s=0.3, online_s=0.4, total_s=1.0),
        traffic=Traffic(rounds=17, bytes_sent_per_party=(1000, 1001), offline_bytes=5000),
        engine="native",
    )
