"""The relay as a process: bytes come through whole, late and counted, and ends are passed on."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from finode.errors import DaemonUnavailable
from finode.identity import Identity
from finode.testnet import processes
from finode.testnet.emulation import Emulation, start_emulation
from finode.testnet.homes import HOST, NodeHome
from finode.testnet.links import Link, LinkTable
from finode.testnet.topology import NodeSpec

pytestmark = [pytest.mark.slow, pytest.mark.trio]

FAST = LinkTable("fast", Link(rtt_ms=0, mbit=10_000))


@asynccontextmanager
async def relay_to(port: int, directory: Path, links: LinkTable) -> AsyncIterator[tuple[Emulation, int]]:
    """Run a relay of two nodes, the second of which listens on `port`; yield it with the port to dial it at."""
    homes = []
    for name in ("near", "far"):
        path = directory / name
        path.mkdir()
        spec = NodeSpec(name=name, organization=name, roles=())
        homes.append(NodeHome(spec=spec, path=path, peer=Identity.generate().peer_id, port=port))
    emulation = await start_emulation(homes, links, directory, "test")
    try:
        setting = (homes[0].path / "finode.toml").read_text().partition("\ndial_through = [")[2].partition("]")[0]
        assert setting.endswith(f'/p2p/{homes[1].peer}"')
        yield emulation, int(setting.partition("/tcp/")[2].partition("/")[0])
    finally:
        assert await processes.stop([emulation.process]) == ()


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it gets, and ends when its peer does."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def until_it_stands_still(emulation: Emulation) -> int:
    """Return how many bytes went to the far node, once some did and no more follow."""
    before, now = -1, 0
    while not 0 < now == before:
        await trio.sleep(0.2)
        before, now = now, (await emulation.traffic())["near", "far"]
    return now


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def test_megabytes_both_ways_on_two_connections_come_through_whole_and_counted(tmp_path: Path) -> None:
    sent = [os.urandom(3_000_000 + index) for index in (1, 2)]
    received: dict[int, bytes] = {}

    async def exchange(port: int, index: int) -> None:
        async with await trio.open_tcp_stream(HOST, port) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(sent[index])
                await stream.send_eof()

            nursery.start_soon(send)
            received[index] = await read_all(stream)

    async with echo() as port, relay_to(port, tmp_path, FAST) as (emulation, through):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for index in range(2):
                    nursery.start_soon(exchange, through, index)
        traffic = await emulation.traffic()

    assert [hashlib.sha256(received[i]).digest() for i in range(2)] == [hashlib.sha256(data).digest() for data in sent]
    assert traffic == {("near", "far"): 6_000_003, ("far", "near"): 6_000_003}


async def test_an_answer_is_not_there_before_a_round_trip_and_links_change_while_in_use(tmp_path: Path) -> None:
    slow = LinkTable("slow", Link(rtt_ms=200, mbit=100))
    async with echo() as port, relay_to(port, tmp_path, FAST) as (emulation, through):
        stream = await trio.open_tcp_stream(HOST, through)
        await stream.send_all(b"a")
        assert await stream.receive_some(1) == b"a"
        await emulation.set_links(slow)
        began = trio.current_time()
        await stream.send_all(b"b")
        assert await stream.receive_some(1) == b"b"
        took_s = trio.current_time() - began
        await stream.aclose()

    assert took_s >= 0.2


async def test_a_slow_reader_holds_back_the_sender_and_nothing_is_lost(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 24
    accepted: list[trio.SocketStream] = []

    async with trio.open_nursery() as nursery:
        ready = trio.Event()

        async def keep(stream: trio.SocketStream) -> None:
            accepted.append(stream)
            ready.set()
            await trio.sleep_forever()

        listeners = await nursery.start(trio.serve_tcp, keep, 0)
        port = listeners[0].socket.getsockname()[1]
        async with relay_to(port, tmp_path, FAST) as (emulation, through):
            stream = await trio.open_tcp_stream(HOST, through)
            nursery.start_soon(stream.send_all, data)
            with trio.fail_after(30):
                await ready.wait()
                held = await until_it_stands_still(emulation)
                got = bytearray()
                while len(got) < len(data):
                    got += await accepted[0].receive_some(1 << 20)
            await stream.aclose()
        nursery.cancel_scope.cancel()

    assert 0 < held < len(data)
    assert bytes(got) == data


async def test_a_target_that_does_not_listen_ends_the_connection(tmp_path: Path) -> None:
    async with echo() as port:
        pass  # it was free a moment ago, and nobody listens on it
    async with relay_to(port, tmp_path, FAST) as (_, through):
        with trio.fail_after(10):
            async with await trio.open_tcp_stream(HOST, through) as stream:
                assert await stream.receive_some(1) == b""


async def test_whoever_resets_a_connection_ends_it_at_the_other_side(tmp_path: Path) -> None:
    ended = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some(1):
                pass
        except trio.BrokenResourceError:
            pass
        ended.set()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        async with relay_to(listeners[0].socket.getsockname()[1], tmp_path, FAST) as (_, through):
            stream = await trio.open_tcp_stream(HOST, through)
            await stream.send_all(b"x")
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
            with trio.fail_after(10):
                await ended.wait()
        nursery.cancel_scope.cancel()


async def test_a_relay_that_does_not_start_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DaemonUnavailable, match="did not start"):
        async with relay_to(1, tmp_path, FAST):
            pass
