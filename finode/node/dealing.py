"""The pool of bundles that a dealer keeps for one committee, for as long as its querier keeps the stream open.

    asked       a querier that finds no bundle ready asks for one by its serial; it is dealt at once
    ahead       from the first session of a batch on, `[dealer] pool_bundles` for it lie ready at the parties; one that
                was used is replaced when its session is over, so that dealing does not slow the rounds down

The dealer holds no bundle: it streams the corrections to the last party as they are made, layer by layer. What it keeps
is a stream to each party per bundle; when a party closes its own, the bundle is spent, and when the dealer closes, or
is lost, the parties burn what no session has taken.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio
from structlog.typing import FilteringBoundLogger

from finode.committee.book import CommitteeBook
from finode.config import Config, Role
from finode.errors import FinodeError, PeerRefused, PeerUnreachable, RemoteError, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.channel import Buffer
from finode.node.negotiator import now_ms
from finode.node.pool import WorkerPool, WorkerProcess
from finode.node.seat import program_of
from finode.node.sessions import SessionTable
from finode.node.tasks import first_failure, together
from finode.node.verdicts import verdict_of
from finode.smpc.plan import Plan
from finode.wire import canonical
from finode.wire.committee import RefusalReason, Terms
from finode.wire.preprocessing import PROTOCOL, SERIAL_BYTES, BundleStored, Deal, Dealing, Dealt, OfferBundle, Spent
from finode.wire.shares import Failed, Fault, Phase

MAX_BATCHES = 4
"""Batch sizes of one committee for which bundles are dealt ahead: those asked for last."""
MAX_ASKED = 64
"""Bundles that one querier asks for at once; more than a node's sessions is misuse."""
MAX_SERIALS = 65_536
"""Bundles that one committee may ask for in its life, as their serials are remembered; each costs quota as well."""
TELL_TIMEOUT_S = 1.0
"""A querier that reads nothing for so long gets no bundles any more; it must not hold up a shutdown."""
RETRY_S = 5.0
"""Pause after a bundle could not be dealt ahead: a party has no room, or is lost. Doubled each time, for every try
deals in vain."""
LONGEST_RETRY_S = 60.0


@dataclass(slots=True)
class PoolSpace:
    """What a dealer's bundles dealt ahead weigh, of all committees together."""

    limit_bytes: int
    used_bytes: int = 0

    def fits(self, size: int) -> bool:
        return self.used_bytes + size <= self.limit_bytes


