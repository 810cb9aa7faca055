"""A framed stream to one peer, over any pipe of bytes: libp2p's (`muxer.py`) or one in memory (`memory.py`).

There is no reader task per stream. NETWORK.md asks for one because py-libp2p's own write gives up after 5 s when the
reader is busy, and because of that nobody must be busy. Our pipe does not have that flaw: the connection has one task
that always reads and puts bytes into the stream's window, and a sender that finds the window full waits, under its own
deadline. So the window is the bounded queue, a busy receiver slows its sender and nobody else, and a frame costs no
hop between tasks. And the limit of a raw frame, which only the receiver of the moment knows, is checked before the
payload is asked for, which a task that reads ahead could not do.

A stream that failed once is reset and raises the same error ever after. A cancelled receive may be taken up again;
a cancelled send leaves half a frame behind, so it resets the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar, cast

import trio

from finode.errors import (
    LocalProtocolError,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    RemoteError,
    RemoteProtocolError,
    WireError,
)
from finode.identity import PeerId
from finode.net.framing import FrameReader, admit, message_header, raw_header
from finode.net.interface import Buffer
from finode.wire.message import Message, decode
from finode.wire.shares import CHUNK_BYTES

M = TypeVar("M", bound=Message)

SEND_TIMEOUT_S = 10.0
"""Deadline of a send that states none: longer than the heartbeat needs to notice that a peer is frozen."""
RESET_TIMEOUT_S = 1.0
"""Telling a peer of a reset is a courtesy; it must not hold up the one who reports the error."""


class PipeError(Exception):
    """The bytes cannot go on; the text says why. `FrameStream` turns it into `PeerUnreachable`."""


class PipeClosed(PipeError):
    """The peer has said its last word and reads no more. What it said can still be read: `FrameStream` does not send on
    the stream again, and goes on receiving."""


class NotServed(PipeError):
    """The peer does not serve the stream's protocol, or not to this node. `FrameStream` makes it `PeerRefused`."""


class Pipe(Protocol):
    """A reliable, flow-controlled pair of byte streams. All but `close` and `reset` raise `PipeError`."""

    async def read(self) -> bytes | bytearray:
        """Return bytes as they come, at least one; b"" at the end. A cancelled read loses nothing."""

    async def write(self, *parts: Buffer) -> None:
        """Write the parts, back to back; wait while the reader's window is full."""

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


class Pacer:
    """Lets the bulk to one peer wait while anything urgent to it is being sent, and one bulk chunk go at a time."""

    def __init__(self) -> None:
        self._urgent = 0
        self._idle = trio.Event()
        self._idle.set()
        self._turn = trio.Lock()

    def urgent(self) -> _Urgent:
        return _Urgent(self)

    async def __aenter__(self) -> None:
        await self._turn.acquire()
        try:
            while self._urgent:
                await self._idle.wait()
        except BaseException:
            self._turn.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._turn.release()

    def enter(self) -> None:
        self._urgent += 1
        if self._urgent == 1:
            self._idle = trio.Event()

    def leave(self) -> None:
        self._urgent -= 1
        if not self._urgent:
            self._idle.set()


class _Urgent:
    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer

    def __enter__(self) -> None:
        self._pacer.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pacer.leave()


