"""Measuring: one federation for all works of equal parties on one device, and for each work its queries.

The federation has the parties, which also own the models, a dealer, and two queriers: one that keeps its committees,
and one whose committees live too short to be used twice, so that each of its queries finds deployments kept and nothing
dealt ahead. The links change between works, the daemons stay.

Between two queries there is a pause as long as dealing took, so that a pool of bundles, where there is one, is full
again: what is measured is a query that comes by itself. A stream of queries is measured on its own (`sustained`).
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import trio

from finode.client import Answer, Client
from finode.config import Role
from finode.daemon.plaintext import soft_vote
from finode.errors import ConfigError, DaemonUnavailable, FinodeError
from finode.testnet.bench import models
from finode.testnet.bench.work import Figures, Phases, Row, Work
from finode.testnet.links import LinkTable, load_links
from finode.testnet.network import Network, NodeState, describe_exit, first_error, log_hint, start
from finode.testnet.topology import ModelFile, NodeSpec, Topology

LONGEST_PAUSE_S: Final = 5.0
CONNECTED_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
STREAM_SECONDS: Final = 10.0
"""A stream of queries is measured for so long, and for three queries at least."""
STREAM_WIDTH: Final = 2
"""Queries of a stream that are under way at once, so that one is dealt for while the other computes."""
QUERY_DEADLINE_S: Final = 900.0
COLD_LIFETIME_S: Final = 5.0
"""A querier takes no committee again that has so little left to live."""

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    # Longer than a federation's, for slow engines on long links: what is measured is how long it takes.
    "session": {"round_timeout_s": 300.0, "deal_timeout_s": 600.0, "deploy_timeout_s": 600.0, "answer_timeout_s": 30.0},
    "network": {"heartbeat_timeout_s": 60.0},
    "owner": {"queries_per_day": 1_000_000_000},
}
MEMORY: Final[dict[str, dict[str, Any]]] = {
    # For large images: a run of ResNet-50 takes 2.9 GiB, its bundle 0.8 GB. Others keep to the defaults.
    "party": {"session_memory_mb": 8192, "pool_memory_mb": 8192},
    "dealer": {"pool_memory_mb": 4096},
}
Floats = npt.NDArray[np.float64]
_Traffic = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to measure: `repeats` queries for a median, fewer where a work used up `budget_s`; cold ones too or not."""

    repeats: int = 5
    budget_s: float = 120.0
    cold: bool = True


@dataclass(slots=True)
class _Samples:
    """What the queries of one work gave."""

    expected: Floats
    answers: list[Answer] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    link_bytes: list[int] = field(default_factory=list)
    largest_error: float = 0.0

    def check(self, answer: Answer) -> None:
        if answer.probabilities is None:
            raise FinodeError("the benchmark asked for probabilities, and the answer has none")
        self.largest_error = max(self.largest_error, float(np.abs(answer.probabilities - self.expected).max()))


async def run(
    works: Sequence[Work],
    plan: Plan,
    directory: Path,
    *,
    on_step: Callable[[str, int, int], None],
    on_row: Callable[[Row], None],
) -> tuple[Row, ...]:
    """Measure all works, those of equal parties and device in one federation; return rows in the order of `works`.

    A work that fails gives a row with the reason. Raises a `FinodeError` if a federation does not start.
    """
    rows: dict[Work, Row] = {}
    for parties, device in sorted({(work.parties, work.device) for work in works}):
        group = [work for work in works if (work.parties, work.device) == (parties, device)]
        folder = directory / f"parties-{parties}-{device}"
        on_step(f"{parties} parties: models and daemons", len(rows), len(works))
        topology = await trio.to_thread.run_sync(topology_of, group, folder)
        names = [node.name for node in topology.nodes]
        tables = {link: load_links(link, names) for link in {work.link for work in group}}
        network = await start(topology, folder / "net", links=tables[group[0].link])
        try:
            async with first_error(), trio.open_nursery() as nursery:
                nursery.start_soon(network.watch, _fail_on_exit)
                await network.wait_ready(lambda node: None)
                await _wait_until_warm([*network.with_role(Role.PARTY), *network.with_role(Role.DEALER)])
                for work in sorted(group, key=_order):
                    on_step(str(work), len(rows), len(works))
                    rows[work] = await _row(network, work, tables[work.link], plan)
                    on_row(rows[work])
                nursery.cancel_scope.cancel()
        finally:
            await network.stop()
    return tuple(rows[work] for work in works)