@dataclass(frozen=True, slots=True)
class GivenBundle:
    """A bundle that all parties have, and the streams that stand for it."""

    serial: bytes
    batch: int
    bytes_sent: tuple[int, ...]
    seconds: float
    streams: tuple[Stream, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class BundleMaker:
    """Makes bundles of one committee and gives them to its parties."""

    network: Network
    workers: WorkerPool
    secret: bytes = field(repr=False)
    terms: Terms
    plans: tuple[Plan, ...]
    config: Config

    async def correction_bytes(self, batch: int) -> int:
        """Return the size of a bundle's corrections."""
        async with self.workers.acquire() as worker:
            reply = await worker.request({"kind": "sizes", **self._program(batch)})
        size: int = reply.header["correction_bytes"]
        return size

    def _program(self, batch: int) -> dict[str, object]:
        program = program_of(self.terms, self.plans, batch)
        return {"engine": self.terms.engine, "program": canonical.encode(program)}

    async def give(self, serial: bytes, batch: int, *, ahead: bool) -> GivenBundle:
        """Make a bundle and give it to all parties; raise a `RemoteError` naming the one that does not take it."""
        began = time.monotonic()
        run = b"deal" + secrets.token_bytes(12)
        streams: list[Stream] = []
        async with self.workers.acquire() as worker:
            try:
                reply = await worker.request({"kind": "deal", "run": run, **self._program(batch)}, [self.secret])
                calls: list[Callable[[], Awaitable[int]]] = []
                last = len(self.terms.parties) - 1
                for index, (peer, seed) in enumerate(zip(self.terms.parties, reply.parts, strict=True)):
                    offer = OfferBundle(
                        committee=self.terms.committee_id(),
                        serial=serial,
                        batch=batch,
                        ahead=ahead,
                        seed=bytes(seed),
                        correction_bytes=reply.header["correction_bytes"] if index == last else 0,
                    )
                    calls.append(partial(self._give_one, peer, offer, run, worker, streams))
                # The last party's corrections first: the others would begin round 0 and wait for it under a deadline.
                to_last = await calls[-1]()
                sent = [*await together(calls[:-1]), to_last]
            except BaseException:
                await close_all(streams)
                raise
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await worker.post({"kind": "drop", "run": run})
        return GivenBundle(serial, batch, tuple(sent), time.monotonic() - began, tuple(streams))

    async def _give_one(
        self, peer: PeerId, offer: OfferBundle, run: bytes, worker: WorkerProcess, streams: list[Stream]
    ) -> int:
        timeout_s = self.config.session.deal_timeout_s
        stream = await self.network.open(peer, PROTOCOL, timeout_s=self.config.session.answer_timeout_s)
        streams.append(stream)
        await stream.send(offer)
        try:
            if offer.correction_bytes:
                await _stream_corrections(stream, run, worker, timeout_s)
            reply = await stream.receive(BundleStored, Failed, timeout_s=timeout_s)
        except PeerUnreachable:
            # A party that refuses closes its stream while we still send: its reason is what counts.
            reply = await _last_word(stream)
        if isinstance(reply, Failed):
            fault = reply.verdict.fault
            raise PeerRefused(
                f"{peer} did not take its bundle: {reply.verdict.detail or fault}", peer=peer, reason=fault
            )
        return len(offer.seed) + offer.correction_bytes


async def _last_word(stream: Stream) -> Failed:
    return await stream.receive(Failed, timeout_s=1.0)


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


async def close_all(streams: list[Stream] | tuple[Stream, ...]) -> None:
    """Close streams, cancelled or not."""
    with trio.CancelScope(shield=True):
        for stream in streams:
            await stream.close()


class DealerPool:
    """Deals for one committee until its querier closes `stream`.

    `on_dealt` is told the serial, batch, bytes to each party and seconds of every bundle that all parties have.
    `serials` are those of all bundles dealt so far, in this pool and in those of the same committee before it.
    """

    def __init__(
        self,
        stream: Stream,
        maker: BundleMaker,
        book: CommitteeBook,
        space: PoolSpace,
        sessions: SessionTable,
        serials: set[bytes],
        on_dealt: Callable[[bytes, int, tuple[int, ...], float], None],
        log: FilteringBoundLogger,
    ) -> None:
        self._stream = stream
        self._on_dealt = on_dealt
        self._maker = maker
        self._terms = maker.terms
        self._committee = maker.terms.committee_id()
        self._book = book
        self._space = space
        self._sessions = sessions
        self._log = log
        self._target = maker.config.dealer.pool_bundles
        self._batches: list[int] = []
        self._sizes: dict[int, int] = {}
        self._ahead: dict[bytes, int] = {}
        self._given: dict[bytes, trio.CancelScope] = {}
        self._withdrawn: set[bytes] = set()
        self._asked = 0
        self._serials = serials
        self._changed = trio.Event()

    @property
    def ahead(self) -> int:
        """How many bundles dealt ahead are at the parties or on their way."""
        return len(self._ahead)

    async def serve(self, first: Deal) -> None:
        """Deal what is asked, and ahead of it; return when the querier closes the stream.

        Raises the `FinodeError` that kept a bundle from being dealt which was asked for.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refill, nursery)
                message: Deal | None = first
                while message is not None:
                    nursery.start_soon(self._answer, message)
                    message = await self._next_question()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_failure(group) from None

    async def _next_question(self) -> Deal | None:
        while True:
            try:
                message = await self._stream.receive_frame(Deal, Spent, Failed, raw_limit=0, timeout_s=None)
            except PeerUnreachable:
                return None
            if isinstance(message, Deal):
                return message
            if not isinstance(message, Spent):
                return None
            if (scope := self._given.get(message.serial)) is not None:
                scope.cancel()

    @contextmanager
    def _until_given_up(self, serial: bytes) -> Iterator[None]:
        """Stop what is done about a bundle when the querier says that it is not needed any more."""
        with trio.CancelScope() as scope:
            self._given[serial] = scope
            try:
                yield
            finally:
                del self._given[serial]

    async def _answer(self, message: Deal) -> None:
        if message.serial in self._ahead:
            raise RemoteProtocolError("a bundle was asked for that is dealt ahead", peer=self._stream.peer)
        if message.serial in self._serials:
            # The parties would take a second bundle of one serial for this dealer's fault.
            raise RemoteProtocolError("the same bundle was asked for twice", peer=self._stream.peer)
        if len(self._serials) >= MAX_SERIALS:
            raise PeerRefused("a committee gets no more bundles than that", reason=RefusalReason.QUOTA_USED.value)
        self._serials.add(message.serial)
        with self._until_given_up(message.serial):
            await self._deal_now(message)
        self._want(message.batch)

    async def _deal_now(self, message: Deal) -> None:
        if message.committee != self._committee or not self._terms.foresees(message.batch):
            raise RemoteProtocolError("a bundle that the terms do not foresee was asked for", peer=self._stream.peer)
        if self._asked >= MAX_ASKED:
            raise RemoteProtocolError("more bundles are asked for at once than sessions run", peer=self._stream.peer)
        self._asked += 1
        try:
            given = await self._deal(message)
        except FinodeError as error:
            verdict = verdict_of(error, self._maker.network.peer_id)
            if verdict.culprit == self._stream.peer:
                raise
            # The pool goes on: one bundle that cannot be dealt now is no word on the committee's other sessions.
            await self._tell(Failed(subject=message.serial, verdict=verdict))
            return
        finally:
            self._asked -= 1
        await self._hand_over(given, ahead=False)

    async def _deal(self, message: Deal) -> GivenBundle:
        self._book.begin(self._committee, message.serial, message.batch, now_ms())
        try:
            place = self._sessions.enter(
                message.serial,
                self._committee,
                self._terms.service,
                Role.DEALER,
                self._terms.querier,
                message.batch,
            )
            with place as session:
                session.phase = Phase.PREPROCESSING
                return await self._maker.give(message.serial, message.batch, ahead=False)
        finally:
            self._book.end(message.serial)

    async def _hand_over(self, given: GivenBundle, *, ahead: bool) -> None:
        """Tell the querier of a bundle, and return when it is spent."""
        self._on_dealt(given.serial, given.batch, given.bytes_sent, given.seconds)
        dealt = Dealt(
            serial=given.serial,
            batch=given.batch,
            ahead=ahead,
            bytes_sent=given.bytes_sent,
            seconds=given.seconds,
        )
        try:
            await self._tell(dealt)
            await _any_closed(given.streams)
            await self._tell(Spent(serial=given.serial))
        finally:
            await close_all(given.streams)

    async def _tell(self, message: Dealing | Dealt | Spent | Failed) -> None:
        # Shielded: a send that is cut off would end the stream, and with it the pool.
        with trio.CancelScope(shield=True):
            await self._stream.send(message, timeout_s=TELL_TIMEOUT_S)

    def _want(self, batch: int) -> None:
        if batch in self._batches:
            self._batches.remove(batch)
        self._batches = [batch, *self._batches][:MAX_BATCHES]
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _refill(self, nursery: trio.Nursery) -> None:
        pause_s = RETRY_S
        while True:
            changed = self._changed
            batch = await self._lacking()
            if batch is None:
                await changed.wait()
                continue
            serial = secrets.token_bytes(SERIAL_BYTES)
            self._ahead[serial] = batch
            self._serials.add(serial)
            self._space.used_bytes += self._sizes[batch]
            await self._tell(Dealing(serial=serial, batch=batch))
            try:
                given = await self._maker.give(serial, batch, ahead=True)
            except FinodeError as error:
                self._release(serial)
                await self._tell(Spent(serial=serial))
                self._log.info("dealt no bundle ahead", batch=batch, reason=error.message)
                if isinstance(error, PeerRefused) and error.reason == Fault.BUSY:
                    self._withdraw_older(batch)
                with trio.move_on_after(pause_s):
                    await self._changed.wait()
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
            except BaseException:
                self._release(serial)
                raise
            else:
                pause_s = RETRY_S
                nursery.start_soon(self._lay_out, given)

    def _withdraw_older(self, batch: int) -> None:
        """Give up a bundle of the batch size that was asked for longest ago, so that parties that are full have room
        for one of a size that was asked for later."""
        older = self._batches[self._batches.index(batch) + 1 :] if batch in self._batches else []
        for size in reversed([*older, *(set(self._ahead.values()) - set(self._batches))]):
            for serial, ahead in self._ahead.items():
                if ahead == size and serial in self._given and serial not in self._withdrawn:
                    self._withdrawn.add(serial)
                    self._given[serial].cancel()
                    return

    async def _lacking(self) -> int | None:
        """Return a batch size of which a bundle more is to be dealt ahead, if there is room for it."""
        if self._asked or not self._target:
            return None
        for batch in self._batches:
            if sum(size == batch for size in self._ahead.values()) >= self._target:
                continue
            if batch not in self._sizes:
                self._sizes[batch] = await self._maker.correction_bytes(batch)
            if batch <= self._quota_left() and self._space.fits(self._sizes[batch]):
                return batch
        return None

    def _quota_left(self) -> int:
        try:
            return self._book.left(self._committee, now_ms()) - sum(self._ahead.values())
        except PeerRefused:  # the committee is over; what was asked for is still dealt
            return 0

    async def _lay_out(self, given: GivenBundle) -> None:
        try:
            with self._until_given_up(given.serial):
                await self._hand_over(given, ahead=True)
            if given.serial in self._withdrawn:
                await self._tell(Spent(serial=given.serial))
                return
            with suppress(PeerRefused):  # its committee may be over
                self._book.spend(self._committee, given.batch, now_ms())
        finally:
            self._withdrawn.discard(given.serial)
            self._release(given.serial)

    def _release(self, serial: bytes) -> None:
        self._space.used_bytes -= self._sizes[self._ahead.pop(serial)]
        self._wake()


async def _any_closed(streams: tuple[Stream, ...]) -> None:
    """Return when a party has closed its stream or is lost."""

    async def watch(stream: Stream, scope: trio.CancelScope) -> None:
        with suppress(RemoteError):
            await stream.receive_frame(raw_limit=0, timeout_s=None)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(watch, stream, nursery.cancel_scope)
