"""Peers in processes of their own that freeze or die: noticed in time, and every stream to them fails."""

from __future__ import annotations

import signal
import time

import pytest
import trio

from finode.errors import PeerUnreachable
from finode.identity import Identity
from finode.wire import session, shares
from finode.wire.message import MIB
from tests.net.nodes import MakeHome, OpenNode, node_process, until

pytestmark = [pytest.mark.trio, pytest.mark.slow]
NOTICED_S = 10.0


async def test_a_frozen_peer_is_noticed_and_every_pending_call_fails(open_node: OpenNode, make_home: MakeHome) -> None:
    ours, theirs = Identity.generate(), Identity.generate()
    roster = {ours.peer_id: "Ours", theirs.peer_id: "Theirs"}
    async with (
        node_process(make_home(theirs, roster), theirs) as other,
        open_node(ours, roster, bootstrap=[f"{other.address}/p2p/{other.peer}"]) as node,
    ):
        rounds = await node.open(other.peer, session.PROTOCOL, timeout_s=5)
        bulk = await node.open(other.peer, shares.PROTOCOL, timeout_s=5)
        await rounds.send_raw(b"alive")
        assert await rounds.receive_raw(100, timeout_s=5) == b"alive"

        other.process.send_signal(signal.SIGSTOP)
        began, noticed = time.monotonic(), []

        async def receive() -> None:
            with pytest.raises(PeerUnreachable, match="has been silent for"):
                await rounds.receive_frame(raw_limit=100, timeout_s=None)
            noticed.append(time.monotonic() - began)

        async def send() -> None:
            await bulk.send_raw((64 * MIB).to_bytes(8, "big"), timeout_s=60)
            with pytest.raises(PeerUnreachable):
                await bulk.send_bulk(bytes(64 * MIB), timeout_s=60)
            noticed.append(time.monotonic() - began)

        with trio.fail_after(2 * NOTICED_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(send)
        assert max(noticed) < NOTICED_S
        assert not node.states()[other.peer].connected
        assert node.states()[other.peer].standing < 0

        other.process.send_signal(signal.SIGCONT)
        await until(lambda: node.states()[other.peer].connected, within_s=20)
        again = await node.open(other.peer, session.PROTOCOL, timeout_s=5)
        await again.send_raw(b"back")
        assert await again.receive_raw(100, timeout_s=5) == b"back"


async def test_leaving_is_quick_beside_a_frozen_peer(open_node: OpenNode, make_home: MakeHome) -> None:
    ours, theirs = Identity.generate(), Identity.generate()
    roster = {ours.peer_id: "Ours", theirs.peer_id: "Theirs"}
    async with node_process(make_home(theirs, roster), theirs) as other:
        async with open_node(ours, roster, bootstrap=[f"{other.address}/p2p/{other.peer}"]) as node:
            bulk = await node.open(other.peer, shares.PROTOCOL, timeout_s=5)
            other.process.send_signal(signal.SIGSTOP)
            with trio.move_on_after(0.5) as scope:
                await bulk.send_bulk(bytes(64 * MIB), timeout_s=60)
            assert scope.cancelled_caught
            began = time.monotonic()
        assert time.monotonic() - began < 3


async def test_a_killed_peer_is_noticed_at_once(open_node: OpenNode, make_home: MakeHome) -> None:
    ours, theirs = Identity.generate(), Identity.generate()
    roster = {ours.peer_id: "Ours", theirs.peer_id: "Theirs"}
    async with (
        node_process(make_home(theirs, roster), theirs) as other,
        open_node(ours, roster, bootstrap=[f"{other.address}/p2p/{other.peer}"]) as node,
    ):
        stream = await node.open(other.peer, session.PROTOCOL, timeout_s=5)
        other.process.kill()
        with trio.fail_after(2), pytest.raises(PeerUnreachable):
            await stream.receive_frame(raw_limit=100, timeout_s=None)
        await until(lambda: not node.states()[other.peer].connected, within_s=2)
        with pytest.raises(PeerUnreachable):
            await node.open(other.peer, session.PROTOCOL, timeout_s=5)
