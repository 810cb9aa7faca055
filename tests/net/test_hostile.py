"""A node under attack from another process keeps serving an honest session, and lets nobody in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr

from finode.identity import Identity
from finode.net.interface import Stream
from finode.wire import session
from tests.net.nodes import OpenNode, bootstrap, until

ATTACKER = Path(__file__).with_name("process_attacker.py")
OUR_MISTAKES = ("TypeError", "AttributeError", "NameError", "ValueError", "struct")
"""An attack that ends so never reached the target."""
pytestmark = [pytest.mark.trio, pytest.mark.slow]


async def attack(
    address: str, target: str, *, insider: Identity, stranger: Identity, victim: str, times: int, only: str = ""
) -> list[dict[str, Any]]:
    command = [sys.executable, str(ATTACKER), address, target, insider.seed().hex(), stranger.seed().hex(), victim]
    done = await trio.run_process(
        [*command, "20260801", str(times), *([only] if only else [])], capture_stdout=True, stderr=subprocess.STDOUT
    )
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


async def test_an_attacked_node_keeps_serving_and_lets_nobody_in(open_node: OpenNode, events: list[str]) -> None:
    server, honest, insider, stranger = (Identity.generate() for _ in range(4))
    roster = {server.peer_id: "Server", honest.peer_id: "Honest", insider.peer_id: "Insider"}
    rounds = 0

    async def echo(stream: Stream) -> None:
        while True:
            await stream.send_raw(await stream.receive_raw(70_000, timeout_s=30))

    async with open_node(server, roster) as node:
        node.serve(session.PROTOCOL, echo)
        async with open_node(honest, roster, bootstrap=[bootstrap(node)]) as friend:
            stream = await friend.open(server.peer_id, session.PROTOCOL, timeout_s=5)

            async def honest_session() -> None:
                nonlocal rounds
                while True:
                    data = rounds.to_bytes(8, "big") * 500
                    await stream.send_raw(data, timeout_s=5)
                    assert await stream.receive_raw(70_000, timeout_s=5) == data
                    rounds += 1
                    await trio.sleep(0.005)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(honest_session)
                with trio.fail_after(90):
                    results = await attack(
                        node.addresses[0],
                        node.peer_id,
                        insider=insider,
                        stranger=stranger,
                        victim=honest.peer_id,
                        times=2,
                    )
                after = rounds
                await until(lambda: rounds > after + 20, within_s=5)
                nursery.cancel_scope.cancel()

            assert len(results) == 15
            ended = [str(reason) for result in results for reason in result["ended"]]
            assert not [reason for reason in ended if reason.startswith(OUR_MISTAKES)]
            assert {result["attack"]: result["let_in"] for result in results if result["let_in"]} == {}
            assert not {"gossip_failed", "handler_failed"} & set(events)
            assert node.states()[honest.peer_id].connected
            assert node.states()[honest.peer_id].standing == 0
            assert node.states()[insider.peer_id].standing < 0
            assert stranger.peer_id not in node.records()
            again = await friend.open(server.peer_id, session.PROTOCOL, timeout_s=5)
            await again.send_raw(b"still here")
            assert await again.receive_raw(100, timeout_s=5) == b"still here"


async def test_the_forgery_works_on_a_stock_host() -> None:
    """The control of the test above: libp2p's default listener takes the plaintext dialer for the victim."""
    insider, stranger, victim = (Identity.generate() for _ in range(3))
    host = new_host(key_pair=create_new_key_pair(Identity.generate().seed()))
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        with trio.fail_after(30):
            results = await attack(
                str(host.get_transport_addrs()[0]),
                str(host.get_id()),
                insider=insider,
                stranger=stranger,
                victim=victim.peer_id,
                times=1,
                only="plaintext_impersonation",
            )
        with trio.CancelScope(shield=True):
            await host.close()
    assert [result["let_in"] for result in results] == [1]
