"""One party's seat in one sealed committee: its lanes, its deployments, the runs it makes.

    prepare     wait for the owners' shares, ask the dealer for the mask seeds, and with the other parties open the
                masked weights that anyone of them lacks; once per committee
    bundle      a bundle of the dealer's goes into a worker, which prepares it
    run         one session: the input share in, a bundle used up, the output share out

All parties prepare when the querier says so. What to open is agreed in one exchange (a byte per model: 1, I lack it),
because a party that restarted has lost nothing but a file that the others still have.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import trio

from finode.config import Config
from finode.errors import FinodeError, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network
from finode.node.bundles import PartyBundle
from finode.node.channel import Buffer
from finode.node.deployments import DeploymentStore
from finode.node.driver import RunDriver, RunOutcome
from finode.node.lanes import Lane, LaneSet
from finode.node.pool import WorkerProcess
from finode.node.verdicts import VerdictReached, verdict_of
from finode.smpc.engine import Program
from finode.smpc.plan import Plan
from finode.wire import canonical, preprocessing
from finode.wire.committee import Terms
from finode.wire.message import KIB, MIB
from finode.wire.receipts import Order
from finode.wire.shares import Fault, Verdict
from finode.wire.signed import Signed

BYTES_PER_VALUE = 64
"""No round of the engine opens more than this of one element: at most 45 comparisons of a 3x3 pooling window."""


def program_of(terms: Terms, plans: tuple[Plan, ...], batch: int) -> Program:
    """Return what a session of these terms computes."""
    return Program(
        plans=plans,
        deployments=tuple(terms.deployment_id(model) for model in terms.models),
        parties=len(terms.parties),
        batch=batch,
        fractional_bits=terms.fractional_bits,
        vote=terms.vote.value,
        reveal=terms.reveal.value,
        profile=terms.profile,
        vote_weights=terms.vote_weights,
        copies=terms.copies,
        gamma=terms.gamma,
        statistics=terms.engine == "native",
    )


def input_share_bytes(terms: Terms, batch: int) -> int:
    """Return the exact size of one party's share of the input."""
    return 8 * batch * prod(terms.input_shape)


def _frame_limit(terms: Terms, plans: tuple[Plan, ...]) -> int:
    # CrypTen's parties each share their own share bit by bit, and all of them are added up in the same rounds.
    summands = 1 if terms.engine == "native" else len(terms.parties)
    values = sum(prod(shape) for plan in plans for shape in plan.shapes().values())
    votes = len(plans) * terms.classes * terms.classes
    weights = sum(plan.weight_numel() for plan in plans)
    return 64 * KIB + BYTES_PER_VALUE * summands * terms.max_batch * (values + votes) + 8 * weights


@dataclass(frozen=True, slots=True)
class SeatRun:
    """A run whose answer is there; what follows it is `driver`'s to move."""

    outcome: RunOutcome
    driver: RunDriver
    program: Program
    zero_keys: Mapping[int, bytes] = field(repr=False)
    count: int


