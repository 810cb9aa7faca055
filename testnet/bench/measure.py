"""Measuring: one federation for all works of equal parties on one device, and for each work its queries.

The links change between works, the daemons stay. The native engine's works come first, so that what slower engines
leave to be dealt does not lie on them.

Between two queries there is a pause until the links are quiet, so that a pool of bundles, where there is one, is full
again: what is measured is a query that comes by itself. A stream of queries is measured on its own (`sustained`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
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
    wait_until_warm,
)
from finode.testnet.bench.quiet import busiest, wait_until_quiet
from finode.testnet.bench.series import Asked, Plan, Series, ask_in_series, stream_per_s
from finode.testnet.bench.work import Figures, Phases, Row, Work, computed_by
from finode.testnet.emulation import Emulation
from finode.testnet.links import LinkTable, load_links
from finode.testnet.network import Network, NodeState, describe_exit, first_error, log_hint, start

AGREEMENT_LINK: Final = "lan"
AGREEMENT_PARTIES: Final = 2
AGREEMENT_BUDGETS: Final = 6
"""What a slow engine's digits may take, in budgets of one query."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Results:
    """All that a benchmark found."""

    rows: tuple[Row, ...]
    agreements: tuple[Agreement, ...] = ()


async def _ask(client: Client, service: str, engine: str, inputs: Floats, check: Callable[[Answer], None]) -> Asked:
    """Ask once, and have `check` look at the answer."""
    began = time.monotonic()
    wanted: Literal["native", "crypten"] = "crypten" if engine == "crypten" else "native"
    answer = await client.query(service, inputs, deadline_s=QUERY_DEADLINE_S, engine=wanted)
    total_s = time.monotonic() - began
    if answer.engine != engine:
        raise ConfigError(f"the answer came from the engine {answer.engine!r}, not from {engine!r}")
    if missing := answer.committee.left_out:
        raise FinodeError(f"{len(missing)} of the models had no vote, one of {missing[0].owner}: {missing[0].reason}")
    check(answer)
    return Asked(answer, total_s)


@dataclass(frozen=True, slots=True)
class _Bench:
    """One federation and how to measure it."""

    network: Network
    emulation: Emulation
    plan: Plan
    on_step: Callable[[str], None]

    async def count_bytes(self, ask: Callable[[], Awaitable[Asked]]) -> Asked:
        """Ask, and see what the links between parties carry meanwhile."""
        before = await self.emulation.traffic()
        asked = await ask()
        return replace(asked, link_bytes=busiest(self.network, before, await self.emulation.traffic()))

    async def settle(self, first: Asked) -> None:
        """Wait until a pool, if there is one, is full again."""
        await wait_until_quiet(self.emulation, first.answer.timings.offline_s)


