"""Lanes: one stream per pair of parties and committee, over which all sessions of the committee run.

The party of lower index opens the lane; both give half of a key from which the pair's zero-sharing is made, which the
dealer never sees. Each party also gives the same 32 bytes to all others: all of these together make a nonce that the
committee's parties alone know, which keys the transcripts of its sessions.

A reader per lane puts each frame into its run's inbox. When a lane is lost, every run of the committee ends with the
verdict that the other party was lost; the next run opens the lane again.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import trio
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from finode.errors import FinodeError, PeerTimeout, PeerUnreachable, RemoteError, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Buffer, Network, Stream
from finode.node.inbox import Inbox
from finode.node.tasks import together
from finode.node.verdicts import VerdictReached, verdict_of
from finode.wire import canonical
from finode.wire.session import KEY_BYTES, PROTOCOL, ROUND_HEADER, JoinLane, LaneJoined
from finode.wire.shares import Failed, Fault, Verdict

MAX_EARLY_RUNS = 32
"""Runs whose first frame may arrive before the querier's message that starts them here."""
QUEUED_FRAMES = 8
"""Frames that wait for a lane's writer: about one for each session that shares it."""
TELL_TIMEOUT_S = 1.0
PATIENCE_S = 10.0
SLOWEST_LINK_BYTES_PER_S = 500_000
"""4 Mbit/s: a link that is slower is a fault, not a link."""
EARLY_BYTES = 64 << 20
"""What frames of runs that have not begun here may take, on all lanes of a committee together."""
RECENT_RUNS = 4096
"""Run ids remembered, so that a late frame of an ended run is dropped and an id is never used again."""


def transfer_timeout_s(size: int, patience_s: float = PATIENCE_S) -> float:
    """Return how long `size` bytes may take: the patience, and what they need on the slowest link that is served."""
    return patience_s + size / SLOWEST_LINK_BYTES_PER_S


@dataclass(slots=True)
class Lane:
    """An open lane to one other party. `key` is the pair's secret, `contribution` the other's part of the nonce."""

    stream: Stream
    party_index: int
    key: bytes = field(repr=False)
    contribution: bytes = field(repr=False)
    _outgoing: trio.MemorySendChannel[Buffer | Failed]
    _queue: trio.MemoryReceiveChannel[Buffer | Failed]

    @classmethod
    def on(cls, stream: Stream, party_index: int, key: bytes, contribution: bytes) -> Lane:
        return cls(stream, party_index, key, contribution, *trio.open_memory_channel[Buffer | Failed](QUEUED_FRAMES))

    async def send_round(self, run: bytes, round: int, frame: Buffer) -> None:
        """Queue this party's frame of one round; raise `PeerUnreachable` when the lane is lost.

        The lane's own writer sends it: a session that is cancelled must not leave half a frame to the others.
        """
        await self._put(b"".join((ROUND_HEADER.pack(run, round), frame)))

    def queue_round(self, run: bytes, round: int, frame: Buffer) -> bool:
        """As `send_round`, if that needs no waiting; False if it does, and then nothing was queued."""
        try:
            self._outgoing.send_nowait(b"".join((ROUND_HEADER.pack(run, round), frame)))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def tell(self, run: bytes, verdict: Verdict) -> None:
        """Queue the news that a run ended."""
        await self._put(Failed(subject=run, verdict=verdict))

    async def _put(self, item: Buffer | Failed) -> None:
        try:
            await self._outgoing.send(item)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerUnreachable(f"the lane to {self.stream.peer} was lost", peer=self.stream.peer) from None

    async def write(self) -> None:
        """Send what is queued until the lane closes; raise `RemoteError` when it is lost."""
        with suppress(trio.ClosedResourceError):
            async for item in self._queue:
                if isinstance(item, Failed):
                    await self.stream.send(item)
                else:
                    await self.stream.send_raw(item, timeout_s=transfer_timeout_s(len(item)))

    def shut(self) -> None:
        """Wake those who wait to send: nothing goes over this lane any more."""
        self._outgoing.close()
        self._queue.close()

    def zero_key(self, run: bytes, order: bytes) -> bytes:
        """Return the pair's 32-byte key for one run. Parties that were given different orders have different keys: the
        output of their session is noise, so that a querier gains nothing by ordering one session twice."""
        info = b"finode/zero\0" + run + canonical.digest("order", order)
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self.key)


