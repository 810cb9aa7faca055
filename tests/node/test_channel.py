"""Envelopes between daemon and worker."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from finode.node.channel import AsyncChannel, BlockingChannel, Envelope


@pytest.mark.trio
async def test_envelopes_with_large_parts_cross_both_ways_and_the_end_is_seen() -> None:
    ours, theirs = socket.socketpair()
    daemon, worker = AsyncChannel(ours), BlockingChannel(theirs)
    large = os.urandom(3_000_000)
    got: list[Envelope | None] = []

    def work() -> None:
        envelope = worker.receive()
        assert envelope is not None
        worker.send({"echo": envelope.header["x"]}, envelope.parts)
        got.append(worker.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, work)
        await daemon.send(Envelope({"x": 7}, (large, b"", bytearray(b"abc"))))
        reply = await daemon.receive()
        assert reply is not None
        assert reply.header == {"echo": 7}
        assert [bytes(part) for part in reply.parts] == [large, b"", b"abc"]
        await daemon.aclose()
    assert got == [None]
    theirs.close()


@pytest.mark.trio
async def test_the_end_of_a_worker_is_the_end_of_the_channel() -> None:
    ours, theirs = socket.socketpair()
    daemon = AsyncChannel(ours)
    theirs.sendall(b"\0\0\0\x10half")
    theirs.close()
    assert await daemon.receive() is None
    with pytest.raises(trio.BrokenResourceError):
        await daemon.send(Envelope({}, (bytes(1000),)))
    await daemon.aclose()


def test_an_envelope_s_repr_hides_its_parts() -> None:
    assert repr(Envelope({"kind": "run"}, (b"secret",))) == "Envelope(header={'kind': 'run'})"
