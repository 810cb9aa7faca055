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

from finode.committee.sealed import SealedCommittee
from finode.config import Config, Role
from finode.errors import FinodeError, LocalProtocolError, PeerRefused, RemoteError, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.asked import while_asked
from finode.node.bundles import BundleShelf, Fate, PartyBundle
from finode.node.contribution import Contribution
from finode.node.cosigning import Cosigning, PartyRecord
from finode.node.deployment_records import check_signed_deployment
from finode.node.deployments import Deployment, DeploymentStore, check_offer
from finode.node.members import GOODBYE_TIMEOUT_S
from finode.node.pool import WorkerPool
from finode.node.seat import PartySeat, SeatRun, input_share_bytes
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

READY_TIMEOUT_S = 5.0
"""How long a session waits for a worker that is warm; the other parties wait for longer than that."""
PROGRESS_INTERVAL_S = 0.2
"""A person sees no finer steps."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """A session's outcome at this party, and how long its phases took here."""

    run: SeatRun
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
        contribution: Contribution,
        cosigning: Cosigning,
        nursery: trio.Nursery,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._own = network.peer_id
        self._contribution = contribution
        self._cosigning = cosigning
        self._pool = pool
        self._sessions = sessions
        self._store = store
        self._nursery = nursery
        self._config = config
        self._log = log
        self._seats: dict[bytes, PartySeat] = {}
        self._bundles = BundleShelf(config.party.pool_bundles, config.party.pool_memory_mb * MIB)
        self._taking: dict[bytes, trio.Lock] = {}

    def seat(self, sealed: SealedCommittee) -> PartySeat:
        """Return this node's seat in a sealed committee."""
        if sealed.id not in self._seats:
            self._seats[sealed.id] = PartySeat(
                sealed.terms,
                self._own,
                sealed.holds[self._own],
                self._network,
                self._store,
                self._nursery,
                self._config,
            )
        return self._seats[sealed.id]

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
        deployment = Deployment(
            id=offer.deployment,
            plan=plan,
            version=offer.version,
            owner=stream.peer,
            parties=terms.parties,
            dealer=terms.dealer,
            share_digest=offer.share_digest,
        )
        # Two committees may need the same deployment at the same time: the second finds it kept.
        async with self._taking.setdefault(offer.deployment, trio.Lock()):
            kept = self._store.get(offer.deployment)
            wanted = kept is None or kept.share_digest != offer.share_digest
            if wanted and self._store.in_use(offer.deployment):
                raise PeerRefused("the deployment is in use", peer=self._own, reason=Fault.BUSY)
            if wanted:
                self._store.drop(offer.deployment)
                self._store.make_room(plan)
            await stream.send(DeploymentWanted(deployment=offer.deployment, wanted=wanted))
            if wanted:
                timeout_s = self._config.session.deploy_timeout_s
                share = await stream.receive_bulk(offer.share_bytes, timeout_s=timeout_s)
                await trio.to_thread.run_sync(self._store.write, deployment, share)
                self._store.enter(deployment)
                self._network.announce()
        await stream.send(DeploymentStored(deployment=offer.deployment))
        self._cosigning.hand_in(offer.signed)

    def withdraw(self, owner: PeerId, version: bytes) -> None:
        """Drop an owner's deployments of one version."""
        kept = {entry.version for entry in self._store.all() if entry.owner == owner}
        self.sweep(owner, frozenset(kept - {version}))

    def sweep(self, owner: PeerId, offered: frozenset[bytes]) -> None:
        """Drop the deployments of versions that an owner, by its own record, offers no more."""
        if dropped := self._store.withdraw(owner, offered):
            self._log.info("deployments dropped: withdrawn by their owner", peer=owner, count=dropped)
            self._network.announce()

    async def prepare(self, stream: Stream, sealed: SealedCommittee, message: Prepare) -> None:
        """Prepare the seat and tell the querier."""
        began = trio.current_time()
        seat = self.seat(sealed)

        async def prepare() -> tuple[int, int]:
            async with self._pool.acquire() as worker:
                return await seat.prepare(message.run, worker), await seat.max_batch(worker)

        sent, max_batch = await while_asked(stream, prepare)
        seconds = trio.current_time() - began
        await stream.send(Prepared(committee=seat.committee, bytes_sent=sent, seconds=seconds, max_batch=max_batch))

    async def take_bundle(self, stream: Stream, sealed: SealedCommittee, offer: OfferBundle) -> None:
        """Take a bundle from the dealer and keep it until a session has used it, or it is burned.

        The stream stays open as long as the bundle is here: the dealer that is lost before it is taken takes it along.
        """
        terms = sealed.terms
        if stream.peer != terms.dealer or not terms.foresees(offer.batch):
            raise RemoteProtocolError(f"{stream.peer} offers a bundle that the terms do not foresee", peer=stream.peer)
        seat = self.seat(sealed)
        async with self._pool.acquire(READY_TIMEOUT_S) as worker:
            bundle = PartyBundle(
                dealer=stream.peer,
                serial=offer.serial,
                committee=seat.committee,
                batch=offer.batch,
                ahead=offer.ahead,
                size=len(offer.seed) + offer.correction_bytes,
                worker=worker,
            )
        with self._bundles.claim(bundle):
            try:
                with worker.busy():
                    await self._receive(stream, seat, offer, bundle)
                self._bundles.put(bundle)
                await stream.send(BundleStored(serial=offer.serial))
                await self._keep(stream, bundle)
            finally:
                # Also after a session that took it and ended before its run began.
                self._bundles.burn(bundle)
                with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_TIMEOUT_S):
                    await worker.post({"kind": "burn", "bundle": bundle.name})

    async def _receive(self, stream: Stream, seat: PartySeat, offer: OfferBundle, bundle: PartyBundle) -> None:
        """Move a bundle into its worker, piece by piece: this process never holds the whole of it."""
        worker = bundle.worker
        due, memory_bytes = await seat.begin_bundle(bundle.name, offer.batch, offer.seed, worker)
        if offer.correction_bytes != due:
            raise RemoteProtocolError(
                f"the dealer offers corrections of {offer.correction_bytes} bytes, the plans need {due}",
                peer=stream.peer,
            )
        self._bundles.admit(bundle, memory_bytes)
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
            # Not the dealer's fault: a session that was to use it must not wait for it and then name the dealer.
            self._bundles.burn(bundle, Fate.WORKER_DIED)
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

    async def join_lane(self, stream: Stream, sealed: SealedCommittee, message: JoinLane) -> None:
        """Serve a lane that a party of lower index opened."""
        terms, seat = sealed.terms, self.seat(sealed)
        if stream.peer not in terms.parties[: seat.party_index]:
            raise RemoteProtocolError(f"the lane of {stream.peer} is not its to open", peer=stream.peer)
        lanes = await seat.lanes()
        await lanes.accept(stream, terms.parties.index(stream.peer), message)

    async def session(self, stream: Stream, sealed: SealedCommittee, start: StartSession) -> None:
        """Run one session for the querier; raise `VerdictReached` when it ends early."""
        terms, seat = sealed.terms, self.seat(sealed)
        expected = input_share_bytes(terms, start.batch)
        if not terms.foresees(start.batch) or start.input_bytes != expected:
            raise RemoteProtocolError(
                f"{stream.peer} announces {start.input_bytes} bytes for {start.batch} inputs, {expected} are due",
                peer=stream.peer,
            )
        lanes = await seat.lanes()
        follows = False
        place = self._sessions.enter(
            start.session, seat.committee, terms.service, Role.PARTY, terms.querier, start.batch
        )
        with place as session, self._cosigning.computing(sealed, start) as record:
            try:
                naming = self._bundles.naming(terms.dealer, start.serial, sealed.id, terms.querier)
                with naming, trio.move_on_after(terms.session_timeout_s) as limit:
                    lanes.join(start.session)
                    run = await self._compute(stream, seat, start, session, record)
                    follows = run.outcome.more
                    if follows:
                        self._nursery.start_soon(self._contribution.follow, seat, lanes, start.session, run)
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
                if not follows:
                    lanes.leave(start.session)

    async def _tell(self, stream: Stream, seat: PartySeat, session: bytes, verdict: Verdict) -> None:
        lanes = await seat.lanes()
        with trio.move_on_after(GOODBYE_TIMEOUT_S):
            await lanes.tell(session, verdict)
        with trio.move_on_after(GOODBYE_TIMEOUT_S), suppress(RemoteError, LocalProtocolError):
            await stream.send(Failed(subject=session, verdict=verdict))

    async def _compute(
        self, stream: Stream, seat: PartySeat, start: StartSession, session: Session, record: PartyRecord
    ) -> SeatRun:
        """Read the input, wait for the bundle, run, send the output; a word from the querier ends it."""
        timeout_s = self._config.session.deal_timeout_s
        input_share = await _receive_input(stream, start.input_bytes, timeout_s)

        async def compute() -> _Computed:
            began = trio.current_time()
            session.phase = Phase.PREPROCESSING
            await self._report(stream, seat, session)
            bundle = await self._bundles.take(
                seat.terms.dealer, start.serial, seat.committee, start.batch, seat.terms.querier, timeout_s
            )
            record.bundle_bytes = bundle.size
            try:
                waited_s = trio.current_time() - began
                session.phase = Phase.ROUNDS
                await self._report(stream, seat, session)
                with bundle.worker.busy():
                    run = await self._run(stream, seat, session, record, input_share, bundle)
            finally:
                bundle.ended.set()
            offline_s = waited_s + run.outcome.prepare_s
            return _Computed(run, bundle.size, offline_s, max(0.0, trio.current_time() - began - offline_s))

        computed = await while_asked(stream, compute)
        try:
            await self._deliver(stream, start.session, computed)
        except BaseException:
            await computed.run.driver.abandon()
            raise
        return computed.run

    async def _run(
        self,
        stream: Stream,
        seat: PartySeat,
        session: Session,
        record: PartyRecord,
        input_share: bytearray,
        bundle: PartyBundle,
    ) -> SeatRun:
        outcomes: list[SeatRun | FinodeError] = []
        ended = trio.Event()

        def on_round(round: int, bytes_sent: int) -> None:
            session.round = record.rounds = round
            record.bytes_sent = bytes_sent

        async def report() -> None:
            shown = -1
            while not ended.is_set():
                with trio.move_on_after(PROGRESS_INTERVAL_S):
                    await ended.wait()
                if session.round != shown and not ended.is_set():
                    shown = session.round
                    await self._report(stream, seat, session)

        # Not cancelled at the end: a report cut off in the middle would spoil the stream for the result.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            try:
                outcomes.append(await seat.run(session.id, record.order, input_share, bundle, on_round))
            except FinodeError as error:
                outcomes.append(error)
            finally:
                ended.set()
        if isinstance(outcomes[0], FinodeError):
            raise outcomes[0]
        outcome = outcomes[0].outcome
        record.rounds, record.bytes_sent, record.transcript = outcome.rounds, outcome.bytes_sent, outcome.transcript
        return outcomes[0]

    @staticmethod
    async def _report(stream: Stream, seat: PartySeat, session: Session) -> None:
        """Tell the querier how far the session is; one party's word is enough."""
        if seat.party_index == 0:
            done = max(session.round, 0)
            await stream.send(SessionProgress(session=session.id, phase=session.phase, done=done, total=0))

    @staticmethod
    async def _deliver(stream: Stream, session: bytes, computed: _Computed) -> None:
        outcome = computed.run.outcome
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


async def _receive_input(stream: Stream, size: int, timeout_s: float) -> bytearray:
    """Return the input share; raise `VerdictReached` when the querier ends the session in the middle of it."""
    share = bytearray()
    while len(share) < size:
        limit = min(CHUNK_BYTES, size - len(share))
        frame = await stream.receive_frame(Failed, raw_limit=limit, timeout_s=timeout_s)
        if isinstance(frame, Failed):
            raise VerdictReached(frame.verdict)
        if not isinstance(frame, bytearray) or not frame:
            raise RemoteProtocolError(f"{stream.peer} sent no share of its input", peer=stream.peer)
        share += frame
    return share


def check_deployment(owner: PeerId, terms: Terms, offer: OfferDeployment) -> Plan:
    """Return the plan of an owner's offer; raise `RemoteProtocolError` unless it is one of the terms' models."""
    for model in terms.models:
        if model.version == offer.version and model.owner == owner:
            if terms.deployment_id(model) == offer.deployment:
                check_signed_deployment(offer.signed, terms, model)
                return check_offer(offer.deployment, offer.plan, model.plan_digest, owner)
            break
    raise RemoteProtocolError(f"{owner} offers a deployment that is not in the terms", peer=owner)
