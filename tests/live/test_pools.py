"""Bundles dealt ahead, with real daemons: a query finds one ready, or waits for its own, and the answer says which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from finode.client import Answer, Client
from finode.config import Role
from finode.testnet.network import Network, start
from finode.testnet.topology import ModelFile, NodeSpec, Topology
from tests.live.conftest import small_cnn

pytestmark = pytest.mark.slow

X = np.random.default_rng(6).uniform(size=(4, 1, 8, 8))
REFILLED_WITHIN_S = 20.0


def _federation(root: Path) -> Topology:
    roles: dict[str, tuple[Role, ...]] = {
        "one": (Role.OWNER, Role.PARTY),
        "two": (Role.PARTY,),
        "dealer": (Role.DEALER,),
        "querier": (Role.QUERIER,),
    }
    model = ModelFile(path=small_cnn(root / "model.onnx", 1), service="small")
    settings: dict[str, dict[str, Any]] = {"querier": {"parties": 2}, "dealer": {"pool_bundles": 1}}
    return Topology(
        federation="pools",
        nodes=tuple(
            NodeSpec(
                name=name,
                organization=f"org {name}",
                roles=kinds,
                settings=settings,
                models=(model,) if Role.OWNER in kinds else (),
            )
            for name, kinds in roles.items()
        ),
    )


async def _until_connected(client: Client) -> None:
    with trio.fail_after(40):
        while not await client.services() or not all(peer.connected for peer in await client.peers()):  # noqa: ASYNC110
            await trio.sleep(0.1)


async def _ask_until(client: Client, batch: int, wanted: Callable[[Answer], bool]) -> Answer:
    """Ask until an answer is as wanted: dealing ahead happens beside, and nobody tells when it is over."""
    with trio.fail_after(REFILLED_WITHIN_S):
        while True:
            answer = await client.query("small", X[:batch])
            if wanted(answer):
                return answer
            await trio.sleep(0.5)


async def _queries(network: Network) -> None:
    (querier,) = network.with_role(Role.QUERIER)
    async with Client(home=querier.home) as client:
        await _until_connected(client)
        first = await client.query("small", X[:1])
        ready = await _ask_until(client, 1, lambda answer: answer.timings.dealt_ahead)
        # Of another batch size nobody has asked for, so nothing can lie ready.
        other = await client.query("small", X[:4])

    assert [answer.timings.dealt_ahead for answer in (first, ready, other)] == [False, True, False]
    assert first.committee.id == ready.committee.id == other.committee.id
    # What was dealt ahead is a bundle like any other, and the last party gets nearly all of it.
    assert ready.traffic.offline_bytes == first.traffic.offline_bytes > 0
    assert ready.traffic.offline_bytes_per_party[0] == 32
    assert sum(ready.traffic.offline_bytes_per_party) == ready.traffic.offline_bytes
    assert ready.probabilities is not None
    assert first.probabilities is not None
    assert np.abs(ready.probabilities - first.probabilities).max() < 0.002


def test_a_query_finds_a_bundle_ready_or_waits_and_says_which(tmp_path: Path) -> None:
    network = trio.run(start, _federation(tmp_path), tmp_path / "net")
    try:
        trio.run(network.wait_ready, lambda node: None)
        trio.run(_queries, network)
    finally:
        trio.run(network.stop)