class PartySeat:
    """This node's seat in the committee of `terms`. `held` are the deployments that it kept when it accepted them."""

    def __init__(
        self,
        terms: Terms,
        own: PeerId,
        held: frozenset[bytes],
        network: Network,
        store: DeploymentStore,
        nursery: trio.Nursery,
        config: Config,
    ) -> None:
        self.terms = terms
        self.committee = terms.committee_id()
        self.party_index = terms.parties.index(own)
        self.is_last = self.party_index == len(terms.parties) - 1
        self.deployments = tuple(terms.deployment_id(model) for model in terms.models)
        self._own = own
        self._held = held
        self._network = network
        self._store = store
        self._nursery = nursery
        self._config = config
        self._preparing = trio.Lock()
        self._lanes: LaneSet | None = None
        self._mask_seeds: tuple[bytes, ...] = ()
        self._max_batch = 0

    async def plans(self) -> tuple[Plan, ...]:
        """Return the plans of all models once their deployments are here.

        Raises `PeerTimeout` naming the owner whose share did not come.
        """
        plans = []
        timeout_s = self._config.session.deploy_timeout_s
        deadline = trio.current_time() + timeout_s
        for model, deployment in zip(self.terms.models, self.deployments, strict=True):
            if deployment in self._held and not self._store.holds(deployment):
                raise self._lost()
            with trio.CancelScope(deadline=deadline):
                await self._store.wait_for(deployment)
            kept = self._store.get(deployment)
            if kept is None:
                raise PeerTimeout(
                    f"{model.owner} sent no share of its model within {timeout_s:.0f} s", peer=model.owner
                )
            if (kept.plan.input_shape, kept.plan.classes) != (self.terms.input_shape, self.terms.classes):
                raise RemoteProtocolError(
                    f"the terms of {self.terms.querier} do not fit the plan of {model.owner}", peer=self.terms.querier
                )
            plans.append(kept.plan)
        return tuple(plans)

    def _lost(self) -> VerdictReached:
        """Return what to say of a deployment that was kept when the terms were accepted and is not any more."""
        detail = "it no longer keeps a deployment of these terms"
        return VerdictReached(Verdict(culprit=self._own, round=-1, fault=Fault.NOT_SEALED, detail=detail))

    async def lanes(self) -> LaneSet:
        """Return the committee's lanes (not all need be open), once the plans tell how large a frame may be."""
        if self._lanes is None:
            limit = _frame_limit(self.terms, await self.plans())
            if self._lanes is None:
                self._lanes = LaneSet(
                    self._network,
                    self._nursery,
                    self.committee,
                    self.terms.parties,
                    self.party_index,
                    limit,
                    self._config.session.deploy_timeout_s,
                )
        return self._lanes

    async def max_batch(self, worker: WorkerProcess) -> int:
        """Return the most inputs of one session that fit into the memory which this node gives to one; at least 1.

        An input of an augmented vote comes with its copies, which count."""
        if not self._max_batch:
            unit = 1 + self.terms.copies
            program = program_of(self.terms, await self.plans(), unit)
            reply = await worker.request(
                {"kind": "sizes", "engine": self.terms.engine, "program": canonical.encode(program)}
            )
            limit_bytes = self._config.party.session_memory_mb * MIB
            fitting = unit * (limit_bytes // max(1, reply.header["memory_bytes"]))
            self._max_batch = max(unit, min(self.terms.max_batch, fitting))
        return self._max_batch

    async def begin_bundle(self, name: bytes, batch: int, seed: bytes, worker: WorkerProcess) -> tuple[int, int]:
        """Have the worker expect a bundle; return the bytes of corrections due here, and the memory it will take.

        Raises `VerdictReached` when the seat is not prepared: without the deployments nothing can be made of it.
        """
        self._check_ready()
        reply = await worker.request(
            {
                "kind": "bundle",
                "bundle": name,
                "engine": self.terms.engine,
                "program": canonical.encode(program_of(self.terms, await self.plans(), batch)),
                "party_index": self.party_index,
                "constants": [self._constants_path(index) for index in range(len(self.deployments))],
                "shares": [str(self._store.share_path(deployment)) for deployment in self.deployments],
            },
            [seed, *self._mask_seeds],
        )
        return reply.header["correction_bytes"], reply.header["memory_bytes"]

    def _check_ready(self) -> None:
        if not self._mask_seeds or not all(self._are_open()):
            raise self._lost()

    async def prepare(self, run: bytes, worker: WorkerProcess) -> int:
        """Bring the seat into working order; return the bytes sent to the other parties.

        `run` is the name of this attempt, the same at all parties. Raises `RemoteError`s and `VerdictReached`.
        """
        async with self._preparing:
            plans = await self.plans()
            with self._store.using(self.deployments):
                await self._check_shares()
                await self._fetch_masks()
                for deployment, seed in zip(self.deployments, self._mask_seeds, strict=True):
                    await trio.to_thread.run_sync(self._store.verify_opened, deployment, seed, abandon_on_cancel=True)
                lane_set = await self.lanes()
                try:
                    lanes = await lane_set.connect()
                    timeout_s = self._config.session.deploy_timeout_s
                    driver = RunDriver(
                        run, worker, lanes, lane_set.join(run), self.terms.parties, timeout_s, _ignore, first_round=1
                    )
                    lacking = await self._agree_on_lacking(driver, lanes)
                    if lacking:
                        await self._open_weights(driver, plans, lacking)
                    return driver.frame_bytes
                except FinodeError as error:
                    await lane_set.tell(run, verdict_of(error, self._own))
                    raise
                finally:
                    lane_set.leave(run)

    async def _check_shares(self) -> None:
        for deployment in self.deployments:
            if not await trio.to_thread.run_sync(self._store.verify, deployment, abandon_on_cancel=True):
                self._store.drop(deployment)
                raise self._lost()

    async def _fetch_masks(self) -> None:
        if self._mask_seeds:
            return
        timeout_s = self._config.session.answer_timeout_s
        stream = await self._network.open(self.terms.dealer, preprocessing.PROTOCOL, timeout_s=timeout_s)
        try:
            await stream.send(preprocessing.RequestMasks(committee=self.committee))
            reply = await stream.receive(preprocessing.Masks, timeout_s=self._config.session.deploy_timeout_s)
        finally:
            await stream.close()
        seeds_fit = all(len(seed) == preprocessing.SEED_BYTES for seed in reply.seeds)
        if reply.committee != self.committee or len(reply.seeds) != len(self.terms.models) or not seeds_fit:
            raise RemoteProtocolError("the dealer's mask seeds do not fit the terms", peer=self.terms.dealer)
        self._mask_seeds = reply.seeds

    async def _agree_on_lacking(self, driver: RunDriver, lanes: dict[int, Lane]) -> list[int]:
        own = bytes(not is_open for is_open in self._are_open())
        theirs = await driver.exchange(0, dict.fromkeys(lanes, own), len(own))
        return [index for index in range(len(own)) if own[index] or any(frame[index] for frame in theirs.values())]

    def _are_open(self) -> list[bool]:
        pairs = zip(self.deployments, self._mask_seeds, strict=True)
        return [self._store.is_open(deployment, seed) for deployment, seed in pairs]

    def _constants_path(self, index: int) -> str:
        return str(self._store.opened_path(self.deployments[index], self._mask_seeds[index]))

    async def _open_weights(self, driver: RunDriver, plans: tuple[Plan, ...], lacking: list[int]) -> None:
        chosen = [self.deployments[index] for index in lacking]
        for index in lacking:
            self._store.forget_opened(self.deployments[index], self._mask_seeds[index])
        await driver.drive(
            {
                "kind": "open",
                "engine": self.terms.engine,
                "plans": [plans[index].encode() for index in lacking],
                "shares": [str(self._store.share_path(deployment)) for deployment in chosen],
                "constants": [self._constants_path(index) for index in lacking],
                "party_index": self.party_index,
                "parties": len(self.terms.parties),
            },
            [self._mask_seeds[index] for index in lacking],
        )

    async def run(
        self,
        session: bytes,
        order: Signed,
        input_share: Buffer,
        bundle: PartyBundle,
        on_round: Callable[[int, int], None],
    ) -> SeatRun:
        """Run one session whose inbox was joined before; the outcome's one part is the output share.

        `order` is the querier's, checked: it says how many of the batch's inputs are true ones. The outcome's
        transcript is keyed with what the parties alone know. Where `outcome.more`, the caller must call `driver.rest`
        or `driver.abandon`.
        """
        self._check_ready()
        lane_set = await self.lanes()
        lanes = await lane_set.connect()
        key = lane_set.transcript_key(session)
        driver = RunDriver(
            session,
            bundle.worker,
            lanes,
            lane_set.inbox(session),
            self.terms.parties,
            self._config.session.round_timeout_s,
            on_round,
        )
        zero_keys = {index: lane.zero_key(session, order.body) for index, lane in lanes.items()}
        count = canonical.decode(order.body, Order).count
        with self._store.using(self.deployments):
            outcome = await driver.drive(
                {"kind": "run", "bundle": bundle.name, "zero_parties": list(zero_keys), "count": count},
                [input_share, *zero_keys.values()],
                keep_rest=True,
            )
        outcome = replace(outcome, transcript=hmac.digest(key, outcome.transcript, "sha256"))
        program = program_of(self.terms, await self.plans(), bundle.batch)
        return SeatRun(outcome, driver, program, zero_keys, count)

    async def close(self) -> None:
        """Close the lanes: the committee is over."""
        if self._lanes is not None:
            await self._lanes.close()


def _ignore(round: int, bytes_sent: int) -> None:
    """Opening weights shows no progress of its own."""
