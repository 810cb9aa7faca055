"""The federation in memory keeps the promises of `finode.net.interface`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog
import structlog.testing
import trio

from finode.config import Role
from finode.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from finode.identity import Identity
from finode.net.directory import Offer
from finode.net.interface import Network, Stream
from finode.net.memory import MemoryFederation, MemoryNetwork
from finode.wire.control import Ping, Pong

pytestmark = pytest.mark.trio
ECHO = "/test/echo/1"


async def echo(stream: Stream) -> None:
    while True:
        message = await stream.receive(Ping, timeout_s=60)
        await stream.send(Pong(number=message.number))


@asynccontextmanager
async def nodes(federation: MemoryFederation, count: int) -> AsyncIterator[list[MemoryNetwork]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                federation.node(Identity.generate(), f"Org {index}", lambda: Offer(roles=(Role.PARTY,)))
            )
            for index in range(count)
        ]


async def test_everybody_knows_everybody() -> None:
    async with nodes(MemoryFederation(), 3) as (one, two, three):
        network: Network = one
        assert set(network.records()) == {one.peer_id, two.peer_id, three.peer_id}
        state = network.states()[three.peer_id]
        assert (state.organization, state.connected, state.standing) == ("Org 2", True, 0.0)
        assert state.record is not None
        assert network.accepts(two.peer_id)
        assert not network.accepts(Identity.generate().peer_id)
        assert one.peer_id not in network.states()


async def test_a_new_offer_is_seen_by_all() -> None:
    offers = [Offer(capacity=1)]
    federation = MemoryFederation()
    async with (
        federation.node(Identity.generate(), "A", lambda: offers[0]) as one,
        federation.node(Identity.generate(), "B", Offer) as two,
    ):
        offers[0] = Offer(capacity=9)
        one.announce()
        assert two.records()[one.peer_id].capacity == 9


async def test_a_stream_reaches_its_handler() -> None:
    async with nodes(MemoryFederation(), 2) as (one, two):
        two.serve(ECHO, echo)
        stream = await one.open(two.peer_id, ECHO, timeout_s=1)
        assert stream.peer == two.peer_id
        await stream.send(Ping(number=3))
        assert await stream.receive(Pong, timeout_s=1) == Pong(number=3)
        with pytest.raises(PeerRefused):
            await one.open(two.peer_id, "/test/other/1", timeout_s=1)


async def test_a_node_reaches_itself() -> None:
    async with nodes(MemoryFederation(), 1) as (one,):
        one.serve(ECHO, echo)
        stream = await one.open(one.peer_id, ECHO, timeout_s=1)
        await stream.send(Ping(number=4))
        assert await stream.receive(Pong, timeout_s=1) == Pong(number=4)


async def test_a_cut_fails_streams_at_both_ends_and_can_be_mended() -> None:
    federation = MemoryFederation()
    failed = trio.Event()

    async def until_lost(stream: Stream) -> None:
        with pytest.raises(PeerUnreachable):
            await stream.receive_frame(Ping, raw_limit=1, timeout_s=None)
        failed.set()

    async with nodes(federation, 2) as (one, two):
        two.serve(ECHO, until_lost)
        stream = await one.open(two.peer_id, ECHO, timeout_s=1)
        federation.cut(two.peer_id)
        with pytest.raises(PeerUnreachable):
            await stream.receive(Pong, timeout_s=60)
        await failed.wait()
        assert not one.states()[two.peer_id].connected
        with pytest.raises(PeerUnreachable):
            await one.open(two.peer_id, ECHO, timeout_s=1)
        federation.mend(two.peer_id)
        await (await one.open(two.peer_id, ECHO, timeout_s=1)).close()


async def test_a_node_that_leaves_is_unreachable() -> None:
    federation = MemoryFederation()
    async with nodes(federation, 1) as (one,):
        async with nodes(federation, 1) as (two,):
            two.serve(ECHO, echo)
            stream = await one.open(two.peer_id, ECHO, timeout_s=1)
        with pytest.raises(PeerUnreachable):
            await stream.receive(Pong, timeout_s=60)


async def test_what_handlers_raise_is_logged_and_costs_whom_it_should() -> None:
    federation = MemoryFederation(log=structlog.get_logger())

    async def strict(stream: Stream) -> None:
        await stream.receive(Pong, timeout_s=60)

    async def buggy(stream: Stream) -> None:
        raise RuntimeError("a bug")

    with structlog.testing.capture_logs() as logs:
        async with nodes(federation, 2) as (one, two):
            two.serve("/test/strict/1", strict)
            two.serve("/test/buggy/1", buggy)
            stream = await one.open(two.peer_id, "/test/strict/1", timeout_s=1)
            await stream.send(Ping(number=1))
            with pytest.raises(PeerUnreachable):
                await stream.receive(Pong, timeout_s=1)
            standing = two.states()[one.peer_id].standing
            assert standing < 0
            stream = await one.open(two.peer_id, "/test/buggy/1", timeout_s=1)
            with pytest.raises(PeerUnreachable):
                await stream.receive(Pong, timeout_s=1)
            assert two.states()[one.peer_id].standing == pytest.approx(standing, abs=0.1)
    assert {entry["event"] for entry in logs} == {"stream_failed", "handler_failed"}


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(RemoteProtocolError):
        async with nodes(MemoryFederation(), 2):
            raise RemoteProtocolError("from the block")
