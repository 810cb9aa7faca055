"""A pair of byte streams in memory, with a bounded window each way: a `finode.net.stream.Pipe` within one program."""

from __future__ import annotations

import trio

from finode.net.interface import Buffer
from finode.net.stream import PipeClosed, PipeError
from finode.wire.message import MIB

WINDOW = 2 * MIB
"""Bytes that one end may be ahead of the other."""


class _Half:
    """One direction of a pipe."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class MemoryPipe:
    """One end of a pair of byte streams in memory; a `finode.net.stream.Pipe`."""

    def __init__(self, incoming: _Half, outgoing: _Half) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    @classmethod
    def pair(cls) -> tuple[MemoryPipe, MemoryPipe]:
        """Return the two ends."""
        one, other = _Half(), _Half()
        return cls(one, other), cls(other, one)

    @property
    def waiting(self) -> int:
        """Bytes that have come and were not read."""
        return len(self._incoming.buffer)

    async def read(self) -> bytes | bytearray:
        half = self._incoming
        while not half.buffer and not half.ended:
            await half.changed.wait()
        data, half.buffer = half.buffer, bytearray()
        half.wake()
        return data

    async def write(self, *parts: Buffer) -> None:
        half = self._outgoing
        for part in parts:
            view = memoryview(part)
            while len(view):
                while not half.ended and len(half.buffer) >= WINDOW:
                    if self._incoming.ended:
                        raise PipeClosed("it closed the stream")
                    await half.changed.wait()
                if half.ended:
                    raise PipeError("it closed the stream")
                taken = view[: WINDOW - len(half.buffer)]
                half.buffer += taken
                view = view[len(taken) :]
                half.wake()
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        self._outgoing.ended = True
        for half in (self._outgoing, self._incoming):
            half.wake()

    async def reset(self) -> None:
        for half in (self._outgoing, self._incoming):
            half.ended = True
            half.wake()
