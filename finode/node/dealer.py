"""The dealer's role: mask seeds per deployment, and a fresh bundle for each session, on demand.

It sees plans, never a weight, an input, an opened value or an output. A bundle is a seed for every party, and for the
last party the corrections: they are made layer by layer and sent as they are made, so no whole bundle is held here.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config, Role
from finode.errors import PeerRefused, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.asked import while_asked
from finode.node.channel import Buffer
from finode.node.pool import WorkerPool, WorkerProcess
from finode.node.seat import program_of
from finode.node.secret import NodeSecret
from finode.node.sessions import SessionTable
from finode.node.tasks import together
from finode.smpc.engine import Program
from finode.smpc.plan import Plan
from finode.wire import canonical
from finode.wire.committee import Terms
from finode.wire.preprocessing import PROTOCOL, BundleStored, Deal, Dealt, Masks, OfferBundle
from finode.wire.shares import Failed, Phase

MAX_PLANS = 1024
"""Plans kept, a few kilobytes each; the least recently used go first, and come again with the next hand-out."""


class PlanShelf:
    """The plans that owners gave this dealer, by deployment."""

    def __init__(self) -> None:
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._changed = trio.Event()

    def kept(self) -> frozenset[bytes]:
        """Return the deployments whose plan is here."""
        return frozenset(self._plans)

    def put(self, deployment: bytes, plan: Plan) -> None:
        self._plans[deployment] = plan
        while len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def take(self, deployment: bytes, owner: PeerId, timeout_s: float) -> Plan:
        """Return a plan; wait for it, then raise `PeerTimeout` naming its owner."""
        with trio.move_on_after(timeout_s):
            while deployment not in self._plans:
                await self._changed.wait()
        if deployment not in self._plans:
            raise PeerTimeout(f"{owner} sent no plan of its model within {timeout_s:.0f} s", peer=owner)
        self._plans.move_to_end(deployment)
        return self._plans[deployment]


class DealerRole:
    """Deals for the committees whose dealer this node is."""

    def __init__(
        self,
        network: Network,
        pool: WorkerPool,
        sessions: SessionTable,
        secret: NodeSecret,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self.plans = PlanShelf()
        self._network = network
        self._pool = pool
        self._sessions = sessions
        self._secret = secret.derive("masks")
        self._config = config
        self._log = log

    async def masks(self, stream: Stream, terms: Terms) -> None:
        """Answer a party's request for its mask seeds."""
        if stream.peer not in terms.parties:
            raise RemoteProtocolError(f"{stream.peer} asks for masks and is no party", peer=stream.peer)
        request = {
            "kind": "masks",
            "engine": terms.engine,
            "deployments": [terms.deployment_id(model) for model in terms.models],
            "party_index": terms.parties.index(stream.peer),
        }
        async with self._pool.acquire() as worker:
            reply = await worker.request(request, [self._secret])
        await stream.send(Masks(committee=terms.committee_id(), seeds=tuple(map(bytes, reply.parts))))

    async def deal(self, stream: Stream, terms: Terms, message: Deal) -> None:
        """Make a bundle for one session, send it to the parties and tell the querier."""
        began = time.monotonic()
        committee = terms.committee_id()
        entry = self._sessions.enter(
            message.session, committee, terms.service, Role.DEALER, terms.querier, message.batch
        )
        with entry as session:
            session.phase = Phase.PREPROCESSING
            timeout_s = self._config.session.deploy_timeout_s
            plans = tuple([await self.plans.take(terms.deployment_id(m), m.owner, timeout_s) for m in terms.models])
            program = program_of(terms, plans, message.batch)

            async def make() -> list[int]:
                async with self._pool.acquire() as worker:
                    return await self._send(terms, message, program, worker)

            sent = await while_asked(stream, make)
            await stream.send(Dealt(session=message.session, bytes_sent=tuple(sent), seconds=time.monotonic() - began))

    async def _send(self, terms: Terms, message: Deal, program: Program, worker: WorkerProcess) -> list[int]:
        run = b"deal" + secrets.token_bytes(12)
        header = {"kind": "deal", "run": run, "engine": terms.engine, "program": canonical.encode(program)}
        try:
            reply = await worker.request(header, [self._secret])
            correction_bytes: int = reply.header["correction_bytes"]
            last = len(terms.parties) - 1
            calls: list[Callable[[], Awaitable[int]]] = []
            for index, (peer, seed) in enumerate(zip(terms.parties, reply.parts, strict=True)):
                offer = OfferBundle(
                    session=message.session,
                    committee=message.committee,
                    serial=secrets.token_bytes(16),
                    batch=message.batch,
                    seed=bytes(seed),
                    correction_bytes=correction_bytes if index == last else 0,
                )
                calls.append(partial(self._give, peer, offer, run, worker))
            # The last party's corrections first: the others would begin round 0 and wait for it under a deadline.
            to_last = await calls[-1]()
            return [*await together(calls[:-1]), to_last]
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await worker.post({"kind": "drop", "run": run})

    async def _give(self, peer: PeerId, offer: OfferBundle, run: bytes, worker: WorkerProcess) -> int:
        timeout_s = self._config.session.deal_timeout_s
        stream = await self._network.open(peer, PROTOCOL, timeout_s=self._config.session.answer_timeout_s)
        try:
            await stream.send(offer)
            if offer.correction_bytes:
                await self._stream_corrections(stream, run, worker, timeout_s)
            reply = await stream.receive(BundleStored, Failed, timeout_s=timeout_s)
        finally:
            await stream.close()
        if isinstance(reply, Failed):
            fault = reply.verdict.fault
            raise PeerRefused(
                f"{peer} did not take its bundle: {reply.verdict.detail or fault}", peer=peer, reason=fault
            )
        return len(offer.seed) + offer.correction_bytes

    @staticmethod
    async def _stream_corrections(stream: Stream, run: bytes, worker: WorkerProcess, timeout_s: float) -> None:
        """Send chunks as they are made: the worker makes the next one while the last one is on its way."""
        send, receive = trio.open_memory_channel[Buffer](1)

        async def make() -> None:
            # When the stream breaks, `forward` says so; this side then finds its channel closed.
            with suppress(trio.BrokenResourceError):
                async with send:
                    while (reply := await worker.request({"kind": "next", "run": run})).header["more"]:
                        await send.send(reply.parts[0])

        async def forward() -> None:
            async with receive:
                async for chunk in receive:
                    await stream.send_bulk(chunk, timeout_s=timeout_s)

        calls: list[Callable[[], Awaitable[None]]] = [make, forward]
        await together(calls)
