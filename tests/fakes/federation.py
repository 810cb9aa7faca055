"""Whole nodes in one process: memory links, and a pool whose worker answers in place. No sockets, no processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog
import trio

from finode.committee.desk import Desk
from finode.config import Config, load
from finode.errors import FinodeError, RemoteProtocolError, WorkerDied, error_class
from finode.identity import Identity, PeerId
from finode.ledger.records import (
    VerifiedDeployment,
    VerifiedReceipt,
    VerifiedStatement,
    verify_deployment,
    verify_receipt,
    verify_statement,
)
from finode.models.onnx_import import ImportedModel
from finode.models.registry import ModelEntry, Registry
from finode.net.memory import MemoryFederation, MemoryNetwork
from finode.node.channel import Buffer, Envelope
from finode.node.filing import Record
from finode.node.node import Holdings, Node, open_holdings, serve_node
from finode.node.pool import WorkerPool
from finode.node.secret import NodeSecret
from finode.node.worker import Worker, engines
from finode.smpc.counts import with_counts
from finode.smpc.plan import INPUT, Op, Plan, Step, WeightSpec
from finode.wire.committee import Terms
from finode.wire.directory import InputSpec, ServiceSpec
from finode.wire.receipts import Agreed, Order, Receipt, SignedReceipt, SignedStatement
from finode.wire.shares import StartSession
from finode.wire.signed import Signed, sign

SERVICE = ServiceSpec(name="toy", input=InputSpec(shape=(4,)), classes=("a", "b", "c"))


def toy_plan(hidden: int = 6) -> Plan:
    """A perceptron: 4 values, `hidden` units, 3 classes."""
    return Plan(
        input_shape=(4,),
        classes=3,
        steps=(
            Step(op=Op.LINEAR, name="l1", inputs=(INPUT,), output="h", output_shape=(hidden,), weight="w1", bias="b1"),
            Step(op=Op.RELU, name="r1", inputs=("h",), output="a", output_shape=(hidden,)),
            Step(op=Op.LINEAR, name="l2", inputs=("a",), output="y", output_shape=(3,), weight="w2", bias="b2"),
        ),
        weights=(
            WeightSpec(name="w1", shape=(hidden, 4)),
            WeightSpec(name="b1", shape=(hidden,)),
            WeightSpec(name="w2", shape=(3, hidden)),
            WeightSpec(name="b2", shape=(3,)),
        ),
        output="y",
        softmax_at_end=False,
    )


def toy_weights(plan: Plan, seed: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    generator = np.random.default_rng(seed)
    return {spec.name: generator.normal(size=spec.shape) for spec in plan.weights}


def toy_probabilities(seeds: Sequence[int], x: np.ndarray[Any, Any], hidden: int = 6) -> np.ndarray[Any, Any]:
    """The soft vote in float."""
    plan, total = toy_plan(hidden), np.zeros((len(x), 3))
    for seed in seeds:
        w = toy_weights(plan, seed)
        logits = np.maximum(x @ w["w1"].T + w["b1"], 0) @ w["w2"].T + w["b2"]
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        total += exp / exp.sum(axis=1, keepdims=True)
    return total / len(seeds)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for what other tasks bring about; fail when it does not come."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is looked at are plain values of the code under test
            await trio.sleep(0.005)


class InlineWorker:
    """Answers requests with the real worker's code, in this process. `spoil` may change a reply's header, or raise."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.dead = False
        self.died = trio.Event()
        self.requests: list[dict[str, Any]] = []
        self.hold: trio.Event | None = None
        self.spoil: Callable[[dict[str, Any]], None] | None = None

    async def request(
        self, header: dict[str, Any], parts: Sequence[Buffer] = (), *, timeout_s: float = 60.0
    ) -> Envelope:
        await trio.lowlevel.checkpoint()
        self.requests.append(header)
        if self.hold is not None:
            await self.hold.wait()
        if self.dead:
            raise WorkerDied("worker process 0 ended")
        reply = self._worker.handle(Envelope(header, tuple(parts)))
        if "error" in reply.header:
            cls = error_class(reply.header["error"])
            if cls is RemoteProtocolError:
                raise RemoteProtocolError(reply.header["message"], peer=reply.header["peer"])
            raise cls(reply.header["message"])
        if self.spoil is not None:
            self.spoil(reply.header)
        return reply

    async def post(self, header: dict[str, Any]) -> None:
        await self.feed(header, ())

    async def feed(self, header: dict[str, Any], parts: Sequence[Buffer]) -> None:
        with contextlib.suppress(KeyError, WorkerDied):
            await self.request(header, parts)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        yield

    @property
    def bundles(self) -> int:
        return self._worker.bundles

    def die(self) -> None:
        """Lose all that the worker held, and answer nothing any more."""
        self._worker = Worker({})
        self.dead = True
        self.died.set()


class InlinePool(WorkerPool):
    """One inline worker."""

    def __init__(self) -> None:
        super().__init__(0, 1, structlog.get_logger())
        self.worker = InlineWorker(Worker(engines()))

    @asynccontextmanager
    async def acquire(self, timeout_s: float = 60.0) -> AsyncIterator[Any]:
        yield self.worker


