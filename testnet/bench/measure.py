"""Measuring: one federation for all works of equal parties, and for each work its queries.

The links change between works, the daemons stay. The native engine's works come first, so that what slower engines
leave to be dealt does not lie on them.

Between two queries there is a pause until the links are quiet, so that a pool of bundles, where there is one, is full
again: what is measured is a query that comes by itself. A stream of queries is measured on its own (`sustained`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import trio

from finode.client import Answer, Client
from finode.config import Role
from finode.daemon.plaintext import soft_vote
from finode.errors import ConfigError, DaemonUnavailable, FinodeError
from finode.testnet.bench import agreement, models
from finode.testnet.bench.agreement import Agreement, Digits
from finode.testnet.bench.federation import (
    QUERY_DEADLINE_S,
    Querier,
    client_of,
    topology_of,
    wait_until_it_can_ask,
)
from finode.testnet.bench.quiet import busiest, wait_until_quiet
from finode.testnet.bench.work import Figures, Phases, Row, Work
from finode.testnet.emulation import Emulation
from finode.testnet.links import LinkTable, load_links
from finode.testnet.network import Network, NodeState, describe_exit, first_error, log_hint, start

STREAM_SECONDS: Final = 10.0
"""A stream of queries is measured for so long at least, after its first answers."""
STREAM_WIDTH: Final = 2
"""Queries of a stream that are under way at once, so that one is dealt for while the other computes."""
AGREEMENT_LINK: Final = "lan"
AGREEMENT_PARTIES: Final = 2

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to measure: `repeats` queries for a median, fewer where a work's queries used up `budget_s`; the cold ones
    too or not; with these `engines`, ask for digits and compare their classes."""

    repeats: int = 5
    budget_s: float = 20.0
    cold: bool = True
    agreement_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """All that a benchmark found."""

    rows: tuple[Row, ...]
    agreements: tuple[Agreement, ...] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """One query, how long it took as the client saw it, and what a link between parties carried meanwhile."""

    answer: Answer
    total_s: float
    link_bytes: int | None = None

    @property
    def served_s(self) -> float:
        """The time without agreeing on a committee and handing out weights."""
        return self.total_s - self.answer.timings.negotiation_s - self.answer.timings.deployment_s


async def _ask(client: Client, service: str, engine: str, inputs: Floats, check: Callable[[Answer], None]) -> _Asked:
    """Ask once, and have `check` look at the answer."""
    began = time.monotonic()
    wanted: Literal["native", "crypten"] = "crypten" if engine == "crypten" else "native"
    answer = await client.query(service, inputs, deadline_s=QUERY_DEADLINE_S, engine=wanted)
    total_s = time.monotonic() - began
    if answer.engine != engine:
        raise ConfigError(f"the answer came from the engine {answer.engine!r}, not from {engine!r}")
    check(answer)
    return _Asked(answer, total_s)


@dataclass(frozen=True, slots=True)
class _Bench:
    """One federation and how to measure it."""

    network: Network
    emulation: Emulation
    plan: Plan
    on_step: Callable[[str], None]

    async def series(self, ask: Callable[[], Awaitable[_Asked]]) -> tuple[_Asked, list[_Asked]]:
        """Return a warm-up, and the queries that count: the warm-up itself where it took all the time there is."""
        first = await ask()
        if first.served_s >= self.plan.budget_s:
            return first, [first]
        counted: list[_Asked] = []
        while len(counted) < self.plan.repeats and sum(each.served_s for each in counted) < self.plan.budget_s:
            await wait_until_quiet(self.emulation, first.answer.timings.offline_s)
            before = await self.emulation.traffic()
            asked = await ask()
            carried = busiest(self.network, before, await self.emulation.traffic())
            counted.append(_Asked(asked.answer, asked.total_s, carried))
        return first, counted


