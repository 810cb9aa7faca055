"""Requests and replies between the daemon and a worker, over a socket pair.

    u32 header length | header (msgpack map; "sizes" lists the parts) | the parts, back to back

The worker's side blocks, the daemon's side is trio. Both are our own processes on one machine: a malformed header is
a bug and ends the worker. Parts are raw buffers, read straight into memory of their own.
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


@dataclass(frozen=True, slots=True)
class Envelope:
    """A request or a reply: a small header and large parts, which a repr hides."""

    header: dict[str, Any]
    parts: tuple[Buffer, ...] = field(default=(), repr=False)


def _pack(envelope: Envelope) -> bytes:
    header = envelope.header | {"sizes": [len(part) for part in envelope.parts]}
    packed: bytes = msgpack.packb(header)
    return _LENGTH.pack(len(packed)) + packed


class BlockingChannel:
    """The worker's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, header: dict[str, Any], parts: Sequence[Buffer] = ()) -> None:
        """Send one envelope; raise `OSError` when the daemon is gone."""
        envelope = Envelope(header, tuple(parts))
        self._socket.sendall(_pack(envelope))
        for part in envelope.parts:
            self._socket.sendall(part)

    def has_request(self) -> bool:
        """Whether an envelope, or the end of the channel, can be received without waiting."""
        return bool(self._poll.poll(0))

    def receive(self) -> Envelope | None:
        """Return the next envelope, None at the end of the channel."""
        prefix = self._read(_LENGTH.size)
        if prefix is None:
            return None
        packed = self._read(_LENGTH.unpack(prefix)[0])
        if packed is None:
            return None
        header = msgpack.unpackb(packed)
        parts: list[Buffer] = []
        for size in header.pop("sizes"):
            part = self._read(size)
            if part is None:
                return None
            parts.append(part)
        return Envelope(header, tuple(parts))

    def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if count == 0:
                return None
            view = view[count:]
        return data


class AsyncChannel:
    """The daemon's side. One task may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._sending = trio.Lock()

    async def send(self, envelope: Envelope) -> None:
        """Send one envelope; raise `trio.BrokenResourceError` when the worker is gone or takes nothing.

        A send that has begun is finished even when it is cancelled: half an envelope would cost every session of the
        worker. A worker that does not read on for `STALLED_S` is as good as dead.
        """
        async with self._sending:
            try:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STALLED_S) as scope:
                    await self._stream.send_all(_pack(envelope))
                    for part in envelope.parts:
                        await self._stream.send_all(memoryview(part))
            except trio.ClosedResourceError:
                raise trio.BrokenResourceError from None
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self._stream)
                raise trio.BrokenResourceError

    async def receive(self) -> Envelope | None:
        """Return the next envelope, None at the end of the channel."""
        prefix = await self._read(_LENGTH.size)
        if prefix is None:
            return None
        packed = await self._read(_LENGTH.unpack(prefix)[0])
        if packed is None:
            return None
        header = msgpack.unpackb(packed)
        parts: list[Buffer] = []
        for size in header.pop("sizes"):
            part = await self._read(size)
            if part is None:
                return None
            parts.append(part)
        return Envelope(header, tuple(parts))

    async def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = await self._stream.socket.recv_into(view)
            except OSError:
                return None
            if count == 0:
                return None
            view = view[count:]
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