async def run(
    works: Sequence[Work],
    plan: Plan,
    directory: Path,
    *,
    on_step: Callable[[str, int, int], None],
    on_row: Callable[[Row], None],
) -> Results:
    """Measure all works, those of equal parties and device in one federation; return rows in the order of `works`.

    A work that fails gives a row with the reason. Raises a `FinodeError` if a federation does not start.
    """
    rows: dict[Work, Row] = {}
    digits: Digits | None = None
    agreements: list[Agreement] = []

    def step(what: str) -> None:
        on_step(what, len(rows), len(works))

    for parties, device in sorted({(work.parties, work.device) for work in works}):
        group = [work for work in works if (work.parties, work.device) == (parties, device)]
        folder = directory / f"parties-{parties}-{device}"
        asks_digits = bool(plan.agreement_of) and parties == AGREEMENT_PARTIES
        if asks_digits and digits is None:
            step("training models for digits")
            digits = await trio.to_thread.run_sync(agreement.train, directory / "digits", abandon_on_cancel=True)
        step(f"{parties} parties: models and daemons")
        given = digits if asks_digits else None
        topology = await trio.to_thread.run_sync(topology_of, group, folder, given)
        names = [node.name for node in topology.nodes]
        tables = {link: load_links(link, names) for link in {AGREEMENT_LINK, *(work.link for work in group)}}
        network = await start(topology, folder / "net", links=tables[group[0].link])
        try:
            async with first_error(), trio.open_nursery() as nursery:
                nursery.start_soon(network.watch, _fail_on_exit)
                await network.wait_ready(lambda node: None)
                assert network.emulation is not None  # noqa: S101 - it was started with links
                await wait_until_warm([*network.with_role(Role.PARTY), *network.with_role(Role.DEALER)])
                bench = _Bench(network, network.emulation, plan, step)
                for engine in dict.fromkeys(work.engine for work in sorted(group, key=_order)):
                    for work in sorted((work for work in group if work.engine == engine), key=_order):
                        step(str(work))
                        rows[work] = await _row(bench, work, tables[work.link])
                        on_row(rows[work])
                    if given is not None and engine in plan.agreement_of:
                        await network.emulation.set_links(tables[AGREEMENT_LINK])
                        agreements.append(await _agreement(bench, given, engine, device))
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
    inputs = models.inputs(work.batch, shape=models.input_shape(work.model))
    owners = [node.home for node in bench.network.with_role(Role.OWNER)]
    expected = await trio.to_thread.run_sync(soft_vote, owners, work.service, inputs)
    errors: list[float] = []

    def check(answer: Answer) -> None:
        if answer.probabilities is None:
            raise FinodeError("the benchmark asked for probabilities, and the answer has none")
        errors.append(float(np.abs(answer.probabilities - expected).max()))

    async def measure(querier: Querier) -> tuple[Series, float | None]:
        async with client_of(bench.network, querier) as client:
            await wait_until_it_can_ask(client, work.service, work.models)
            ask = partial(_ask, client, work.service, work.engine, inputs, check)
            series = await ask_in_series(partial(bench.count_bytes, ask), bench.plan, bench.settle)
            if querier is not Querier.STREAMING:
                return series, None
            if series.is_first_alone:  # whose bundle was dealt for it
                return series, work.batch / series.first.served_s
            return series, work.batch * await stream_per_s(ask)

    series, sustained = await measure(Querier.STREAMING if work.sustained else Querier.KEEPING)
    cold: tuple[Asked, ...] = ()
    if work.cold and bench.plan.cold:
        cold = (await measure(Querier.COLD))[0].counted
    return _figures(work, links, series, cold, sustained, max(errors))


def _figures(
    work: Work,
    links: LinkTable,
    series: Series,
    cold: Sequence[Asked],
    sustained: float | None,
    max_error: float,
) -> Figures:
    first, asked = series.first, series.counted
    answers = [each.answer for each in asked]
    online_s = median(answer.timings.online_s for answer in answers)
    rounds = round(median(answer.traffic.rounds for answer in answers))
    bytes_sent = round(median(max(answer.traffic.bytes_sent_per_party) for answer in answers))
    bundles = [answer.traffic.offline_bytes_per_party for answer in answers]
    # Of a first query the weights would count, too.
    carried = [each.link_bytes for each in asked if each.link_bytes is not None and not series.is_first_alone]
    note = "one query, the first" if series.is_first_alone else ""
    if cold and len(cold) < len(asked):
        note = "one cold query"
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
        note=note,
        phases=Phases.of(
            online_s,
            rounds=rounds,
            bytes_sent=bytes_sent,
            parties=work.parties,
            compute_s=median(answer.timings.compute_s for answer in answers),
            link=links.default,
        ),
    )


async def _agreement(bench: _Bench, digits: Digits, engine: str, device: str) -> Agreement:
    spent: list[float] = []
    async with client_of(bench.network, Querier.KEEPING) as client:

        async def ask(inputs: Floats) -> Answer:
            asked = await _ask(client, Digits.SERVICE, engine, inputs, lambda answer: None)
            spent.append(asked.total_s)
            return asked.answer

        def on_step(done: int, total: int) -> None:
            bench.on_step(f"{done} of {total} digits, {computed_by(engine, device)}")

        def goes_on() -> bool:
            # A native query costs little; an engine that would take many minutes for all is asked for some.
            return engine == "native" or sum(spent) < AGREEMENT_BUDGETS * bench.plan.budget_s

        await wait_until_it_can_ask(client, Digits.SERVICE, len(digits.models))
        found = await agreement.compare(digits, ask, goes_on, engine=engine, link=AGREEMENT_LINK, on_step=on_step)
    return replace(found, device=device)


def _fail_on_exit(node: NodeState, code: int) -> None:
    raise DaemonUnavailable(f"node {node.name!r} {describe_exit(code)} during the benchmark", hint=log_hint(node))