def topology_of(works: Sequence[Work], directory: Path) -> Topology:
    """Return the federation for these works, all of equal parties and device; write its models to `directory`."""
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
    most = max(work.batch for work in works)
    asking = {"parties": parties, "deadline_s": QUERY_DEADLINE_S, "max_batch": most, "quota": max(256, 100 * most)}
    for name, extra in (("querier", {}), ("cold-querier", {"committee_lifetime_s": COLD_LIFETIME_S})):
        settings = {**SETTINGS, "querier": asking | extra}
        nodes.append(NodeSpec(name=name, organization="Asker", roles=(Role.QUERIER,), settings=settings))
    return Topology(federation="bench", nodes=tuple(nodes))


def _order(work: Work) -> tuple[str, str]:
    # One service after the other: the parties keep a deployment while its works run on all links.
    return work.service, work.engine


async def _row(network: Network, work: Work, links: LinkTable, plan: Plan) -> Row:
    try:
        return Row(work, await _measure(network, work, links, plan))
    except FinodeError as error:
        return Row(work, None, error.message)


async def _measure(network: Network, work: Work, links: LinkTable, plan: Plan) -> Figures:
    emulation = network.emulation
    if emulation is None:
        raise ConfigError("a benchmark needs emulated links")
    await emulation.set_links(links)
    owners = [node.home for node in network.with_role(Role.OWNER)]
    inputs = models.inputs(work.batch, shape=models.input_shape(work.model))
    samples = _Samples(await trio.to_thread.run_sync(soft_vote, owners, work.service, inputs))
    began = time.monotonic()
    querier, cold_querier = network.with_role(Role.QUERIER)
    async with Client(home=querier.home) as client, Client(home=cold_querier.home) as cold_client:
        for each in (client, cold_client):
            await _wait_until_it_can_ask(each, work)
        ask = partial(_ask, work=work, inputs=inputs, samples=samples)
        first, first_s = await ask(client)
        pause_s = min(LONGEST_PAUSE_S, 1.5 * first.timings.offline_s)
        while _goes_on(len(samples.totals), began, plan):
            await trio.sleep(pause_s)
            before = await emulation.traffic()
            answer, total_s = await ask(client)
            after = await emulation.traffic()
            samples.answers.append(answer)
            samples.totals.append(total_s)
            samples.link_bytes.append(_busiest(network, before, after))
        cold: list[float] = []
        cold_began = time.monotonic()
        if plan.cold:
            await ask(cold_client)
            while _goes_on(len(cold), cold_began, plan):
                await trio.sleep(pause_s)
                cold.append((await ask(cold_client))[1])
        stream = partial(ask, client, profile="throughput")
        sustained = await _stream(stream, work) if work.sustained else None
    return _figures(work, links, samples, cold, first_s, sustained)


def _goes_on(done: int, began: float, plan: Plan) -> bool:
    return done < plan.repeats and (done == 0 or time.monotonic() - began < plan.budget_s)