class FrameStream:
    """Implements `finode.net.interface.Stream`. `on_end` is called once, when the stream is closed or has failed."""

    def __init__(
        self,
        pipe: Pipe,
        peer: PeerId,
        *,
        pacer: Pacer,
        unread: bytes | bytearray = b"",
        on_end: Callable[[FrameStream], None] | None = None,
        on_heard: Callable[[], None] | None = None,
    ) -> None:
        self._pipe = pipe
        self._peer = peer
        self._pacer = pacer
        self._reader = FrameReader()
        if unread:
            self._reader.feed(unread)
        self._on_end = on_end
        self._on_heard = on_heard
        self._sending = trio.Lock()
        self._receiving = False
        self._failure: RemoteError | None = None
        self._peer_closed = False
        self._closed = False
        self._waits: set[trio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"FrameStream({self._peer})"

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def send(self, message: Message, *, timeout_s: float = SEND_TIMEOUT_S) -> None:
        payload = message.encode()
        with self._pacer.urgent():
            await self._send(message_header(message.code, len(payload)), payload, timeout_s=timeout_s)

    async def send_raw(self, data: Buffer, *, timeout_s: float = SEND_TIMEOUT_S) -> None:
        view = memoryview(data).cast("B")
        with self._pacer.urgent():
            await self._send(raw_header(len(view)), view, timeout_s=timeout_s)

    async def send_bulk(self, data: Buffer, *, timeout_s: float = 60.0) -> None:
        """As in `Stream`; `timeout_s` is the longest that one chunk may take."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            async with self._pacer:
                await self._send(raw_header(len(chunk)), chunk, timeout_s=timeout_s)

    async def receive(self, *types: type[M], timeout_s: float) -> M:
        return cast(M, await self._receive(types, None, timeout_s))

    async def receive_raw(self, limit: int, *, timeout_s: float) -> bytearray:
        return cast(bytearray, await self._receive((), limit, timeout_s))

    async def receive_bulk(self, size: int, *, timeout_s: float) -> bytearray:
        data = bytearray()
        while len(data) < size:
            chunk = await self.receive_raw(min(CHUNK_BYTES, size - len(data)), timeout_s=timeout_s)
            if not chunk:
                raise await self._break(RemoteProtocolError(f"{self._peer} sent an empty piece of bulk"))
            data += chunk
        return data

    async def receive_frame(
        self, *types: type[Message], raw_limit: int, timeout_s: float | None
    ) -> Message | bytearray:
        return await self._receive(types, raw_limit, timeout_s)

    async def close(self) -> None:
        if not self._closed:
            self._end()
            # An unshielded close that is cancelled would leave the stream half open until the connection ends.
            with trio.CancelScope(deadline=trio.current_time() + RESET_TIMEOUT_S, shield=True):
                await self._pipe.close()

    async def reset(self) -> None:
        if not self._closed:
            self._end()
            with trio.CancelScope(deadline=trio.current_time() + RESET_TIMEOUT_S, shield=True):
                await self._pipe.reset()

    def fail(self, error: RemoteError) -> None:
        """The peer was lost: every pending call raises `error` now, and every later one."""
        if self._failure is None:
            self._failure = error
        for scope in self._waits:
            scope.cancel()
        self._end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            if self._on_end is not None:
                self._on_end(self)

    def _check(self) -> None:
        if self._failure is not None:
            # A new object each time: a raised one carries its traceback and context along.
            raise type(self._failure)(self._failure.message, peer=self._peer, hint=self._failure.hint)
        if self._closed:
            raise LocalProtocolError(f"the stream to {self._peer} is closed")

    async def _break(self, error: RemoteError) -> RemoteError:
        """Remember the error, reset the stream and return the error for raising."""
        if not error.peer:
            error.peer = self._peer
        if self._failure is None:
            self._failure = type(error)(error.message, peer=self._peer, hint=error.hint)
        await self.reset()
        return error

    async def _send(self, header: bytes, payload: Buffer, *, timeout_s: float) -> None:
        self._check()
        started = finished = False
        if self._peer_closed:
            raise self._lost_while_sending("it closed the stream")
        with trio.move_on_after(timeout_s) as scope:
            self._waits.add(scope)
            try:
                async with self._sending:
                    self._check()
                    started = True
                    await self._pipe.write(header, payload)
                    finished = True
            except PipeClosed:
                self._check()
                self._peer_closed = True
                raise self._lost_while_sending("it closed the stream") from None
            except PipeError as error:
                self._check()
                raise await self._break(self._lost_while_sending(error)) from None
            finally:
                self._waits.discard(scope)
                if started and not finished and not self._peer_closed:
                    # Half a frame is on its way: nothing that follows could be understood.
                    await self.reset()
        if not finished:
            self._check_unless_closed()
            raise await self._break(PeerTimeout(f"{self._peer} took no data for {timeout_s:g} s"))

    def _lost_while_sending(self, why: object) -> PeerUnreachable:
        return PeerUnreachable(f"{self._peer} was lost while sending: {why}", peer=self._peer)

    def _check_unless_closed(self) -> None:
        if self._failure is not None:
            self._check()

    async def _receive(
        self, types: tuple[type[Message], ...], raw_limit: int | None, timeout_s: float | None
    ) -> Message | bytearray:
        self._check()
        if self._receiving:
            raise LocalProtocolError(f"two tasks receive from the stream to {self._peer}")
        self._receiving = True
        received: list[Message | bytearray] = []
        try:
            with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as scope:
                self._waits.add(scope)
                try:
                    received.append(await self._next(types, raw_limit))
                except NotServed as error:
                    raise await self._break(
                        PeerRefused(f"{self._peer} refused: {error}", reason="not-served")
                    ) from None
                except PipeError as error:
                    self._check_unless_closed()
                    raise await self._break(PeerUnreachable(f"{self._peer} was lost: {error}")) from None
                except WireError as error:
                    raise await self._break(
                        RemoteProtocolError(f"{self._peer} broke the protocol: {error.message}")
                    ) from None
                finally:
                    self._waits.discard(scope)
        finally:
            self._receiving = False
        if not received:
            self._check_unless_closed()
            raise await self._break(PeerTimeout(f"{self._peer} did not answer within {timeout_s:g} s"))
        return received[0]

    async def _next(self, types: tuple[type[Message], ...], raw_limit: int | None) -> Message | bytearray:
        reader = self._reader
        waited = False
        while (header := reader.header()) is None:
            await self._more()
            waited = True
        admit(header, types, raw_limit)
        while (payload := reader.payload()) is None:
            await self._more()
            waited = True
        if not waited:
            # A sender that is ahead of us must not keep this task from ever yielding.
            await trio.lowlevel.checkpoint()
        return payload if header.is_raw else decode(header.code, bytes(payload))

    async def _more(self) -> None:
        data = await self._pipe.read()
        if not data:
            raise PipeError("it closed the stream" if self._reader.at_boundary else "the stream ended in mid-frame")
        self._reader.feed(data)
        if self._on_heard is not None:
            self._on_heard()
