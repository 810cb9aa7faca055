"""Hello and heartbeats over pipes in memory, under trio's mock clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from finode.errors import PeerRefused, PeerUnreachable, RemoteError, RemoteProtocolError, VersionMismatch
from finode.identity import Identity
from finode.net.links import Heartbeat, Link, hear_hello, keep_alive, say_hello
from finode.net.pipe import MemoryPipe
from finode.net.stream import FrameStream, Pacer
from finode.wire.control import Goodbye, Hello, Ping, Pong

DIALER, LISTENER = (Identity.generate().peer_id for _ in range(2))
BEAT = Heartbeat(interval_s=2.0, timeout_s=6.0)
pytestmark = pytest.mark.trio


def hello(federation: str = "finode", versions: tuple[int, ...] = (1,)) -> Hello:
    return Hello(federation=federation, versions=versions, agent="test")


def pair() -> tuple[FrameStream, FrameStream]:
    one, other = MemoryPipe.pair()
    return FrameStream(one, LISTENER, pacer=Pacer()), FrameStream(other, DIALER, pacer=Pacer())


async def greet(dialers: Hello, listeners: Hello) -> tuple[Hello | RemoteError, Hello | RemoteError]:
    """Run both sides; return what each has in the end: the other's hello, or its error."""
    near, far = pair()
    ends: dict[str, Hello | RemoteError] = {}

    async def dial() -> None:
        try:
            ends["dialer"] = await say_hello(near, dialers)
        except RemoteError as error:
            ends["dialer"] = error

    async def listen() -> None:
        try:
            ends["listener"] = await hear_hello(far, listeners)
            await far.send(listeners)
        except RemoteError as error:
            ends["listener"] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        nursery.start_soon(listen)
    return ends["dialer"], ends["listener"]


async def test_hellos_that_fit_are_exchanged() -> None:
    ours, theirs = hello(versions=(1, 2)), hello(versions=(2, 3))
    assert await greet(ours, theirs) == (theirs, ours)


async def test_both_sides_are_told_both_version_sets() -> None:
    dialer, listener = await greet(hello(versions=(1, 2)), hello(versions=(7,)))
    assert isinstance(dialer, VersionMismatch)
    assert isinstance(listener, VersionMismatch)
    assert f"{LISTENER} speaks protocol versions 7, this node 1, 2" in dialer.message
    assert f"{DIALER} speaks protocol versions 1, 2, this node 7" in listener.message
    assert (dialer.peer, listener.peer) == (LISTENER, DIALER)


async def test_another_federation_is_refused_and_told() -> None:
    dialer, listener = await greet(hello("one"), hello("other"))
    assert isinstance(dialer, PeerRefused)
    assert isinstance(listener, PeerRefused)
    assert "'one'" in dialer.message
    assert "'other'" in dialer.message
    assert listener.reason == "wrong-federation"


async def test_a_listener_that_lies_about_its_version_is_refused() -> None:
    near, far = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send, hello(versions=(9,)))
        with pytest.raises(VersionMismatch):
            await say_hello(near, hello())


class Beating:
    """Both ends of a link; `near` beats, the test plays `far`."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        one, other = MemoryPipe.pair()
        self.link = Link(LISTENER, bulk=False, dialed=True, drop=lambda: self.dropped.append("dropped"))
        self.near = FrameStream(
            one, LISTENER, pacer=self.link.pacer, on_end=self.link.discard, on_heard=self.link.has_heard
        )
        self.link.add(self.near)
        self.far = FrameStream(other, DIALER, pacer=Pacer())

    def another_stream(self) -> FrameStream:
        one, _other = MemoryPipe.pair()
        stream = FrameStream(one, LISTENER, pacer=self.link.pacer, on_end=self.link.discard)
        self.link.add(stream)
        return stream


async def answer(far: FrameStream, delay_s: float = 0.0) -> None:
    while True:
        message = await far.receive(Ping, timeout_s=60)
        await trio.sleep(delay_s)
        await far.send(Pong(number=message.number))


async def test_a_peer_that_answers_stays_and_its_round_trip_is_known(autojump_clock: trio.testing.MockClock) -> None:
    beating = Beating()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        nursery.start_soon(answer, beating.far, 0.04)
        await trio.sleep(60)
        assert beating.link.failure is None
        assert beating.link.rtt_ms == pytest.approx(40, abs=1)
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_noticed_in_time_and_fails_every_stream(autojump_clock: trio.testing.MockClock) -> None:
    beating = Beating()
    waiting = beating.another_stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        with pytest.raises(PeerUnreachable, match="has been silent for 6"):
            await waiting.receive_frame(Ping, raw_limit=1, timeout_s=None)
    assert trio.current_time() == pytest.approx(6, abs=0.1)
    assert beating.link.frozen
    assert beating.dropped == ["dropped"]
    assert beating.link.open_streams == 0


async def test_a_peer_that_freezes_later_is_noticed_as_fast(autojump_clock: trio.testing.MockClock) -> None:
    beating = Beating()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        with trio.move_on_after(31):
            await answer(beating.far)
        await beating.link.wait_ended()
    assert 31 < trio.current_time() <= 37.1


async def test_bytes_on_any_stream_are_signs_of_life(autojump_clock: trio.testing.MockClock) -> None:
    beating = Beating()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        for _ in range(20):
            await trio.sleep(4)
            beating.link.has_heard()
        assert beating.link.failure is None
        nursery.cancel_scope.cancel()


async def test_pings_are_answered() -> None:
    beating = Beating()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        assert await beating.far.receive(Ping, timeout_s=1) == Ping(number=0)
        await beating.far.send(Ping(number=77))
        assert await beating.far.receive(Pong, timeout_s=1) == Pong(number=77)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Goodbye(reason="stopping", versions=(1,)), PeerUnreachable),
        (Pong(number=1 << 40), RemoteProtocolError),
    ],
)
async def test_what_ends_a_link(message: Goodbye | Pong, error: type[RemoteError]) -> None:
    beating = Beating()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        await beating.far.send(message)
    assert isinstance(beating.link.failure, error)
    assert beating.dropped == ["dropped"]


async def test_a_closed_connection_ends_the_link_at_once(autojump_clock: trio.testing.MockClock) -> None:
    beating = Beating()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive, beating.link, beating.near, BEAT)
        await beating.far.close()
    assert trio.current_time() == 0
    late = beating.another_stream()
    with pytest.raises(PeerUnreachable):
        await late.send(Ping(number=1))
