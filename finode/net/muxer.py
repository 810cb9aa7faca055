"""Yamux as finode uses it: py-libp2p's, with what is dangerous in it mended, and our own pipe on its streams.

`Muxer` differs from libp2p's `Yamux` in that

- a cancelled writer does not leave half an encrypted frame behind, which would end the whole connection: a frame that
  is begun is finished, by another task when that may take long, and a connection that takes no bytes for `STALL_S` is
  dropped;
- answers to the peer's frames and new window are written by a task of their own, so whoever reads never waits for the
  peer to read: two ends that wait so for each other would both stand still;
- what the peer may have buffered here is bounded (libp2p only logs a peer that ignores its window).

`StreamPipe` reads and writes one yamux stream without libp2p's detours: writing waits for the window under the caller's
deadline (libp2p gives up after 5 s); reading takes all that has come, without copying, and grants new window only
when half of it is used up (libp2p sends an update for each read, which doubles the frames of a small round trip).
Yamux starts every stream with 256 KiB, and a larger first frame would wait a round trip for more. So streams between
nodes that have said hello start with `WINDOW` at both ends, and nothing is sent for it (`StreamPipe.widen`).
It reaches into names that libp2p calls private; the version is pinned, and `tests/net` runs all of it for real.
"""

from __future__ import annotations

import select
import struct

import trio
from libp2p.abc import ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_RST,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from finode.net.interface import Buffer
from finode.net.stream import PipeClosed, PipeError
from finode.wire.message import KIB, MIB

STALL_S = 5.0
"""A connection that takes no bytes for so long is dropped: TCP buffers are full and the peer reads nothing."""
WINDOW = 2 * MIB
"""Bytes that a peer may send on one stream ahead of its reader: 40 ms at 400 Mbit/s without a pause."""
NARROW_WINDOW = 256 * KIB
"""Yamux's first window, which the control stream keeps."""
CHUNK = 65535 - 16 - HEADER_SIZE
"""Payload of one yamux frame, so that it fits one Noise message (libp2p's own frames take two)."""
STRANGER_BUFFER = 256 * KIB
"""What a connection may have buffered before its peer has said hello."""
MEMBER_BUFFER = 256 * MIB
"""What a connection may have buffered here unread: the full windows of 128 streams that nobody reads."""
STREAM_BUFFER = 2 * WINDOW
"""What one stream may have buffered unread: twice what its window allows."""
MAX_FRAME = MIB
"""Bytes of one yamux frame; ours have 64 KiB, and nobody's need more."""
SMALL = 8 * KIB
"""A frame that certainly fits where the kernel says that it takes more: a third of the smallest send buffer."""
MAX_REPLIES = 1024
"""Answers (acknowledgements, pongs, resets, window) that may wait to be written: a peer beyond that reads nothing."""
_FIRST_POLL_S = 0.0005
_LAST_POLL_S = 0.008


def _is_reply(header: bytes) -> bool:
    _, kind, flags, _, _ = struct.unpack(YAMUX_HEADER_FORMAT, header)
    return bool(flags & (FLAG_ACK | FLAG_RST)) or (kind == TYPE_WINDOW_UPDATE and not flags)


class Flooded(trio.TooSlowError):
    """The peer sent more than its window. The one exception out of a body read that makes libp2p's loop drop the
    connection instead of going on after it has lost its place."""


class Muxer(Yamux):
    """One yamux connection."""

    def __init__(self, secured_conn: ISecureConn, peer_id: ID, *, is_initiator: bool) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=is_initiator)
        self.buffer_limit = STRANGER_BUFFER
        self._replies_waiting = 0
        self._turn = trio.Semaphore(1)
        self._poll: select.poll | None = None

    async def _write_frame(self, data: bytes) -> None:
        if len(data) == HEADER_SIZE and _is_reply(data) and self._nursery is not None:
            if self._replies_waiting >= MAX_REPLIES:
                raise RawConnError("the peer asks for answers and does not read them")
            try:
                self._nursery.start_soon(self._reply, data)
            except RuntimeError:
                raise RawConnError("the connection is closed") from None
            self._replies_waiting += 1
            return
        await self._write_whole(data)

    async def _reply(self, data: bytes) -> None:
        try:
            await self._write_whole(data)
        except (BaseLibp2pError, OSError):
            # The connection is gone, which its reading task notices by itself.
            return
        finally:
            self._replies_waiting -= 1

    async def _write_whole(self, data: bytes) -> None:
        await self._turn.acquire()
        if len(data) <= SMALL and self._takes_more():
            try:
                # The kernel takes it at once, so nobody notices that this cannot be cancelled.
                await self._write_shielded(data)
            finally:
                self._turn.release()
            return
        written = trio.Event()
        try:
            assert self._nursery is not None  # noqa: S101 - nothing is written before `start`
            self._nursery.start_soon(self._write_later, data, written)
        except RuntimeError:
            self._turn.release()
            raise RawConnError("the connection is closed") from None
        await written.wait()
        if self.event_shutting_down.is_set():
            raise RawConnError("the connection was lost")

    async def _write_later(self, data: bytes, written: trio.Event) -> None:
        # The caller may have gone by now; its frame is finished all the same.
        try:
            await self._write_shielded(data)
        except (BaseLibp2pError, OSError):
            self.event_shutting_down.set()
        finally:
            self._turn.release()
            written.set()

    async def _write_shielded(self, data: bytes) -> None:
        with trio.CancelScope(deadline=trio.current_time() + STALL_S, shield=True) as scope:
            await self.secured_conn.write(data)
        if scope.cancelled_caught:
            await self.drop()
            raise RawConnError(f"the connection took no data for {STALL_S:g} s")

    def _takes_more(self) -> bool:
        """Whether the kernel has room for a frame now: it says so while a third of its buffer is free."""
        if self._poll is None:
            self._poll = select.poll()
            stream = self.secured_conn.conn.read_writer.read_write_closer.stream.stream
            self._poll.register(stream.socket.fileno(), select.POLLOUT)
        return bool(self._poll.poll(0))

    async def open_stream(self) -> YamuxStream:
        # libp2p loses one of the 256 slots for good when an opener is cancelled in the middle.
        while not self.stream_backlog_semaphore.value:  # noqa: ASYNC110 - the semaphore is libp2p's
            await trio.sleep(_LAST_POLL_S)
        with trio.CancelScope(shield=True):
            return await super().open_stream()

    async def _read_data_body(self, length: int) -> bytes:
        sizes = [len(buffer) for buffer in self.stream_buffers.values()]
        if length > MAX_FRAME or max(sizes, default=0) > STREAM_BUFFER or sum(sizes) + length > self.buffer_limit:
            raise Flooded
        body: bytes = await super()._read_data_body(length)
        return body

    async def drop(self) -> None:
        """Close the socket at once, without the farewell that a frozen peer would not take."""
        with trio.CancelScope(shield=True):
            await self.secured_conn.close()


