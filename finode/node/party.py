"""The party's role: keeps deployments, takes bundles, joins lanes, and computes sessions on shares.

Every message is checked against the sealed committee before anything it announces is read: who sent it, which size it
must have, whether it is due. A session that ends early here is told to the other parties and to the querier, with a
verdict; what it had taken of its bundle is burned.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config, Role
from finode.errors import FinodeError, RemoteError, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.asked import while_asked
from finode.node.bundles import BundleShelf, PartyBundle
from finode.node.deployments import Deployment, DeploymentStore, check_offer
from finode.node.driver import RunOutcome
from finode.node.pool import WorkerPool
from finode.node.seat import PartySeat, input_share_bytes
from finode.node.sessions import Session, SessionTable
from finode.node.verdicts import VerdictReached, verdict_of
from finode.smpc import sharing
from finode.smpc.plan import Plan
from finode.wire.committee import Terms
from finode.wire.message import MIB
from finode.wire.preprocessing import BundleStored, OfferBundle
from finode.wire.session import JoinLane
from finode.wire.shares import (
    CHUNK_BYTES,
    DeploymentStored,
    DeploymentWanted,
    Failed,
    Fault,
    Meter,
    OfferDeployment,
    Phase,
    Prepare,
    Prepared,
    SessionProgress,
    SessionResult,
    StartSession,
    Verdict,
)

PROGRESS_INTERVAL_S = 0.2
"""A person sees no finer steps."""
GOODBYE_TIMEOUT_S = 1.0
"""Telling others that a session ended must not hold up a shutdown."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """A session's outcome at this party, and how long its phases took here."""

    outcome: RunOutcome
    bundle_bytes: int
    offline_s: float
    online_s: float