async def run(
    works: Sequence[Work],
    plan: Plan,
    directory: Path,
    *,
    on_step: Callable[[str, int, int], None],
    on_row: Callable[[Row], None],
) -> Results:
    """Measure all works, those of equal parties in one federation; return the rows in the order of `works`.

    A work that fails gives a row with the reason. Raises a `FinodeError` if a federation does not start.
    """
    rows: dict[Work, Row] = {}
    agreements: list[Agreement] = []

    def step(what: str) -> None:
        on_step(what, len(rows), len(works))

    for parties in sorted({work.parties for work in works}):
        group = [work for work in works if work.parties == parties]
        folder = directory / f"parties-{parties}"
        digits: Digits | None = None
        if plan.agreement_of and parties == AGREEMENT_PARTIES:
            step("training models for digits")
            digits = await trio.to_thread.run_sync(agreement.train, folder / "digits", abandon_on_cancel=True)
        step(f"{parties} parties: models and daemons")
        topology = await trio.to_thread.run_sync(topology_of, group, folder, digits)
        names = [node.name for node in topology.nodes]
        tables = {link: load_links(link, names) for link in {AGREEMENT_LINK, *(work.link for work in group)}}
        network = await start(topology, folder / "net", links=tables[group[0].link])
        try:
            async with first_error(), trio.open_nursery() as nursery:
                nursery.start_soon(network.watch, _fail_on_exit)
                await network.wait_ready(lambda node: None)
                assert network.emulation is not None  # noqa: S101 - it was started with links
                bench = _Bench(network, network.emulation, plan, step)
                for engine in dict.fromkeys(work.engine for work in sorted(group, key=_order)):
                    for work in sorted((work for work in group if work.engine == engine), key=_order):
                        step(str(work))
                        rows[work] = await _row(bench, work, tables[work.link])
                        on_row(rows[work])
                    if digits is not None and engine in plan.agreement_of:
                        await network.emulation.set_links(tables[AGREEMENT_LINK])
                        agreements.append(await _agreement(bench, digits, engine))
                nursery.cancel_scope.cancel()
        finally:
            await network.stop()
    return Results(tuple(rows[work] for work in works), tuple(agreements))


def _order(work: Work) -> tuple[bool, int, str, str]:
    # One service after the other: the parties keep a deployment while its works run on all links. Large bundles last,
    # for one that is dealt ahead and not wanted any more would be dealt while the next work is measured.
    return work.engine != "native", work.batch, work.service, work.engine


async def _row(bench: _Bench, work: Work, links: LinkTable) -> Row:
    try:
        return Row(work, await _measure(bench, work, links))
    except FinodeError as error:
        return Row(work, None, error.message)


async def _measure(bench: _Bench, work: Work, links: LinkTable) -> Figures:
    await bench.emulation.set_links(links)
    inputs = models.inputs(work.batch)
    owners = [node.home for node in bench.network.with_role(Role.OWNER)]
    expected = await trio.to_thread.run_sync(soft_vote, owners, work.service, inputs)
    errors: list[float] = []

    def check(answer: Answer) -> None:
        if answer.probabilities is None:
            raise FinodeError("the benchmark asked for probabilities, and the answer has none")
        errors.append(float(np.abs(answer.probabilities - expected).max()))

    async def series_of(querier: Querier) -> tuple[_Asked, list[_Asked]]:
        async with client_of(bench.network, querier) as client:
            await wait_until_it_can_ask(client, work.service, work.models)
            return await bench.series(partial(_ask, client, work.service, work.engine, inputs, check))

    first, asked = await series_of(Querier.STREAMING if work.sustained else Querier.KEEPING)
    cold: list[_Asked] = []
    if work.cold and bench.plan.cold:
        cold = (await series_of(Querier.COLD))[1]
    sustained: float | None = None
    if work.sustained:
        async with client_of(bench.network, Querier.STREAMING) as client:
            await wait_until_it_can_ask(client, work.service, work.models)
            sustained = await _stream(bench, partial(_ask, client, work.service, work.engine, inputs, check), work)
    return _figures(bench.plan, work, links, first, asked, cold, sustained, max(errors))