class LaneSet:
    """All lanes of one committee at one party."""

    def __init__(
        self,
        network: Network,
        nursery: trio.Nursery,
        committee: bytes,
        parties: tuple[PeerId, ...],
        party_index: int,
        frame_limit: int,
        timeout_s: float,
    ) -> None:
        self._network = network
        self._nursery = nursery
        self._committee = committee
        self._parties = parties
        self._index = party_index
        self._frame_limit = frame_limit
        self._timeout_s = timeout_s
        self._contribution = secrets.token_bytes(KEY_BYTES)
        self._lanes: dict[int, Lane] = {}
        self._changed = trio.Event()
        self._opening = trio.Lock()
        self._inboxes: dict[bytes, Inbox] = {}
        self._early: OrderedDict[bytes, list[tuple[int, int, Buffer]]] = OrderedDict()
        self._failed: OrderedDict[bytes, Verdict] = OrderedDict()
        self._ended: OrderedDict[bytes, None] = OrderedDict()

    async def connect(self) -> dict[int, Lane]:
        """Return a live lane to every other party, opening those that are ours to open.

        Raises `PeerTimeout` or `PeerUnreachable` naming the party.
        """
        async with self._opening:
            await together([partial(self._reach, j) for j in range(len(self._parties)) if j != self._index])
        return dict(self._lanes)

    async def _reach(self, j: int) -> None:
        if j > self._index:
            if j not in self._lanes:
                await self._open(j)
            return
        with trio.move_on_after(self._timeout_s):
            while j not in self._lanes:
                await self._changed.wait()
        if j not in self._lanes:
            peer = self._parties[j]
            raise PeerTimeout(f"party {j} ({peer}) did not open its lane within {self._timeout_s:.0f} s", peer=peer)

    async def _open(self, j: int) -> None:
        half = secrets.token_bytes(KEY_BYTES)
        stream = await self._network.open(self._parties[j], PROTOCOL, timeout_s=self._timeout_s)
        try:
            await stream.send(JoinLane(committee=self._committee, key=half, contribution=self._contribution))
            reply = await stream.receive(LaneJoined, Failed, timeout_s=self._timeout_s)
        except BaseException:
            await stream.reset()
            raise
        if isinstance(reply, Failed):
            await stream.close()
            raise VerdictReached(reply.verdict)
        if not isinstance(reply, LaneJoined) or reply.committee != self._committee:
            await stream.reset()
            raise RemoteProtocolError(f"party {j} joined a lane of another committee", peer=stream.peer)
        self._nursery.start_soon(self._pump, self._add(stream, j, half + reply.key, reply.contribution))

    def transcript_key(self, run: bytes) -> bytes:
        """Return the key of one run's transcript, out of all parties' contributions. All lanes must be open."""
        given = {j: lane.contribution for j, lane in self._lanes.items()} | {self._index: self._contribution}
        nonce = canonical.digest("nonce", b"".join(given[j] for j in sorted(given)))
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"finode/transcript\0" + run).derive(nonce)

    async def accept(self, stream: Stream, j: int, message: JoinLane) -> None:
        """Serve a lane that party `j` opened, until it is lost. It replaces an earlier one."""
        half = secrets.token_bytes(KEY_BYTES)
        if j in self._lanes:
            await self._lanes[j].stream.reset()
        await stream.send(LaneJoined(committee=self._committee, key=half, contribution=self._contribution))
        await self._pump(self._add(stream, j, message.key + half, message.contribution))

    def _add(self, stream: Stream, j: int, key: bytes, contribution: bytes) -> Lane:
        lane = self._lanes[j] = Lane.on(stream, j, key, contribution)
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        return lane

    async def _pump(self, lane: Lane) -> None:
        try:
            directions: list[Callable[[], Awaitable[None]]] = [partial(self._read, lane), lane.write]
            await together(directions)
        except FinodeError as error:
            self._lose(lane, error)
            await lane.stream.reset()

    async def _read(self, lane: Lane) -> None:
        limit = self._frame_limit + ROUND_HEADER.size
        while True:
            frame = await lane.stream.receive_frame(Failed, raw_limit=limit, timeout_s=None)
            if isinstance(frame, bytearray):
                self._deliver(lane.party_index, frame)
            elif isinstance(frame, Failed):
                self.fail(frame.subject, frame.verdict)

    def _deliver(self, party: int, data: bytearray) -> None:
        if len(data) < ROUND_HEADER.size:
            raise RemoteProtocolError("a frame without a header came over a lane", peer=self._parties[party])
        run, round = ROUND_HEADER.unpack_from(data)
        frame = memoryview(data)[ROUND_HEADER.size :]
        if (inbox := self._inboxes.get(run)) is not None:
            inbox.put(party, round, frame)
        elif run not in self._ended:
            self._keep_early(party, run, round, frame)

    def _keep_early(self, party: int, run: bytes, round: int, frame: Buffer) -> None:
        """Keep a frame of a run that has not begun here. A party can only be at its first round then."""
        waiting = self._early.get(run, [])
        if round != 0 or any(sender == party for sender, _, _ in waiting):
            raise RemoteProtocolError(f"party {party} is ahead in a run that has not begun", peer=self._parties[party])
        kept = sum(len(data) for frames in self._early.values() for _, _, data in frames)
        if (run not in self._early and len(self._early) >= MAX_EARLY_RUNS) or kept + len(
            frame
        ) > EARLY_BYTES + self._frame_limit:
            raise RemoteProtocolError(
                f"party {party} sends frames of runs that nobody began", peer=self._parties[party]
            )
        self._early.setdefault(run, []).append((party, round, frame))

    def _lose(self, lane: Lane, error: FinodeError) -> None:
        lane.shut()
        if self._lanes.get(lane.party_index) is not lane:
            return
        del self._lanes[lane.party_index]
        for inbox in self._inboxes.values():
            peer_error = error if isinstance(error, RemoteError) else RemoteError(error.message, peer=lane.stream.peer)
            inbox.fail(verdict_of(peer_error, self._parties[self._index], max(inbox.round, 0)))

    def join(self, run: bytes) -> Inbox:
        """Return the inbox of a new run; raise `RemoteProtocolError` when the id was used before."""
        if run in self._ended or run in self._inboxes:
            raise RemoteProtocolError("a session id came a second time")
        inbox = self._inboxes[run] = Inbox(self._parties, self._index)
        if (verdict := self._failed.pop(run, None)) is not None:
            inbox.fail(verdict)
        for party, round, frame in self._early.pop(run, []):
            inbox.put(party, round, frame)
        return inbox

    def inbox(self, run: bytes) -> Inbox:
        """Return the inbox of a run that was joined."""
        return self._inboxes[run]

    def leave(self, run: bytes) -> None:
        """Forget a run that ended here."""
        self._inboxes.pop(run, None)
        self._early.pop(run, None)
        self._failed.pop(run, None)
        self._ended[run] = None
        while len(self._ended) > RECENT_RUNS:
            self._ended.popitem(last=False)

    def fail(self, run: bytes, verdict: Verdict) -> None:
        """End a run here with another member's verdict; one that has not begun here will not begin."""
        if (inbox := self._inboxes.get(run)) is not None:
            inbox.fail(verdict)
        elif run not in self._ended:
            self._early.pop(run, None)
            self._failed[run] = verdict
            while len(self._failed) > MAX_EARLY_RUNS:
                self._failed.popitem(last=False)

    async def tell(self, run: bytes, verdict: Verdict) -> None:
        """Tell all other parties that a run ended; those that cannot be told will notice by themselves."""
        for lane in list(self._lanes.values()):
            with trio.move_on_after(TELL_TIMEOUT_S), suppress(PeerUnreachable):
                await lane.tell(run, verdict)

    async def close(self) -> None:
        """Close all lanes: the committee is over, and so is whatever still ran on it."""
        over = Verdict(culprit="", round=-1, fault=Fault.NOT_SEALED, detail="the committee ended")
        for inbox in self._inboxes.values():
            inbox.fail(over)
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            lane.shut()
            await lane.stream.close()
