"""multistream-select: agreement, refusal, and whatever else may come instead."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from finode.net.negotiation import MAX_LINE, MAX_TRIES, MULTISTREAM, NegotiationError, NotAvailable, answer, ask, line
from finode.net.pipe import MemoryPipe
from finode.net.stream import PipeError

pytestmark = pytest.mark.trio


async def test_both_sides_agree_and_keep_what_came_after() -> None:
    near, far = MemoryPipe.pair()
    agreed: list[tuple[str, bytearray]] = []
    await near.write(line(MULTISTREAM), line("/a/1"), b"early data")
    agreed.append(await answer(far, {"/a/1", "/b/1"}))
    assert agreed == [("/a/1", bytearray(b"early data"))]
    assert await near.read() == line(MULTISTREAM) + line("/a/1")


async def test_asking_costs_one_round_trip() -> None:
    near, far = MemoryPipe.pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            assert await answer(far, {"/a/1"}) == ("/a/1", bytearray())
            await far.write(b"hello")

        nursery.start_soon(serve)
        await ask(near, "/a/1")
    near, far = MemoryPipe.pair()
    await far.write(line(MULTISTREAM), line("/a/1"), b"hello")
    assert await ask(near, "/a/1") == b"hello"


async def test_no_is_no() -> None:
    near, far = MemoryPipe.pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with pytest.raises(NegotiationError):
                await answer(far, {"/a/1"})

        nursery.start_soon(serve)
        with pytest.raises(NotAvailable, match="/b/1"):
            await ask(near, "/b/1")
        await near.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\xff\xfe\xfd\n",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x00",
        line("x" * MAX_LINE),
        b"\x03abc",
        line("/multistream/2.0.0"),
        line(MULTISTREAM) + b"\x04\xc3\x28\x29\n",
        line(MULTISTREAM) + line("/x") * (MAX_TRIES + 1),
        line(MULTISTREAM),
        b"",
    ],
)
async def test_nonsense_is_refused_on_either_side(data: bytes) -> None:
    for side in ("answer", "ask"):
        near, far = MemoryPipe.pair()
        await far.write(data)
        await far.close()
        with pytest.raises((NegotiationError, PipeError)):
            await (answer(near, {"/a/1"}) if side == "answer" else ask(near, "/a/1"))


async def test_random_bytes_raise_nothing_else() -> None:
    for size in range(1, 60):
        near, far = MemoryPipe.pair()
        await far.write(os.urandom(size))
        await far.close()
        with pytest.raises((NegotiationError, PipeError)):
            await answer(near, {"/a/1"})


async def test_a_long_line_has_a_long_length() -> None:
    assert line("a" * 199)[:2] == bytes([0xC8, 0x01])