class MemoryFiling:
    """A ledger in memory: verifies what is filed; signatures of one receipt add up. `error` is raised instead."""

    def __init__(self) -> None:
        self.receipts: dict[bytes, VerifiedReceipt] = {}
        self.deployments: dict[bytes, VerifiedDeployment] = {}
        self.statements: list[VerifiedStatement] = []
        self.error: FinodeError | None = None

    async def file(self, record: Record, *, told: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        if isinstance(record, SignedReceipt):
            verified = verify_receipt(record)
            if (before := self.receipts.get(verified.id)) is not None:
                given = {one.peer: one for one in (*before.signed.signatures, *record.signatures)}
                verified = verify_receipt(replace(record, signatures=tuple(given[peer] for peer in sorted(given))))
            self.receipts[verified.id] = verified
        elif isinstance(record, Signed):
            deployment = verify_deployment(record)
            self.deployments[deployment.deployment.deployment] = deployment

        elif isinstance(record, SignedStatement):
            self.statements.append(verify_statement(record))

    def receipts_of(self, session: bytes) -> list[Receipt]:
        return [one.receipt for one in self.receipts.values() if one.receipt.session == session]

    def of(self, session: str) -> list[VerifiedReceipt]:
        """Return the receipts of one session."""
        return [one for one in self.receipts.values() if one.receipt.session.hex() == session]


@dataclass(slots=True)
class Member:
    """One node of a test federation, with what a test may look at."""

    identity: Identity
    holdings: Holdings
    network: MemoryNetwork
    pool: InlinePool
    node: Node
    desk: Desk
    filing: MemoryFiling
    models: list[ModelEntry] = field(default_factory=list)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def start(
        self,
        session: bytes,
        committee: bytes,
        serial: bytes,
        batch: int,
        input_bytes: int,
        *,
        terms: Terms | None = None,
    ) -> StartSession:
        """Return the message with which this member, as a querier, begins a session of these terms."""
        order = Order(
            session=session,
            committee=committee,
            serial=serial,
            count=batch,
            created_ms=time.time_ns() // 1_000_000,
            agreed=bytes(32) if terms is None else Agreed.by(terms).hash,
        )
        return StartSession(
            session=session,
            committee=committee,
            serial=serial,
            batch=batch,
            input_bytes=input_bytes,
            order=sign(self.identity, order),
        )


def config_of(home: Path, organization: str, roles: Sequence[str], **sections: dict[str, Any]) -> Config:
    """Settings of a member with short deadlines, but none that a busy machine would miss."""
    deadlines = {"answer_timeout_s": 10.0, "deploy_timeout_s": 10.0, "deal_timeout_s": 10.0, "round_timeout_s": 10.0}
    deadlines["cosign_pause_s"] = 0.2
    flags: dict[str, dict[str, Any]] = {
        "node": {"organization": organization, "roles": tuple(roles)},
        "session": deadlines,
        "querier": {"deadline_s": 30.0},
    }
    for name, values in sections.items():
        flags[name] = flags.get(name, {}) | values
    return load(home, flags)


@asynccontextmanager
async def federation_of(
    root: Path, layout: dict[str, dict[str, Any]], identities: Mapping[str, Identity] = MappingProxyType({})
) -> AsyncIterator[tuple[MemoryFederation, dict[str, Member]]]:
    """Run nodes. `layout` maps an organization to {"roles": [...], "models": [seeds], "counts": {seed: (...)},
    section: {...}}.

    With the `identities` of an earlier run on the same `root`, its nodes start again.
    """
    federation = MemoryFederation()
    members: dict[str, Member] = {}
    async with AsyncExitStack() as stack:
        for organization, what in layout.items():
            roles, seeds = what.get("roles", ["party"]), what.get("models", [])
            sections = {name: values for name, values in what.items() if name not in ("roles", "models", "counts")}
            home = root / organization
            home.mkdir(exist_ok=True)
            entries = []
            for seed in seeds:
                plan = toy_plan()
                weights = toy_weights(plan, seed)
                if "counts" in what:
                    plan, weights = with_counts(plan, weights, what["counts"][seed])
                imported = ImportedModel(plan=plan, weights=weights, operators=("Gemm", "Relu"), origins={})
                entries.append(Registry(home).add(imported, SERVICE, 0))
            config = config_of(home, organization, roles, **sections)
            identity = identities.get(organization) or Identity.generate()
            holdings, pool = open_holdings(config), InlinePool()
            network = await stack.enter_async_context(federation.node(identity, organization, holdings.offer))
            secret = NodeSecret(identity.seed())
            filing = MemoryFiling()
            serving = serve_node(holdings, identity, network, pool, secret, structlog.get_logger(), filing)
            node = await stack.enter_async_context(serving)
            members[organization] = Member(identity, holdings, network, pool, node, node.desk, filing, entries)
        yield federation, members
