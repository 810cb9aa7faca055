"""A link: one connection to a peer that has said hello, and its heartbeats. No libp2p here.

The dialer of a connection opens a control stream on it and says `Hello`; the other side answers with its own, or with
`Goodbye` and its versions. From then on both send `Ping` and answer with `Pong`. A peer that lets `heartbeat_timeout_s`
pass without a byte is frozen or cut off: the link ends, and with it every stream on it, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from finode.errors import (
    LocalProtocolError,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    RemoteError,
    RemoteProtocolError,
    VersionMismatch,
)
from finode.identity import PeerId
from finode.net.stream import FrameStream, Pacer
from finode.wire.control import Goodbye, Hello, Ping, Pong

HELLO_TIMEOUT_S = 5.0
"""Deadline of each message of the hello."""
MAX_PINGS = 64
"""Unanswered pings of which the time is remembered."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """When to send, and when to give up."""

    interval_s: float
    timeout_s: float


class Link:
    """One live connection to `peer`."""

    def __init__(self, peer: PeerId, *, bulk: bool, dialed: bool, drop: Callable[[], None]) -> None:
        self.peer = peer
        self.bulk = bulk
        self.dialed = dialed
        self.pacer = Pacer()
        self.rtt_ms: float | None = None
        self.heard = trio.current_time()
        self.failure: RemoteError | None = None
        self.frozen = False
        self._drop = drop
        self._streams: set[FrameStream] = set()
        self._ended = trio.Event()

    def __repr__(self) -> str:
        return f"Link({self.peer}{', bulk' if self.bulk else ''})"

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def has_heard(self) -> None:
        """Bytes came from the peer: it is alive."""
        self.heard = trio.current_time()

    def add(self, stream: FrameStream) -> None:
        """Have the stream fail when the link ends."""
        if self.failure is not None:
            stream.fail(self.failure)
        else:
            self._streams.add(stream)

    def discard(self, stream: FrameStream) -> None:
        self._streams.discard(stream)

    def end(self, failure: RemoteError) -> None:
        """End the link: every stream on it fails now, and its connection is dropped."""
        if self.failure is not None:
            return
        self.failure = failure
        for stream in tuple(self._streams):
            stream.fail(failure)
        self._streams.clear()
        self._ended.set()
        self._drop()

    async def wait_ended(self) -> None:
        await self._ended.wait()


def check_hello(ours: Hello, theirs: Hello, peer: PeerId) -> None:
    """Check a peer's hello; raise `VersionMismatch` or `PeerRefused` that says what differs."""
    if theirs.federation != ours.federation:
        raise PeerRefused(
            f"{peer} belongs to the federation {theirs.federation!r}, this node to {ours.federation!r}",
            peer=peer,
            reason="wrong-federation",
            hint="[federation] name must be the same on all nodes",
        )
    if not set(ours.versions) & set(theirs.versions):
        raise VersionMismatch(
            f"{peer} speaks protocol versions {_list(theirs.versions)}, this node {_list(ours.versions)}",
            peer=peer,
            hint="update the older of the two nodes",
        )


def _list(versions: tuple[int, ...]) -> str:
    return ", ".join(map(str, versions))


async def say_hello(stream: FrameStream, ours: Hello) -> Hello:
    """The dialer's side. Returns the peer's hello; raises `VersionMismatch` or `PeerRefused` when it does not fit."""
    await stream.send(ours, timeout_s=HELLO_TIMEOUT_S)
    answer: Hello | Goodbye = await stream.receive(Hello, Goodbye, timeout_s=HELLO_TIMEOUT_S)
    if isinstance(answer, Goodbye):
        raise _told(answer, ours, stream.peer)
    check_hello(ours, answer, stream.peer)
    return answer


async def hear_hello(stream: FrameStream, ours: Hello) -> Hello:
    """The listener's side: returns the dialer's hello, which `answer_hello` answers.

    A hello that does not fit is answered with `Goodbye`, so that both sides know, and raises the same errors.
    """
    theirs = await stream.receive(Hello, timeout_s=HELLO_TIMEOUT_S)
    try:
        check_hello(ours, theirs, stream.peer)
    except RemoteError as error:
        await stream.send(Goodbye(reason=error.message[:200], versions=ours.versions), timeout_s=HELLO_TIMEOUT_S)
        raise
    return theirs


def _told(goodbye: Goodbye, ours: Hello, peer: PeerId) -> RemoteError:
    if not set(goodbye.versions) & set(ours.versions):
        return VersionMismatch(
            f"{peer} speaks protocol versions {_list(goodbye.versions)}, this node {_list(ours.versions)}",
            peer=peer,
            hint="update the older of the two nodes",
        )
    return PeerRefused(f"{peer} refuses this node: {goodbye.reason}", peer=peer, reason="goodbye")


async def keep_alive(link: Link, control: FrameStream, heartbeat: Heartbeat) -> None:
    """Exchange heartbeats on the control stream until the link ends; then it has its `failure`."""
    sent: dict[int, float] = {}

    async def listen(scope: trio.CancelScope) -> None:
        try:
            while True:
                message = await control.receive_frame(Ping, Pong, Goodbye, raw_limit=0, timeout_s=None)
                match message:
                    case Ping(number=number):
                        await control.send(Pong(number=number), timeout_s=heartbeat.timeout_s)
                    case Pong(number=number) if number in sent:
                        measured = (trio.current_time() - sent.pop(number)) * 1000
                        link.rtt_ms = measured if link.rtt_ms is None else 0.7 * link.rtt_ms + 0.3 * measured
                    case Goodbye(reason=reason):
                        link.end(PeerUnreachable(f"{link.peer} said goodbye: {reason}", peer=link.peer))
                        return
                    case _:
                        raise RemoteProtocolError(f"{link.peer} answered what it was not asked", peer=link.peer)
        except RemoteError as error:
            link.end(_as_loss(error, link.peer))
        except LocalProtocolError:
            # The stream was closed on this side, by whoever ended the link.
            pass
        finally:
            scope.cancel()

    async def ping(scope: trio.CancelScope) -> None:
        number = 0
        try:
            while True:
                if len(sent) < MAX_PINGS:
                    sent[number] = trio.current_time()
                await control.send(Ping(number=number), timeout_s=heartbeat.timeout_s)
                number += 1
                await _rest(link, heartbeat)
                silence = trio.current_time() - link.heard
                if silence >= heartbeat.timeout_s:
                    link.frozen = True
                    link.end(PeerUnreachable(f"{link.peer} has been silent for {silence:.1f} s", peer=link.peer))
                    return
        except RemoteError as error:
            link.end(_as_loss(error, link.peer))
        except LocalProtocolError:
            pass
        finally:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, nursery.cancel_scope)
        nursery.start_soon(ping, nursery.cancel_scope)
        await link.wait_ended()
        nursery.cancel_scope.cancel()
    link.end(PeerUnreachable(f"the connection to {link.peer} was closed", peer=link.peer))


async def _rest(link: Link, heartbeat: Heartbeat) -> None:
    # Until the next ping is due, or the moment at which the silence has lasted too long.
    gives_up = link.heard + heartbeat.timeout_s
    now = trio.current_time()
    await trio.sleep(max(0.01, min(heartbeat.interval_s, gives_up - now)))


def _as_loss(error: RemoteError, peer: PeerId) -> RemoteError:
    # Streams raise what the peer's loss means to them; only a broken protocol is worth its own name.
    if isinstance(error, PeerTimeout):
        return PeerUnreachable(error.message, peer=peer)
    return error
