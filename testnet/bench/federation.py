"""The federation that a benchmark measures: parties, which also own the models, a dealer and queriers, nothing more.

On a small machine idle daemons would cost the others time. Of the queriers one keeps its committees; the committees of
the second live too short to be used twice, so that each of its queries finds deployments kept and nothing dealt ahead;
the third, where there is a stream to measure, keeps them too and asks with the profile `throughput`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import trio

from finode.client import Client
from finode.config import Role
from finode.errors import DaemonUnavailable
from finode.testnet.bench import models
from finode.testnet.bench.agreement import BATCH as DIGITS_BATCH
from finode.testnet.bench.agreement import Digits
from finode.testnet.bench.work import Work
from finode.testnet.network import Network, NodeState, log_hint
from finode.testnet.topology import ModelFile, NodeSpec, Topology

QUERY_DEADLINE_S: Final = 900.0
COLD_LIFETIME_S: Final = 5.0
"""A querier takes no committee again that has so little left to live."""
CONNECTED_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    # Longer than a federation's, for slow engines on long links: what is measured is how long it takes.
    "session": {"round_timeout_s": 300.0, "deal_timeout_s": 600.0, "deploy_timeout_s": 600.0, "answer_timeout_s": 30.0},
    "network": {"heartbeat_timeout_s": 60.0},
    "owner": {"queries_per_day": 1_000_000_000},
    # 64 inputs of five LeNets take 1.1 GiB: they are measured as one session.
    "party": {"session_memory_mb": 4096},
}
MEMORY: Final[dict[str, dict[str, Any]]] = {
    # For large images: a run of ResNet-50 takes 2.9 GiB, its bundle 0.8 GB. Others keep to the defaults.
    "party": {"session_memory_mb": 8192, "pool_memory_mb": 8192},
    "dealer": {"pool_memory_mb": 4096},
}


class Querier(StrEnum):
    """The queriers, by what they are for; also their nodes' names."""

    KEEPING = "querier"
    COLD = "cold-querier"
    STREAMING = "stream-querier"


_SPECIAL: Final[dict[Querier, dict[str, Any]]] = {
    Querier.KEEPING: {},
    Querier.COLD: {"committee_lifetime_s": COLD_LIFETIME_S},
    Querier.STREAMING: {"profile": "throughput"},
}


def topology_of(works: Sequence[Work], directory: Path, digits: Digits | None = None) -> Topology:
    """Return the federation for these works, all of equal parties and device; write its models to `directory`.

    With `digits`, the parties own its models as well.
    """
    parties = works[0].parties
    memory = MEMORY if any(models.is_large(work.model) for work in works) else {}
    computing = {**SETTINGS, **memory, "node": {"device": works[0].device}}
    directory.mkdir(parents=True, exist_ok=True)
    owned: list[list[ModelFile]] = [[] for _ in range(parties)]
    labels = directory / "labels.txt"
    labels.write_text("".join(f"class {index}\n" for index in range(models.CLASSES)), encoding="utf-8")
    seed = 0
    for service, work in {work.service: work for work in works}.items():
        for index in range(work.models):
            path = directory / f"{service}-{index}.onnx"
            seed += 1
            models.write_model(work.model, seed, path)
            owned[index % parties].append(ModelFile(path=path, service=service, labels=labels))
    for index, path in enumerate(digits.models if digits is not None else ()):
        owned[index % parties].append(ModelFile(path=path, service=Digits.SERVICE, labels=labels))
    nodes = [
        NodeSpec(
            name=f"party-{index + 1}",
            organization=f"Party {index + 1}",
            roles=(Role.OWNER, Role.PARTY) if owned[index] else (Role.PARTY,),
            settings=computing,
            models=tuple(owned[index]),
        )
        for index in range(parties)
    ]
    nodes.append(NodeSpec(name="dealer", organization="Dealer", roles=(Role.DEALER,), settings=computing))
    most = max([*(work.batch for work in works), *([DIGITS_BATCH] if digits is not None else [])])
    asking = {"parties": parties, "deadline_s": QUERY_DEADLINE_S, "max_batch": most, "quota": max(2048, 100 * most)}
    for name in Querier:
        if name is not Querier.STREAMING or any(work.sustained for work in works):
            settings = {**SETTINGS, "querier": asking | _SPECIAL[name]}
            nodes.append(NodeSpec(name=name, organization="Asker", roles=(Role.QUERIER,), settings=settings))
    return Topology(federation="bench", nodes=tuple(nodes))


def client_of(network: Network, querier: Querier) -> Client:
    """Return a client of one of the queriers."""
    (home,) = (node.home for node in network.nodes if node.name == querier)
    return Client(home=home)


async def wait_until_warm(nodes: Sequence[NodeState]) -> None:
    """Wait until all that compute can do so. A daemon whose workers have no such device ends, which `watch` tells."""
    cold = list(nodes)
    with trio.move_on_after(CONNECTED_TIMEOUT_S):
        while True:
            cold = [node for node in cold if not await _workers_of(node)]
            if not cold:
                return
            await trio.sleep(POLL_S)
    raise DaemonUnavailable(
        f"after {CONNECTED_TIMEOUT_S:.0f} s node {cold[0].name!r} has no warm worker", hint=log_hint(cold[0])
    )


async def _workers_of(node: NodeState) -> int:
    try:
        async with Client(home=node.home) as client:
            return (await client.status()).workers
    except DaemonUnavailable:
        return 0


async def wait_until_it_can_ask(client: Client, service: str, offers: int) -> None:
    """Wait until a querier has all offers and a connection to everybody; records come before connections do."""
    lacks = ""
    with trio.move_on_after(CONNECTED_TIMEOUT_S):
        while True:
            known = sum(len(found.offers) for found in await client.services() if found.name == service)
            far = [peer.organization for peer in await client.peers() if not peer.connected]
            if known == offers and not far:
                return
            lacks = f"it knows {known} of {offers} models and lacks a connection to {', '.join(far) or 'nobody'}"
            await trio.sleep(POLL_S)
    raise DaemonUnavailable(f"after {CONNECTED_TIMEOUT_S:.0f} s a querier cannot ask: {lacks}")
