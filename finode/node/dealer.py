"""The dealer's role: mask seeds per deployment, and a pool of bundles for each committee that is in use (dealing.py).

It sees plans, never a weight, an input, an opened value or an output.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import trio
from structlog.typing import FilteringBoundLogger

from finode.committee.book import CommitteeBook
from finode.committee.sealed import SealedCommittee
from finode.config import Config
from finode.errors import PeerRefused, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.cosigning import Cosigning
from finode.node.dealing import BundleMaker, DealerPool, PoolSpace
from finode.node.pool import WorkerPool
from finode.node.secret import NodeSecret
from finode.node.sessions import SessionTable
from finode.smpc.plan import Plan
from finode.wire.committee import RefusalReason, Terms
from finode.wire.message import MIB
from finode.wire.preprocessing import Deal, Masks

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
        cosigning: Cosigning,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self.plans = PlanShelf()
        self._cosigning = cosigning
        self._network = network
        self._pool = pool
        self._pools: dict[bytes, trio.CancelScope] = {}
        self._serials: dict[bytes, set[bytes]] = {}
        self._space = PoolSpace(config.dealer.pool_memory_mb * MIB)
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

    async def serve_pool(self, stream: Stream, sealed: SealedCommittee, first: Deal, book: CommitteeBook) -> None:
        """Deal for a committee until its querier closes the stream; a second stream of a committee ends the first."""
        terms, committee = sealed.terms, sealed.id
        await self._end_pool(committee)
        timeout_s = self._config.session.deploy_timeout_s
        plans = tuple([await self.plans.take(terms.deployment_id(m), m.owner, timeout_s) for m in terms.models])
        maker = BundleMaker(self._network, self._pool, self._secret, terms, plans, self._config)
        dealt = partial(self._cosigning.dealt, sealed)
        serials = self._serials.setdefault(committee, set())
        pool = DealerPool(stream, maker, book, self._space, self._sessions, serials, dealt, self._log)
        with trio.CancelScope() as scope:
            self._pools[committee] = scope
            try:
                await pool.serve(first)
            finally:
                if self._pools.get(committee) is scope:
                    del self._pools[committee]
        if scope.cancelled_caught:
            raise PeerRefused("the committee is over", reason=RefusalReason.NOT_SEALED.value)

    async def leave(self, committee: bytes) -> None:
        """End the pool of a committee that is over; the parties burn what no session has taken."""
        self._serials.pop(committee, None)
        await self._end_pool(committee)

    async def _end_pool(self, committee: bytes) -> None:
        if (scope := self._pools.pop(committee, None)) is not None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

    def dealing(self) -> tuple[bytes, ...]:
        """Return the ids of the committees that were dealt for here and are not over."""
        return tuple(self._serials)