class PartyRole:
    """Computes in the committees in which this node is a party."""

    def __init__(
        self,
        network: Network,
        pool: WorkerPool,
        sessions: SessionTable,
        store: DeploymentStore,
        nursery: trio.Nursery,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._own = network.peer_id
        self._pool = pool
        self._sessions = sessions
        self._store = store
        self._nursery = nursery
        self._config = config
        self._log = log
        self._seats: dict[bytes, PartySeat] = {}
        self._bundles = BundleShelf(config.party.pool_bundles, config.party.pool_memory_mb * MIB)

    def seat(self, terms: Terms) -> PartySeat:
        """Return this node's seat in a sealed committee."""
        committee = terms.committee_id()
        if committee not in self._seats:
            self._seats[committee] = PartySeat(
                terms, self._own, self._network, self._store, self._nursery, self._config
            )
        return self._seats[committee]

    async def leave(self, committee: bytes) -> None:
        """Give up the seat in a committee that expired or was dissolved."""
        self._bundles.burn_committee(committee)
        if (seat := self._seats.pop(committee, None)) is not None:
            await seat.close()

    def seated(self) -> tuple[bytes, ...]:
        """Return the ids of the committees in which this node has a seat."""
        return tuple(self._seats)

    async def take_deployment(self, stream: Stream, terms: Terms, offer: OfferDeployment) -> None:
        """Take this party's share of one model from its owner."""
        plan = check_deployment(stream.peer, terms, offer)
        due = sharing.share_bytes(plan)
        if offer.share_bytes != due:
            raise RemoteProtocolError(
                f"{stream.peer} offers a share of {offer.share_bytes} bytes, its plan needs {due}",
                peer=stream.peer,
            )
        kept = self._store.get(offer.deployment)
        wanted = kept is None or kept.share_digest != offer.share_digest
        if wanted:
            self._store.make_room(plan)
        await stream.send(DeploymentWanted(deployment=offer.deployment, wanted=wanted))
        if wanted:
            timeout_s = self._config.session.deploy_timeout_s
            share = await stream.receive_bulk(offer.share_bytes, timeout_s=timeout_s)
            deployment = Deployment(
                id=offer.deployment,
                plan=plan,
                version=offer.version,
                owner=stream.peer,
                parties=terms.parties,
                dealer=terms.dealer,
                share_digest=offer.share_digest,
            )
            await trio.to_thread.run_sync(self._store.add, deployment, share)
            self._store.announce()
            self._network.announce()
        await stream.send(DeploymentStored(deployment=offer.deployment))

    def withdraw(self, owner: PeerId, version: bytes) -> None:
        """Drop an owner's deployments of one version."""
        kept = {entry.version for entry in self._store.all() if entry.owner == owner}
        self.sweep(owner, frozenset(kept - {version}))

    def sweep(self, owner: PeerId, offered: frozenset[bytes]) -> None:
        """Drop the deployments of versions that an owner, by its own record, offers no more."""
        if dropped := self._store.withdraw(owner, offered):
            self._log.info("deployments dropped: withdrawn by their owner", peer=owner, count=dropped)
            self._network.announce()

    async def prepare(self, stream: Stream, terms: Terms, message: Prepare) -> None:
        """Prepare the seat and tell the querier."""
        began = trio.current_time()
        seat = self.seat(terms)
        async with self._pool.acquire() as worker:
            sent = await seat.prepare(message.run, worker)
            max_batch = await seat.max_batch(worker)
        seconds = trio.current_time() - began
        await stream.send(Prepared(committee=seat.committee, bytes_sent=sent, seconds=seconds, max_batch=max_batch))

    async def take_bundle(self, stream: Stream, terms: Terms, offer: OfferBundle) -> None:
        """Take a bundle from the dealer and keep it until a session has used it, or it is burned.

        The stream stays open as long as the bundle is here: the dealer that is lost before it is taken takes it along.
        """
        if stream.peer != terms.dealer or not 1 <= offer.batch <= terms.max_batch:
            raise RemoteProtocolError(f"{stream.peer} offers a bundle that the terms do not foresee", peer=stream.peer)
        seat = self.seat(terms)
        self._bundles.claim(stream.peer, offer.serial)
        async with self._pool.acquire() as worker:
            bundle = PartyBundle(
                dealer=stream.peer,
                serial=offer.serial,
                committee=seat.committee,
                batch=offer.batch,
                ahead=offer.ahead,
                size=len(offer.seed) + offer.correction_bytes,
                memory_bytes=0,
                worker=worker,
            )
            try:
                await self._receive(stream, seat, offer, bundle)
            except BaseException:
                await self._burn(bundle)
                raise
        try:
            self._bundles.put(bundle)
            await stream.send(BundleStored(serial=offer.serial))
            await self._keep(stream, bundle)
        finally:
            # Also after a session that took it and ended before its run began.
            self._bundles.burn(bundle)
            await self._burn(bundle)

    @staticmethod
    async def _burn(bundle: PartyBundle) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_TIMEOUT_S):
            await bundle.worker.post({"kind": "burn", "bundle": bundle.name})

    async def _receive(self, stream: Stream, seat: PartySeat, offer: OfferBundle, bundle: PartyBundle) -> None:
        """Move a bundle into its worker, piece by piece: this process never holds the whole of it."""
        worker = bundle.worker
        due, bundle.memory_bytes = await seat.begin_bundle(bundle.name, offer.batch, offer.seed, worker)
        if offer.correction_bytes != due:
            raise RemoteProtocolError(
                f"the dealer offers corrections of {offer.correction_bytes} bytes, the plans need {due}",
                peer=stream.peer,
            )
        self._bundles.admit(seat.committee, offer.ahead, bundle.memory_bytes)
        timeout_s = self._config.session.deal_timeout_s
        left = due
        while left:
            piece = await stream.receive_raw(min(CHUNK_BYTES, left), timeout_s=timeout_s)
            if not piece:
                raise RemoteProtocolError("the dealer sent an empty piece of a bundle", peer=stream.peer)
            left -= len(piece)
            await worker.feed({"kind": "feed", "bundle": bundle.name}, [piece])
        await worker.request({"kind": "stored", "bundle": bundle.name})

    async def _keep(self, stream: Stream, bundle: PartyBundle) -> None:
        """Return when a bundle was used or burned; burn it when its dealer is lost, or its worker dies."""

        async def with_dealer() -> None:
            with suppress(RemoteError):
                await stream.receive_frame(raw_limit=0, timeout_s=None)
            if not self._bundles.burn(bundle):
                await bundle.ended.wait()

        async def with_worker() -> None:
            await bundle.worker.died.wait()
            self._bundles.burn(bundle)
            await bundle.ended.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(with_dealer)
            nursery.start_soon(with_worker)
            if not bundle.ahead:
                # Its session was to begin at once: a querier that went away must not leave it lying here.
                with trio.move_on_after(self._config.session.deal_timeout_s):
                    await bundle.ended.wait()
                self._bundles.burn(bundle)
            await bundle.ended.wait()
            nursery.cancel_scope.cancel()

    async def join_lane(self, stream: Stream, terms: Terms, message: JoinLane) -> None:
        """Serve a lane that a party of lower index opened."""
        seat = self.seat(terms)
        if stream.peer not in terms.parties[: seat.party_index]:
            raise RemoteProtocolError(f"the lane of {stream.peer} is not its to open", peer=stream.peer)
        lanes = await seat.lanes()
        await lanes.accept(stream, terms.parties.index(stream.peer), message)

    async def session(self, stream: Stream, terms: Terms, start: StartSession) -> None:
        """Run one session for the querier; raise `VerdictReached` when it ends early."""
        seat = self.seat(terms)
        expected = input_share_bytes(terms, start.batch)
        if start.batch > terms.max_batch or start.input_bytes != expected:
            raise RemoteProtocolError(
                f"{stream.peer} announces {start.input_bytes} bytes for {start.batch} inputs, {expected} are due",
                peer=stream.peer,
            )
        lanes = await seat.lanes()
        place = self._sessions.enter(
            start.session, seat.committee, terms.service, Role.PARTY, terms.querier, start.batch
        )
        with place as session:
            lanes.join(start.session)
            try:
                with trio.move_on_after(terms.session_timeout_s) as limit:
                    await self._compute(stream, seat, start, session)
                if limit.cancelled_caught:
                    late = f"it took over {terms.session_timeout_s} s, which is what the terms allow"
                    raise VerdictReached(Verdict(culprit="", round=session.round, fault=Fault.TIMEOUT, detail=late))
            except FinodeError as error:
                verdict = verdict_of(error, self._own, session.round)
                await self._tell(stream, seat, start.session, verdict)
                raise VerdictReached(verdict) from error
            except trio.Cancelled:
                verdict = Verdict(culprit=self._own, round=session.round, fault=Fault.SHUTTING_DOWN)
                with trio.CancelScope(shield=True):
                    await self._tell(stream, seat, start.session, verdict)
                raise
            finally:
                lanes.leave(start.session)

    async def _tell(self, stream: Stream, seat: PartySeat, session: bytes, verdict: Verdict) -> None:
        lanes = await seat.lanes()
        with trio.move_on_after(GOODBYE_TIMEOUT_S):
            await lanes.tell(session, verdict)
        with trio.move_on_after(GOODBYE_TIMEOUT_S), suppress(RemoteError):
            await stream.send(Failed(subject=session, verdict=verdict))

    async def _compute(self, stream: Stream, seat: PartySeat, start: StartSession, session: Session) -> None:
        """Read the input, wait for the bundle, run, send the output; a word from the querier ends it."""
        timeout_s = self._config.session.deal_timeout_s
        input_share = await self._take_input(stream, start.input_bytes)

        async def compute() -> _Computed:
            began = trio.current_time()
            session.phase = Phase.PREPROCESSING
            await self._report(stream, seat, session)
            bundle = await self._bundles.take(seat.terms.dealer, start.serial, seat.committee, start.batch, timeout_s)
            try:
                waited_s = trio.current_time() - began
                session.phase = Phase.ROUNDS
                await self._report(stream, seat, session)
                with bundle.worker.busy():
                    outcome = await self._run(stream, seat, session, input_share, bundle)
            finally:
                bundle.ended.set()
            offline_s = waited_s + outcome.prepare_s
            return _Computed(outcome, bundle.size, offline_s, max(0.0, trio.current_time() - began - offline_s))

        await self._deliver(stream, start.session, await while_asked(stream, compute))

    async def _take_input(self, stream: Stream, size: int) -> bytearray:
        """Take the input's share, or the querier's word that it will not come."""
        timeout_s = self._config.session.deal_timeout_s
        share = bytearray()
        while len(share) < size:
            limit = min(CHUNK_BYTES, size - len(share))
            piece = await stream.receive_frame(Failed, raw_limit=limit, timeout_s=timeout_s)
            if isinstance(piece, Failed):
                raise VerdictReached(piece.verdict)
            if not isinstance(piece, bytearray) or not piece:
                raise RemoteProtocolError("the querier sent an empty piece of the input", peer=stream.peer)
            share += piece
        return share

    async def _run(
        self, stream: Stream, seat: PartySeat, session: Session, input_share: bytearray, bundle: PartyBundle
    ) -> RunOutcome:
        outcomes: list[RunOutcome] = []

        def on_round(round: int) -> None:
            session.round = round

        async def report() -> None:
            shown = -1
            while True:
                await trio.sleep(PROGRESS_INTERVAL_S)
                if session.round != shown:
                    shown = session.round
                    await self._report(stream, seat, session)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            outcomes.append(await seat.run(session.id, input_share, bundle, on_round))
            nursery.cancel_scope.cancel()
        return outcomes[0]

    @staticmethod
    async def _report(stream: Stream, seat: PartySeat, session: Session) -> None:
        """Tell the querier how far the session is; one party's word is enough."""
        if seat.party_index == 0:
            done = max(session.round, 0)
            await stream.send(SessionProgress(session=session.id, phase=session.phase, done=done, total=0))

    @staticmethod
    async def _deliver(stream: Stream, session: bytes, computed: _Computed) -> None:
        outcome = computed.outcome
        meter = Meter(
            rounds=outcome.rounds,
            bytes_sent=outcome.bytes_sent,
            bundle_bytes=computed.bundle_bytes,
            offline_s=computed.offline_s,
            online_s=computed.online_s,
            compute_s=outcome.compute_s,
        )
        (output,) = outcome.parts
        await stream.send(SessionResult(session=session, output_bytes=len(output), meter=meter))
        await stream.send_bulk(output)


def check_deployment(owner: PeerId, terms: Terms, offer: OfferDeployment) -> Plan:
    """Return the plan of an owner's offer; raise `RemoteProtocolError` unless it is one of the terms' models."""
    for model in terms.models:
        if model.version == offer.version and model.owner == owner:
            if terms.deployment_id(model) == offer.deployment:
                return check_offer(offer.deployment, offer.plan, model.plan_digest, owner)
            break
    raise RemoteProtocolError(f"{owner} offers a deployment that is not in the terms", peer=owner)
