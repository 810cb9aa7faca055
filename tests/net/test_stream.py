"""Streams over a pipe in memory: deadlines, limits, loss, order, pace. Trio's mock clock drives every deadline."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from finode.errors import (
    LocalProtocolError,
    PeerTimeout,
    PeerUnreachable,
    RemoteProtocolError,
)
from finode.identity import Identity, PeerId
from finode.net.framing import message_header, raw_header
from finode.net.interface import Stream
from finode.net.pipe import WINDOW, MemoryPipe
from finode.net.stream import FrameStream, Pacer
from finode.wire.control import Hello, Ping, Pong
from finode.wire.shares import CHUNK_BYTES

PEER = Identity.generate().peer_id
pytestmark = pytest.mark.trio


def pair(peer: PeerId = PEER) -> tuple[FrameStream, FrameStream]:
    one, other = MemoryPipe.pair()
    return FrameStream(one, peer, pacer=Pacer()), FrameStream(other, peer, pacer=Pacer())


def half(pacer: Pacer | None = None) -> tuple[FrameStream, MemoryPipe]:
    one, other = MemoryPipe.pair()
    return FrameStream(one, PEER, pacer=pacer or Pacer()), other


async def test_messages_and_raw_frames_keep_their_order() -> None:
    near, far = pair()
    stream: Stream = near
    await stream.send(Ping(number=1))
    await stream.send_raw(memoryview(b"round"))
    await stream.send(Pong(number=2))
    assert await far.receive(Ping, timeout_s=1) == Ping(number=1)
    assert await far.receive_raw(5, timeout_s=1) == b"round"
    assert await far.receive_frame(Ping, Pong, raw_limit=10, timeout_s=None) == Pong(number=2)


async def test_bulk_comes_in_chunks_and_whole() -> None:
    near, far = pair()
    data = bytes(range(256)) * 5000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_bulk, data)
        assert await far.receive_bulk(len(data), timeout_s=1) == data
        nursery.start_soon(near.send_bulk, data)
        assert len(await far.receive_raw(CHUNK_BYTES, timeout_s=1)) == CHUNK_BYTES


async def test_an_array_is_sent_as_its_bytes() -> None:
    near, far = pair()
    await near.send_raw(memoryview(b"\1\0\0\0\2\0\0\0").cast("i"))
    assert await far.receive_raw(8, timeout_s=1) == b"\1\0\0\0\2\0\0\0"


async def test_silence_ends_in_a_timeout_that_names_the_peer(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = half()
    with pytest.raises(PeerTimeout, match="did not answer within 3 s") as caught:
        await near.receive(Ping, timeout_s=3)
    assert caught.value.peer == PEER
    assert trio.current_time() == pytest.approx(3)
    with pytest.raises(PeerTimeout):
        await near.send(Ping(number=1))


async def test_a_reader_that_does_not_read_stops_its_sender(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = half()
    with pytest.raises(PeerTimeout, match="took no data for 7 s"):
        await near.send_raw(bytes(WINDOW + 1), timeout_s=7)
    assert trio.current_time() == pytest.approx(7)


async def test_who_closes_without_reading_is_heard_by_its_sender(autojump_clock: trio.testing.MockClock) -> None:
    near_pipe, far_pipe = MemoryPipe.pair()
    near, far = (FrameStream(pipe, PEER, pacer=Pacer()) for pipe in (near_pipe, far_pipe))

    async def refuse() -> None:
        await trio.sleep(1)
        await far.send(Pong(number=9))
        await far.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(PeerUnreachable, match="it closed the stream"):
            await near.send_raw(bytes(WINDOW + 1), timeout_s=60)
    assert trio.current_time() == pytest.approx(1)
    with pytest.raises(PeerUnreachable, match="it closed the stream"):
        await near.send(Ping(number=1))
    assert await near.receive(Pong, timeout_s=1) == Pong(number=9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (message_header(Hello.code, 5000), "Hello of 5000 bytes announced"),
        (message_header(Pong.code, 10), "Pong came instead of Hello"),
        (raw_header(1), "a raw frame came"),
        (b"\0" * 7, "no frame begins|unknown message code"),
        (b"GET / HTTP/1.1\r\n", "no frame begins"),
        (message_header(Hello.code, 4) + b"\xc1\xc1\xc1\xc1", "not a valid Hello"),
    ],
)
async def test_what_the_protocol_does_not_allow_resets_the_stream(data: bytes, message: str) -> None:
    near, far = half()
    await far.write(data)
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        await near.receive(Hello, timeout_s=1)
    assert caught.value.peer == PEER
    assert await far.read() == b""
    with pytest.raises(RemoteProtocolError):
        await near.send(Ping(number=1))


async def test_a_raw_frame_over_its_limit_is_refused_before_its_payload(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = half()
    await far.write(raw_header(101))
    with pytest.raises(RemoteProtocolError, match="its limit is 100"):
        await near.receive_raw(100, timeout_s=5)
    assert trio.current_time() == 0


async def test_the_end_of_the_stream_is_the_loss_of_the_peer() -> None:
    near, far = half()
    await far.close()
    with pytest.raises(PeerUnreachable, match="closed the stream"):
        await near.receive(Ping, timeout_s=1)
    near, far = half()
    await far.write(raw_header(10), b"half")
    await far.close()
    with pytest.raises(PeerUnreachable, match="in mid-frame"):
        await near.receive_raw(10, timeout_s=1)


async def test_what_was_sent_before_the_close_arrives() -> None:
    near, far = pair()
    await near.send(Ping(number=5))
    await near.close()
    assert (await far.receive(Ping, timeout_s=1)).number == 5


async def test_a_lost_peer_wakes_every_pending_call_at_once(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = half()
    woken: list[str] = []

    async def send() -> None:
        with pytest.raises(PeerUnreachable, match="gone"):
            await near.send_raw(bytes(2 * WINDOW), timeout_s=60)
        woken.append("send")

    async def receive() -> None:
        with pytest.raises(PeerUnreachable, match="gone"):
            await near.receive_frame(Ping, raw_limit=1, timeout_s=None)
        woken.append("receive")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        near.fail(PeerUnreachable("gone", peer=PEER))
    assert sorted(woken) == ["receive", "send"]
    assert trio.current_time() == 0
    with pytest.raises(PeerUnreachable, match="gone"):
        await near.send(Ping(number=1))


async def test_a_cancelled_receive_can_be_taken_up_again() -> None:
    near, far = half()
    await far.write(raw_header(10), b"half1")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: near.receive_raw(10, timeout_s=60))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    await far.write(b"half2", raw_header(1), b"x")
    assert await near.receive_raw(10, timeout_s=1) == b"half1half2"
    assert await near.receive_raw(10, timeout_s=1) == b"x"


async def test_a_cancelled_send_resets_the_stream() -> None:
    near, far = half()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: near.send_raw(bytes(2 * WINDOW), timeout_s=60))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(LocalProtocolError, match="is closed"):
        await near.send(Ping(number=1))
    await far.read()
    assert await far.read() == b""


async def test_two_receivers_are_our_own_mistake() -> None:
    near, _far = half()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: near.receive_raw(1, timeout_s=60))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(LocalProtocolError, match="two tasks"):
                await near.receive_raw(1, timeout_s=1)
            scope.cancel()


async def test_bulk_waits_while_something_urgent_is_being_sent() -> None:
    pacer = Pacer()
    bulk, bulk_end = half(pacer)
    urgent, urgent_end = half(pacer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: urgent.send_raw(bytes(WINDOW + 1)))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: bulk.send_bulk(bytes(3 * CHUNK_BYTES)))
        await trio.testing.wait_all_tasks_blocked()
        assert bulk_end.waiting == 0
        while urgent_end.waiting:
            await urgent_end.read()
            await trio.testing.wait_all_tasks_blocked()
        assert bulk_end.waiting > 3 * CHUNK_BYTES


async def test_ending_is_told_once() -> None:
    ended: list[FrameStream] = []
    one, _other = MemoryPipe.pair()
    stream = FrameStream(one, PEER, pacer=Pacer(), on_end=ended.append)
    await stream.reset()
    await stream.close()
    stream.fail(PeerUnreachable("gone", peer=PEER))
    assert ended == [stream]