def _figures(
    plan: Plan,
    work: Work,
    links: LinkTable,
    first: _Asked,
    asked: Sequence[_Asked],
    cold: Sequence[_Asked],
    sustained: float | None,
    max_error: float,
) -> Figures:
    answers = [each.answer for each in asked]
    online_s = median(answer.timings.online_s for answer in answers)
    rounds = round(median(answer.traffic.rounds for answer in answers))
    bytes_sent = round(median(max(answer.traffic.bytes_sent_per_party) for answer in answers))
    bundles = [answer.traffic.offline_bytes_per_party for answer in answers]
    carried = [each.link_bytes for each in asked if each.link_bytes is not None]
    notes = []
    if asked[0] is first:
        notes.append("one query, the first")
    elif len(asked) < plan.repeats:
        notes.append(f"{len(asked)} of {plan.repeats} queries")
    if cold and len(cold) < plan.repeats:
        notes.append(f"cold {len(cold)}")
    return Figures(
        online_s=online_s,
        offline_s=median(answer.timings.offline_s for answer in answers),
        total_s=median(each.served_s if each is first else each.total_s for each in asked),
        cold_s=median(each.total_s for each in cold) if cold else None,
        first_s=first.total_s,
        rounds=rounds,
        bytes_sent=bytes_sent,
        link_bytes=round(median(carried)) if carried else None,
        offline_bytes=round(median(answer.traffic.offline_bytes for answer in answers)),
        bundle_last=round(median(bundle[-1] for bundle in bundles)),
        bundle_others=round(median(max(bundle[:-1]) for bundle in bundles)),
        max_error=max_error,
        repeats=len(asked),
        cold_repeats=len(cold),
        dealt_ahead=sum(answer.timings.dealt_ahead for answer in answers),
        images_per_s=work.batch / online_s if online_s else 0.0,
        sustained_images_per_s=sustained,
        load=os.getloadavg()[0],
        note=", ".join(notes),
        phases=Phases.of(
            online_s,
            rounds=rounds,
            bytes_sent=bytes_sent,
            parties=work.parties,
            compute_s=median(answer.timings.compute_s for answer in answers),
            link=links.default,
        ),
    )


async def _stream(bench: _Bench, ask: Callable[[], Awaitable[_Asked]], work: Work) -> float:
    """Return images a second of queries without a pause between them, dealing included.

    The first answer of each place in the stream does not count: it waited for weights, and found what had been dealt
    while nobody asked. Where already one query takes all the time there is, that one is the figure.
    """
    first = await ask()
    if first.served_s >= bench.plan.budget_s:
        return work.batch / first.served_s
    answered: list[float] = []

    async def place() -> None:
        while len(answered) <= 2 * STREAM_WIDTH or answered[-1] - answered[STREAM_WIDTH - 1] < STREAM_SECONDS:
            await ask()
            answered.append(time.monotonic())

    async with first_error(), trio.open_nursery() as nursery:
        for _ in range(STREAM_WIDTH):
            nursery.start_soon(place)
    counted = answered[STREAM_WIDTH - 1 :]
    return (len(counted) - 1) * work.batch / (counted[-1] - counted[0])


async def _agreement(bench: _Bench, digits: Digits, engine: str) -> Agreement:
    spent: list[float] = []
    async with client_of(bench.network, Querier.KEEPING) as client:

        async def ask(inputs: Floats) -> Answer:
            asked = await _ask(client, Digits.SERVICE, engine, inputs, lambda answer: None)
            spent.append(asked.total_s)
            return asked.answer

        def on_step(done: int, total: int) -> None:
            bench.on_step(f"{done} of {total} digits, {engine}")

        def goes_on() -> bool:
            # A native query costs little: the budget is for engines that would take many minutes.
            return engine == "native" or sum(spent) < bench.plan.budget_s

        await wait_until_it_can_ask(client, Digits.SERVICE, len(digits.models))
        return await agreement.compare(digits, ask, goes_on, engine=engine, link=AGREEMENT_LINK, on_step=on_step)


def _fail_on_exit(node: NodeState, code: int) -> None:
    raise DaemonUnavailable(f"node {node.name!r} {describe_exit(code)} during the benchmark", hint=log_hint(node))
