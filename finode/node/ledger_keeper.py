"""Keeps this node's ledger: takes what roles file, what is gossiped and what peers have, and makes peers agree.

A record comes in by one of three ways and goes through the same gate (`_look`, then `_keep`): known already? true? of
this federation, its roster and the past? Only then is it written, in a thread, several at once where several wait.
What is new is told to those who listen, and, where it was made here, gossiped. Gossip is lossy, so ledgers are also
compared (`finode.ledger.reconcile`): with every peer when this node starts, with each that connects, and from time to
time; of two peers the one with the lower id opens.

Whoever hands over a record that is not true loses standing, as with directory records. A proof of a contradiction
condemns its signer at once, and again when the node starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio
from structlog.typing import FilteringBoundLogger

from finode.errors import ConfigError, FinodeError, RemoteError, RemoteProtocolError, StorageFull, WireError
from finode.identity import PeerId
from finode.ledger.envelopes import Record, envelope, open_envelope, verify
from finode.ledger.intake import Objection, objection
from finode.ledger.reconcile import Comparison, answer
from finode.ledger.records import Verified, VerifiedEquivocation
from finode.ledger.store import Added, Ledger
from finode.net.interface import MAX_GOSSIP, Network, Stream
from finode.net.standing import GRAYLIST, PeerFault
from finode.wire import canonical
from finode.wire.message import Message
from finode.wire.receipts import PROTOCOL, Receipt
from finode.wire.reconciliation import (
    MAX_HASHES,
    RECORDS_BYTES,
    Compare,
    Compared,
    Envelope,
    FetchRecords,
    LedgerRecords,
    RecordsTaken,
)

FIRST_MESSAGES: tuple[type[Message], ...] = (Compare,)
"""With which a stream of /finode/receipts/1 says that it is for the keeper."""
STEP_TIMEOUT_S = 20.0
"""Deadline of one message of a sync: the other side may be verifying `RECORDS_BYTES` of records."""
OPEN_TIMEOUT_S = 5.0
SYNC_TIMEOUT_S = 300.0
"""Deadline of a whole sync: a peer that always has one more range to compare must not keep one of `SYNCS` for ever.
What was fetched until then stays, and the next sync goes on from there."""
SYNCS = 2
"""Syncs at once that this node opens: the second peer would mostly tell what the first is telling."""
INLINE = 8
"""Records that are verified in place, 1 ms each; more go to a thread."""
WAITING = 1024
"""Gossiped records that wait to be written; what is beyond is dropped, and comes by sync."""
ASIDE_S = 600.0
"""How long a record that may not enter yet is not asked for again."""
MAX_ASIDE = 10_000


@dataclass(frozen=True, slots=True)
class _Look:
    """What became of one envelope: a record that may be kept, or why not."""

    hash: bytes
    record: Verified | None = None
    error: str = ""
    objection: Objection | None = None


class LedgerKeeper:
    """Implements `finode.node.filing.Filing`. `run` must run for gossip and sync to work."""

    def __init__(
        self,
        ledger: Ledger,
        network: Network,
        *,
        federation: str,
        interval_s: float,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = ledger
        self._network = network
        self._federation = federation
        self._interval_s = interval_s
        self._log = log
        self._clock = clock
        self._topic = f"finode/receipts/1/{federation}"
        self._writing = trio.Lock()
        self._syncs = trio.CapacityLimiter(SYNCS)
        self._syncing: set[PeerId] = set()
        self._heard_by, self._heard = trio.open_memory_channel[Verified](WAITING)
        self._greeted_by, self._greeted = trio.open_memory_channel[PeerId](WAITING)
        self._aside: dict[bytes, float] = {}
        self._listeners: list[Callable[[Sequence[Added]], None]] = []
        self._changed = trio.Event()

    def listen(self, callback: Callable[[Sequence[Added]], None]) -> None:
        """Have `callback` called, on the event loop, with all that becomes new from now on, in order."""
        self._listeners.append(callback)

    async def changed(self) -> None:
        """Wait until something becomes new."""
        await self._changed.wait()

    # -- records coming in ---------------------------------------------------------------------------------------

    async def file(self, record: Record) -> None:
        """See `Filing.file`. When it returns the record is on the disk."""
        verified = verify(record)
        reason = self._objection(verified)
        if reason is not None:
            self._log.warning("record_not_kept", reason=reason.value, hint="compare the roster and the clock")
            return
        added = await self._keep([verified])
        await self._gossip(one.record for one in added if not isinstance(one.record, VerifiedEquivocation))

    def receipts_of(self, session: bytes) -> Sequence[Receipt]:
        """See `Filing.receipts_of`."""
        found = sorted(self.ledger.receipts_of(session), key=lambda one: (-len(one.signers), one.id))
        return [one.receipt for one in found]

    async def take(self, sender: PeerId, envelopes: Sequence[Envelope]) -> int:
        """Take records that a peer handed over and return how many brought something new."""
        unknown = [one for one in envelopes if not self._is_known(one.hash())]
        if len(unknown) > INLINE:
            looks = await trio.to_thread.run_sync(lambda: [self._look(one) for one in unknown])
        else:
            looks = [self._look(one) for one in unknown]
            await trio.lowlevel.checkpoint()
        records = [look.record for look in looks if self._judge(sender, look) and look.record is not None]
        return len(await self._keep(records)) if records else 0

    def _hear(self, sender: PeerId, data: bytes) -> bool:
        """Judge a gossip message; return whether it may be passed on."""
        if self._network.standing(sender) <= GRAYLIST:
            return False
        try:
            received = canonical.decode(data, Envelope)
        except WireError as error:
            self._network.fault(sender, PeerFault.BAD_RECORD.value, error.message)
            return False
        if self._is_known(received.hash()):
            return True
        look = self._look(received)
        if not self._judge(sender, look) or look.record is None:
            return False
        try:
            self._heard_by.send_nowait(look.record)
        except trio.WouldBlock:
            self._log.info("gossip_dropped", waiting=WAITING)
        return True

    def _is_known(self, hash: bytes) -> bool:
        return self.ledger.has(hash) or self._aside.get(hash, 0.0) > self._clock()

    def _look(self, received: Envelope) -> _Look:
        """Verify a record. It touches nothing of this object that changes, so it may run in a thread."""
        hash = received.hash()
        try:
            record = verify(open_envelope(received))
        except WireError as error:
            return _Look(hash, error=error.message)
        return _Look(hash, record, objection=self._objection(record))

    def _objection(self, record: Verified) -> Objection | None:
        now_ms = int(self._clock() * 1000)
        return objection(record, federation=self._federation, accepts=self._accepts, now_ms=now_ms)

    def _accepts(self, peer: PeerId) -> bool:
        return peer == self._network.peer_id or self._network.accepts(peer)

    def _judge(self, sender: PeerId, look: _Look) -> bool:
        """Return whether a record may be kept; what its sender should not have sent costs it its standing."""
        if look.error or look.objection is Objection.WRONG_FEDERATION:
            reason = look.error or "a record of another federation"
            self._network.fault(sender, PeerFault.BAD_RECORD.value, reason)
            self._log.info("record_dropped", sender=sender, error=reason)
            return False
        if look.objection is not None:
            # Rosters differ for a while when they are edited, and so do clocks: nobody's fault.
            if len(self._aside) >= MAX_ASIDE:
                self._aside.clear()
            self._aside[look.hash] = self._clock() + ASIDE_S
            self._log.info("record_put_aside", sender=sender, reason=look.objection.value)
            return False
        return True

    async def _keep(self, records: Sequence[Verified]) -> tuple[Added, ...]:
        """Write records, tell those who listen, and gossip the proofs that followed."""
        async with self._writing:
            added = await trio.to_thread.run_sync(self.ledger.add_all, records)
            if not added:
                return ()
            for callback in self._listeners:
                callback(added)
        self._changed.set()
        self._changed = trio.Event()
        found = [one.record for one in added if isinstance(one.record, VerifiedEquivocation)]
        for proof in found:
            self._condemn(proof.signer)
        await self._gossip(found)
        return added

    def _condemn(self, peer: PeerId) -> None:
        if peer == self._network.peer_id:
            self._log.error("this_node_is_condemned", hint="two nodes must never run with one identity")
        else:
            self._network.condemn(peer, "it signed two bodies that contradict each other")

    async def _gossip(self, records: Iterable[Verified]) -> None:
        for record in records:
            data = canonical.encode(envelope(record.signed))
            if len(data) <= MAX_GOSSIP:
                await self._network.publish(self._topic, data)
            else:
                for peer in self._connected():
                    self._greet(peer)

    # -- tasks ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part in gossip and sync with peers until cancelled."""
        for peer in self.ledger.condemned():
            self._condemn(peer)
        self._network.subscribe(self._topic, self._hear)
        self._network.on_link(self._on_link)
        for peer in self._connected():
            self._greet(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_what_was_heard)
            nursery.start_soon(self._sync_from_time_to_time)
            async for peer in self._greeted:
                nursery.start_soon(self.sync, peer)

    async def _write_what_was_heard(self) -> None:
        async for record in self._heard:
            waiting = [record]
            while self._heard.statistics().current_buffer_used:
                waiting.append(self._heard.receive_nowait())
            try:
                await self._keep(waiting)
            except FinodeError as error:
                self._log.error("records_not_kept", records=len(waiting), error=error.message, hint=error.hint)

    async def _sync_from_time_to_time(self) -> None:
        while True:
            turn = [peer for peer in self._connected() if self._network.peer_id < peer]
            for peer in turn:
                await trio.sleep(self._interval_s / (len(turn) + 1))
                self._greet(peer)
            await trio.sleep(self._interval_s / (len(turn) + 1))

    def _connected(self) -> list[PeerId]:
        return [state.peer for state in self._network.states().values() if state.connected]

    def _on_link(self, peer: PeerId) -> None:
        if self._network.peer_id < peer:
            self._greet(peer)

    def _greet(self, peer: PeerId) -> None:
        try:
            self._greeted_by.send_nowait(peer)
        except trio.WouldBlock:
            self._log.info("sync_skipped", peer=peer)

    # -- sync ----------------------------------------------------------------------------------------------------

    async def sync(self, peer: PeerId) -> None:
        """Bring this ledger and a peer's to agree; a failure is logged, the next sync makes up for it."""
        if peer in self._syncing or self._network.standing(peer) <= GRAYLIST:
            return
        self._syncing.add(peer)
        try:
            async with self._syncs:
                stream = await self._network.open(peer, PROTOCOL, timeout_s=OPEN_TIMEOUT_S)
                try:
                    with trio.move_on_after(SYNC_TIMEOUT_S) as limit:
                        await self._reconcile(stream)
                    if limit.cancelled_caught:
                        self._log.warning("ledger_sync_cut_off", peer=peer, after_s=SYNC_TIMEOUT_S)
                finally:
                    await stream.close()
        except RemoteError as error:
            if isinstance(error, RemoteProtocolError):
                self._network.fault(peer, PeerFault.PROTOCOL.value, error.message)
            self._log.info("ledger_sync_failed", peer=peer, error=error.message)
        except FinodeError as error:
            self._log.error("records_not_kept", peer=peer, error=error.message, hint=error.hint)
        finally:
            self._syncing.discard(peer)

    async def _reconcile(self, stream: Stream) -> None:
        start = b""
        while True:
            with self.ledger.elements() as elements:
                comparison = Comparison.begin(elements, start)
            while comparison.request is not None:
                await stream.send(comparison.request, timeout_s=STEP_TIMEOUT_S)
                compared = await stream.receive(Compared, timeout_s=STEP_TIMEOUT_S)
                with self.ledger.elements() as elements:
                    comparison.receive(elements, compared)
            await self._fetch(stream, [hash for hash in comparison.fetch if not self._is_known(hash)])
            await self._push(stream, comparison.push)
            if not comparison.until:
                return
            if comparison.until <= start:
                raise RemoteProtocolError(f"{stream.peer} compares the same records again", peer=stream.peer)
            start = comparison.until

    async def _fetch(self, stream: Stream, hashes: Sequence[bytes]) -> None:
        while hashes:
            asked = hashes[:MAX_HASHES]
            await stream.send(FetchRecords(hashes=tuple(asked)), timeout_s=STEP_TIMEOUT_S)
            brought = await stream.receive(LedgerRecords, timeout_s=STEP_TIMEOUT_S)
            if not 1 <= brought.done <= len(asked) or len(brought.records) > brought.done:
                raise RemoteProtocolError(f"{stream.peer} answers other than what it was asked for", peer=stream.peer)
            await self.take(stream.peer, brought.records)
            hashes = hashes[brought.done :]

    async def _push(self, stream: Stream, hashes: Sequence[bytes]) -> None:
        while hashes:
            batch = self._batch(hashes)
            if batch.records:
                await stream.send(batch, timeout_s=STEP_TIMEOUT_S)
                await stream.receive(RecordsTaken, timeout_s=STEP_TIMEOUT_S)
            hashes = hashes[batch.done :]

    def _batch(self, hashes: Sequence[bytes]) -> LedgerRecords:
        """Return the records of the first of these hashes, as many as one message carries, one at least."""
        records: list[Envelope] = []
        room = RECORDS_BYTES
        for done, hash in enumerate(hashes):
            (found,) = self.ledger.envelopes([hash])
            if found is None:
                continue
            room -= len(found.data)
            if room < 0 and records:
                return LedgerRecords(records=tuple(records), done=done)
            records.append(found)
        return LedgerRecords(records=tuple(records), done=len(hashes))

    async def serve_sync(self, stream: Stream, first: Message) -> None:
        """The listener's side, from a stream's first message on: answer for as long as the opener asks."""
        if self._network.standing(stream.peer) <= GRAYLIST:
            return
        message: Message = first
        while True:
            match message:
                case Compare():
                    with self.ledger.elements() as elements:
                        reply: Message = answer(elements, message)
                case FetchRecords():
                    reply = self._batch(message.hashes)
                case LedgerRecords():
                    try:
                        reply = RecordsTaken(new=await self.take(stream.peer, message.records))
                    except (StorageFull, ConfigError) as error:
                        self._log.error("records_not_kept", error=error.message, hint=error.hint)
                        return
            await stream.send(reply, timeout_s=STEP_TIMEOUT_S)
            try:
                message = await stream.receive(Compare, FetchRecords, LedgerRecords, timeout_s=STEP_TIMEOUT_S)
            except RemoteError as error:
                if isinstance(error, RemoteProtocolError):
                    raise
                return
