"""Requests and replies between the daemon and a worker, over a socket pair.

    u32 header length | header (msgpack map; "sizes" lists the parts) | the parts, back to back

The worker's side blocks, the daemon's side is trio. Both are our own processes on one machine: a malformed header is
a bug and ends the worker. Parts are raw buffers in memory of their own.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import trio

Buffer = bytes | bytearray | memoryview
STALLED_S = 60.0
"""A worker reads whenever it does not compute; longer than any one computation it is dead. Closing the channel ends a
send at once, so this does not hold up a shutdown."""
_LENGTH = struct.Struct(">I")
_READ_BYTES = 64 * 1024
"""A read takes the frames of a round of a few inputs at once."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request or a reply: a small header and large parts, which a repr hides."""

    header: dict[str, Any]
    parts: tuple[Buffer, ...] = field(default=(), repr=False)


def _pack(envelope: Envelope) -> bytes:
    header = envelope.header | {"sizes": [len(part) for part in envelope.parts]}
    packed: bytes = msgpack.packb(header)
    return _LENGTH.pack(len(packed)) + packed


def _unsent(pieces: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of `pieces` after `sent` bytes of them."""
    for index, piece in enumerate(pieces):
        if sent < len(piece):
            return [piece[sent:], *pieces[index + 1 :]]
        sent -= len(piece)
    return []


def _pieces(envelope: Envelope) -> list[memoryview]:
    """Return the buffers of an envelope, for one call that sends them all: the other side then wakes up once."""
    parts = [memoryview(part).cast("B") for part in envelope.parts]
    return [memoryview(_pack(envelope)), *(part for part in parts if len(part))]


class _Incoming:
    """Envelopes out of the bytes that come. Small ones come whole in one read; the rest of a large part is read
    straight into its memory."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: dict[str, Any] | None = None
        self._sizes: list[int] = []
        self._parts: list[Buffer] = []

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Envelope | tuple[bytearray, int] | None:
        """Return the envelope that is whole; None if more bytes must be fed; or the part that is being read, and how
        many of its bytes are there: fill the others, then call `filled`."""
        if self._header is None and not self._take_header():
            return None
        while len(self._parts) < len(self._sizes):
            size = self._sizes[len(self._parts)]
            if len(self._buffer) < size:
                part = self._buffer + bytes(size - len(self._buffer))
                have, self._buffer = len(self._buffer), bytearray()
                return part, have
            self._parts.append(self._buffer[:size])
            del self._buffer[:size]
        header, self._header = self._header, None
        assert header is not None  # noqa: S101 - for mypy: it was taken above
        return Envelope(header, tuple(self._parts))

    def filled(self, part: bytearray) -> None:
        self._parts.append(part)

    def _take_header(self) -> bool:
        if len(self._buffer) < _LENGTH.size:
            return False
        end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return False
        self._header = msgpack.unpackb(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]
        self._sizes, self._parts = self._header.pop("sizes"), []
        return True

    @property
    def holds_more(self) -> bool:
        """Whether bytes of a next envelope came along."""
        return bool(self._buffer)


class BlockingChannel:
    """The worker's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._incoming = _Incoming()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, header: dict[str, Any], parts: Sequence[Buffer] = ()) -> None:
        """Send one envelope; raise `OSError` when the daemon is gone."""
        pieces = _pieces(Envelope(header, tuple(parts)))
        while pieces:
            pieces = _unsent(pieces, self._socket.sendmsg(pieces))

    def has_request(self) -> bool:
        """Whether an envelope, or the end of the channel, can be received without waiting for its beginning."""
        return self._incoming.holds_more or bool(self._poll.poll(0))

    def receive(self) -> Envelope | None:
        """Return the next envelope, None at the end of the channel."""
        while not isinstance(found := self._incoming.next(), Envelope):
            if found is None:
                if not (data := self._socket.recv(_READ_BYTES)):
                    return None
                self._incoming.feed(data)
                continue
            part, have = found
            view = memoryview(part)
            while have < len(part):
                if not (count := self._socket.recv_into(view[have:])):
                    return None
                have += count
            self._incoming.filled(part)
        return found


class AsyncChannel:
    """The daemon's side. One task may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._incoming = _Incoming()
        self._sending = trio.Lock()

    async def send(self, envelope: Envelope) -> None:
        """Send one envelope; raise `trio.BrokenResourceError` when the worker is gone or takes nothing.

        A send that has begun is finished even when it is cancelled: half an envelope would cost every session of the
        worker. A worker that does not read on for `STALLED_S` is as good as dead.
        """
        pieces = _pieces(envelope)
        async with self._sending:
            try:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STALLED_S) as scope:
                    while pieces:
                        pieces = _unsent(pieces, await self._stream.socket.sendmsg(pieces))
            except (OSError, trio.ClosedResourceError):
                raise trio.BrokenResourceError from None
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self._stream)
                raise trio.BrokenResourceError

    async def receive(self) -> Envelope | None:
        """Return the next envelope, None at the end of the channel."""
        try:
            while not isinstance(found := self._incoming.next(), Envelope):
                if found is None:
                    if not (data := await self._stream.socket.recv(_READ_BYTES)):
                        return None
                    self._incoming.feed(data)
                    continue
                part, have = found
                view = memoryview(part)
                while have < len(part):
                    if not (count := await self._stream.socket.recv_into(view[have:])):
                        return None
                    have += count
                self._incoming.filled(part)
        except OSError:
            return None
        return found

    async def aclose(self) -> None:
        await self._stream.aclose()
