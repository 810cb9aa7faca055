"""How records travel: our own is published, others' come by gossip and by sync, and the directory keeps the newest.

On every new link the side that dialed syncs the directory with the peer (/finode/directory/1), and again with one peer
after the other as time goes by, because gossip is lossy. A peer that hands over its own record and was not known
before is introduced: the directory is synced with all others at once, since gossip takes a second or more to include a
newcomer.

    opener   -> listener   DirectorySync(have)
    listener -> opener     DirectoryRecords(newer ones, wanted)
    opener   -> listener   DirectoryRecords(those wanted), if any
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio
from structlog.typing import FilteringBoundLogger

from finode.errors import RemoteError, RemoteProtocolError, WireError
from finode.identity import PeerId
from finode.net.directory import FAULT_OF, Directory, Offer, RecordWriter, Verdict, from_gossip, to_gossip
from finode.net.interface import Stream
from finode.net.standing import PeerFault, Standing
from finode.wire.directory import PROTOCOL, DirectoryRecords, DirectorySync, NodeRecord
from finode.wire.signed import Signed

SYNC_TIMEOUT_S = 5.0
"""Deadline of each step of a sync."""
COALESCE_S = 0.1
"""What changes within this time goes into one record."""

Open = Callable[[PeerId, str], Awaitable[Stream]]


class Exchange:
    """Keeps the directory up to date, and the federation's about us."""

    def __init__(
        self,
        directory: Directory,
        writer: RecordWriter,
        standing: Standing,
        *,
        own: PeerId,
        offer: Callable[[], Offer],
        addresses: Callable[[], tuple[str, ...]],
        versions: tuple[int, ...],
        interval_s: float,
        open_stream: Open,
        publish: Callable[[bytes], Awaitable[None]],
        on_record: Callable[[NodeRecord], None],
        introduce: Callable[[PeerId], None],
        blame: Callable[[PeerId, float, str], None],
        clock: Callable[[], float],
        log: FilteringBoundLogger,
    ) -> None:
        self._directory = directory
        self._writer = writer
        self._standing = standing
        self._own = own
        self._offer = offer
        self._addresses = addresses
        self._versions = versions
        self._interval_s = interval_s
        self._open = open_stream
        self._publish = publish
        self._on_record = on_record
        self._introduce = introduce
        self._blame = blame
        self._clock = clock
        self._log = log
        self._changed = trio.Event()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def records(self) -> Mapping[PeerId, NodeRecord]:
        return self._directory.records(self._now_ms())

    def record_of(self, peer: PeerId) -> NodeRecord | None:
        return self._directory.record_of(peer, self._now_ms())

    def forget_unaccepted(self) -> None:
        """Drop the records of peers that are no longer accepted."""
        self._directory.drop_unaccepted()

    # -- ours ----------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Publish a new record soon."""
        self._changed.set()

    def renew(self) -> Signed:
        """Write a new record of this node into the directory and return it."""
        signed = self._writer.write(
            self._offer(), addresses=self._addresses(), versions=self._versions, now_ms=self._now_ms()
        )
        self._directory.insert(signed, self._now_ms())
        return signed

    async def keep_publishing(self) -> None:
        """Publish a record now, when something changed, and every interval, until cancelled."""
        while True:
            self._changed = trio.Event()
            signed = self.renew()
            await self._publish(to_gossip(signed))
            with trio.move_on_after(self._interval_s):
                await self._changed.wait()
                await trio.sleep(COALESCE_S)
            self._directory.expire(self._now_ms())

    # -- others' -------------------------------------------------------------------------------------------------

    def hear(self, sender: PeerId, data: bytes) -> bool:
        """Take a gossip message; return whether it may be passed on."""
        if self._standing.graylisted(sender):
            return False
        try:
            signed = from_gossip(data)
        except WireError as error:
            self._blame(sender, PeerFault.BAD_RECORD.value, error.message)
            return False
        return self.take(sender, signed).is_good

    def take(self, sender: PeerId, signed: Signed) -> Verdict:
        """Judge a record that `sender` handed over, and lower its standing when it should not have."""
        if signed.signer == self._own:
            return self._take_own(signed)
        verdict = self._directory.insert(signed, self._now_ms())
        if verdict is Verdict.ACCEPTED:
            record = self._directory.record_of(signed.signer, self._now_ms())
            if record is not None:
                self._on_record(record)
        elif not verdict.is_good:
            # Two rosters that name an organization differently are for people to mend; the rest mends itself.
            log = self._log.warning if verdict is Verdict.WRONG_ORGANIZATION else self._log.info
            log("record_dropped", sender=sender, signer=signed.signer, verdict=verdict.value)
            if verdict is Verdict.CONTRADICTORY:
                self._blame(signed.signer, PeerFault.BAD_RECORD.value, "two records with one sequence")
            elif verdict in FAULT_OF:
                self._blame(sender, FAULT_OF[verdict].value, f"a record that is {verdict.value}")
        return verdict

    def _take_own(self, signed: Signed) -> Verdict:
        # Newer than what we say now: from before a restart, when our clock was ahead. Go on above it.
        verdict = self._directory.insert(signed, self._now_ms())
        record = self._directory.record_of(self._own, self._now_ms())
        if verdict is Verdict.ACCEPTED and record is not None:
            self._writer.skip_to(record.sequence)
            self.announce()
        return Verdict.KNOWN

    # -- sync ----------------------------------------------------------------------------------------------------

    async def serve(self, stream: Stream) -> None:
        """The listener's side of a sync."""
        sync = await stream.receive(DirectorySync, timeout_s=SYNC_TIMEOUT_S)
        if self._standing.graylisted(stream.peer):
            return
        answer = self._directory.answer(sync)
        await stream.send(answer, timeout_s=SYNC_TIMEOUT_S)
        if answer.wanted:
            await self._take_all(stream, answer.wanted)

    async def sync(self, peer: PeerId) -> None:
        """The opener's side; a failure is logged, the next sync makes up for it."""
        try:
            stream = await self._open(peer, PROTOCOL)
            try:
                await stream.send(self._directory.have(), timeout_s=SYNC_TIMEOUT_S)
                request = await self._take_all(stream, None)
                if request.wanted:
                    await stream.send(self._directory.wanted(request), timeout_s=SYNC_TIMEOUT_S)
            finally:
                await stream.close()
        except RemoteError as error:
            self._log.info("sync_failed", peer=peer, error=error.message)

    async def _take_all(self, stream: Stream, wanted: tuple[PeerId, ...] | None) -> DirectoryRecords:
        answer = await stream.receive(DirectoryRecords, timeout_s=SYNC_TIMEOUT_S)
        for signed in answer.records:
            if wanted is not None and signed.signer not in wanted:
                raise RemoteProtocolError(f"{stream.peer} sent a record that nobody wanted", peer=stream.peer)
            is_new = self.record_of(stream.peer) is None
            self.take(stream.peer, signed)
            if is_new and self.record_of(stream.peer) is not None:
                self._introduce(stream.peer)
            # Each costs a signature check; a large directory must not stall heartbeats.
            await trio.lowlevel.checkpoint()
        return answer

    async def keep_syncing(self, peers: Callable[[], tuple[PeerId, ...]]) -> None:
        """Sync with every connected peer once an interval, one after the other, until cancelled."""
        while True:
            turn = [peer for peer in peers() if self._own < peer]
            for peer in turn:
                await trio.sleep(self._interval_s / (len(turn) + 1))
                await self.sync(peer)
            await trio.sleep(self._interval_s / (len(turn) + 1))