class StreamPipe:
    """Bytes over one yamux stream; a `finode.net.stream.Pipe`."""

    def __init__(self, stream: YamuxStream) -> None:
        self._stream = stream
        self._conn: Yamux = stream.conn
        self._id: int = stream.stream_id
        self._window_size = NARROW_WINDOW
        self._ungranted = 0

    def widen(self) -> None:
        """Take `WINDOW` as the window both ways from here on, as the peer does: a protocol that is served after the
        hello alone has such streams. Nothing may have been written on it that did not fit into the narrow one."""
        more, self._window_size = WINDOW - self._window_size, WINDOW
        self._stream.send_window += more
        self._stream.recv_window += more

    async def read(self) -> bytes | bytearray:
        if self._ungranted >= self._window_size // 2:
            await self._grant()
        conn = self._conn
        while True:
            buffer: bytearray | None = conn.stream_buffers.get(self._id)
            if buffer:
                conn.stream_buffers[self._id] = bytearray()
                self._ungranted += len(buffer)
                return buffer
            stream = self._stream
            if buffer is None or stream.recv_closed or stream.closed or conn.event_shutting_down.is_set():
                return b""
            event: trio.Event = conn.stream_events[self._id]
            await event.wait()
            if conn.stream_events.get(self._id) is event:
                conn.stream_events[self._id] = trio.Event()

    async def _grant(self) -> None:
        size, self._ungranted = self._ungranted, 0
        self._stream.recv_window += size
        try:
            await self._stream.send_window_update(size)
        except (BaseLibp2pError, OSError) as error:
            raise PipeError(f"the connection was lost ({error})") from None

    async def write(self, *parts: Buffer) -> None:
        stream = self._stream
        pieces = [memoryview(part) for part in parts if len(part)]
        try:
            while pieces:
                space = min(await self._space(), CHUNK)
                taken: list[Buffer] = [b""]
                size = 0
                while pieces and size < space:
                    piece = pieces[0]
                    room = space - size
                    if len(piece) <= room:
                        taken.append(pieces.pop(0))
                        size += len(piece)
                    else:
                        taken.append(piece[:room])
                        pieces[0] = piece[room:]
                        size += room
                stream.send_window -= size
                taken[0] = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, self._id, size)
                await self._conn._write_frame(b"".join(taken))
        except (BaseLibp2pError, OSError) as error:
            raise PipeError(f"the connection was lost ({error})") from None

    async def _space(self) -> int:
        # Yamux tells nobody when the window opens, so this looks, ever less often.
        stream, pause = self._stream, _FIRST_POLL_S
        while True:
            if stream.closed or stream.send_closed or self._conn.event_shutting_down.is_set():
                raise PipeError("it closed the stream")
            window: int = stream.send_window
            if window > 0:
                return window
            if stream.recv_closed:
                # It will not open again: who has closed its end reads no more.
                raise PipeClosed("it closed the stream")
            await trio.sleep(pause)
            pause = min(2 * pause, _LAST_POLL_S)

    def unread(self, data: bytes | bytearray) -> None:
        """Put bytes back that a negotiation had read too many."""
        buffer = self._conn.stream_buffers.get(self._id)
        if buffer is not None and data:
            buffer[:0] = data
            self._conn.stream_events[self._id].set()

    async def close(self) -> None:
        try:
            await self._stream.close()
        except (BaseLibp2pError, OSError):
            return

    async def reset(self) -> None:
        try:
            await self._stream.reset()
        except (BaseLibp2pError, OSError):
            return