def _figures(
    work: Work, links: LinkTable, samples: _Samples, cold: list[float], first_s: float, sustained: float | None
) -> Figures:
    answers = samples.answers
    online_s = median(answer.timings.online_s for answer in answers)
    rounds = round(median(answer.traffic.rounds for answer in answers))
    bytes_sent = round(median(max(answer.traffic.bytes_sent_per_party) for answer in answers))
    # `dealt_ahead` is there in daemons that keep a pool of bundles.
    ahead = [getattr(answer.timings, "dealt_ahead", None) for answer in answers]
    phases = Phases.of(online_s, rounds=rounds, bytes_sent=bytes_sent, parties=work.parties, link=links.default)
    return Figures(
        online_s=online_s,
        offline_s=median(answer.timings.offline_s for answer in answers),
        total_s=median(samples.totals),
        cold_s=median(cold) if cold else None,
        first_s=first_s,
        rounds=rounds,
        bytes_sent=bytes_sent,
        link_bytes=round(median(samples.link_bytes)),
        offline_bytes=round(median(answer.traffic.offline_bytes for answer in answers)),
        max_error=samples.largest_error,
        repeats=len(answers),
        dealt_ahead=None if None in ahead else sum(map(bool, ahead)),
        images_per_s=work.batch / online_s if online_s else 0.0,
        sustained_images_per_s=sustained,
        load=os.getloadavg()[0],
        phases=phases,
    )


async def _ask(
    client: Client, *, work: Work, inputs: Floats, samples: _Samples, profile: str = ""
) -> tuple[Answer, float]:
    options = query_options(work.engine, profile)
    began = time.monotonic()
    answer = await client.query(work.service, inputs, parties=work.parties, deadline_s=QUERY_DEADLINE_S, **options)
    total_s = time.monotonic() - began
    samples.check(answer)
    if answer.engine != work.engine:
        raise ConfigError(f"the answer came from the engine {answer.engine!r}, not from {work.engine!r}")
    return answer, total_s


def query_options(engine: str, profile: str = "") -> dict[str, Any]:
    """Return how a query asks for an engine, and for a profile if the client knows them.

    Raises `ConfigError` where the client can ask for the native engine only.
    """
    known = inspect.signature(Client.query).parameters
    if engine != "native" and "engine" not in known:
        raise ConfigError(f"this finode does not offer the engine {engine!r}")
    options = {"engine": engine, "profile": profile}
    return {name: value for name, value in options.items() if value and name in known}


async def _stream(ask: Callable[[], Awaitable[object]], work: Work) -> float:
    """Return images a second of queries without a pause between them."""
    began = time.monotonic()
    asked = 0

    async def worker() -> None:
        nonlocal asked
        while asked < 3 or time.monotonic() - began < STREAM_SECONDS:
            asked += 1
            await ask()

    async with first_error(), trio.open_nursery() as nursery:
        for _ in range(STREAM_WIDTH):
            nursery.start_soon(worker)
    return asked * work.batch / (time.monotonic() - began)


async def _wait_until_warm(nodes: Sequence[NodeState]) -> None:
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


async def _wait_until_it_can_ask(client: Client, work: Work) -> None:
    """Wait until a querier has all offers and a connection to everybody; records come before connections do."""
    lacks = ""
    with trio.move_on_after(CONNECTED_TIMEOUT_S):
        while True:
            offers = sum(len(service.offers) for service in await client.services() if service.name == work.service)
            far = [peer.organization for peer in await client.peers() if not peer.connected]
            if offers == work.models and not far:
                return
            lacks = f"it knows {offers} of {work.models} models and lacks a connection to {', '.join(far) or 'nobody'}"
            await trio.sleep(POLL_S)
    raise DaemonUnavailable(f"after {CONNECTED_TIMEOUT_S:.0f} s a querier cannot ask: {lacks}")


def _busiest(network: Network, before: _Traffic, after: _Traffic) -> int:
    parties = [node.name for node in network.with_role(Role.PARTY)]
    return max(after[one, other] - before[one, other] for one in parties for other in parties if one != other)


def _fail_on_exit(node: NodeState, code: int) -> None:
    raise DaemonUnavailable(f"node {node.name!r} {describe_exit(code)} during the benchmark", hint=log_hint(node))
