"""`finode bench`: measure the engine through real daemons over emulated links.

What it needs is imported when it runs, so that `finode --help` stays quick.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finode.testnet.bench.work import SWEEPS, Work, on_devices, quick_preset, table_preset, with_engines
from finode.testnet.commands import INTERRUPTED, run_async
from finode.testnet.links import KINDS

if TYPE_CHECKING:
    from finode.testnet.bench.series import Plan

_ENGINES = ("native", "crypten")
_DEVICES = ("cpu", "cuda")
_ALL = "all"


@click.command()
@click.option("--quick", is_flag=True, help="Only five LeNets, two parties, one image: about a minute.")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    type=click.Choice([*SWEEPS, _ALL]),
    help="Vary one thing; may be given again.",
)
@click.option("--model", default="", help="Measure this model alone; --model help lists them.")
@click.option("--models", type=click.IntRange(1, 16), default=1, show_default=True, help="How many of --model.")
@click.option(
    "--profile",
    type=click.Choice(("latency", "throughput")),
    default="latency",
    show_default=True,
    help="With --model; throughput measures a stream of queries, too.",
)
@click.option("--parties", type=click.IntRange(2, 16), default=2, show_default=True, help="With --model.")
@click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="With --model.")
@click.option(
    "--link",
    "links",
    multiple=True,
    metavar="KIND|FILE",
    help=f"{', '.join(KINDS)}, or a TOML file; may be given again, and takes the place of those of preset or sweep.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(_ENGINES),
    help="May be given again: the engines are measured side by side. Without options both are, otherwise native.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=click.Choice(_DEVICES),
    default=("cpu",),
    show_default=True,
    help="Where parties and dealer compute; all of them share this machine's GPU. May be given again.",
)
@click.option("--repeat", type=click.IntRange(1, 100), default=5, show_default=True, help="Queries for a median.")
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="A query that computes for more seconds than this is not repeated.",
)
@click.option("--cold/--no-cold", default=True, show_default=True, help="Measure queries on new committees, too.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write rows.json and rows.csv there, and a PNG for each sweep.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench(
    quick: bool,
    sweeps: tuple[str, ...],
    model: str,
    models: int,
    profile: str,
    parties: int,
    batch: int,
    links: tuple[str, ...],
    engines: tuple[str, ...],
    devices: tuple[str, ...],
    repeat: int,
    budget: float,
    cold: bool,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Measure private queries: latency, rounds, bytes, error.

    Starts a federation on this machine, with emulated links and models of random weights, and asks it. Without options
    it measures the figures that the engine is held to, CrypTen beside it, which takes about a quarter of an hour, and
    says which are met. Each figure is a median after a warm-up.
    """
    from finode.testnet.bench.series import Plan

    if sum((quick, bool(sweeps), bool(model))) > 1:
        raise click.UsageError("give one of --quick, --sweep and --model")
    if directory is not None and sweeps:
        from finode.testnet.bench.plots import require_matplotlib

        require_matplotlib()
    groups: dict[str, tuple[Work, ...]]
    if model:
        groups = {"": _single(Work(model=model, models=models, parties=parties, batch=batch, profile=profile))}
    elif sweeps:
        groups = {name: SWEEPS[name]() for name in (SWEEPS if _ALL in sweeps else dict.fromkeys(sweeps))}
    else:
        groups = {"": quick_preset() if quick else table_preset()}
    is_table = not (quick or sweeps or model)
    engines = engines or (_ENGINES if is_table else _ENGINES[:1])
    groups = {
        name: on_devices(with_engines(_on_links(works, links), engines), devices) for name, works in groups.items()
    }
    plan = Plan(repeats=repeat, budget_s=budget, cold=cold, agreement_of=engines if is_table else ())
    sys.exit(run_async(partial(_bench, groups, plan, directory, as_json), interrupted=INTERRUPTED))


def _single(work: Work) -> tuple[Work, ...]:
    from finode.testnet.bench.models import MODELS

    if work.model not in MODELS:
        raise click.BadParameter(f"{work.model!r} is none of {', '.join(MODELS)}", param_hint="--model")
    return tuple(replace(work, link=link) for link in ("lan", "continental"))


def _on_links(works: Sequence[Work], links: Sequence[str]) -> tuple[Work, ...]:
    if not links:
        return tuple(works)
    return tuple(dict.fromkeys(replace(work, link=link) for work in works for link in links))


async def _bench(groups: dict[str, tuple[Work, ...]], plan: Plan, directory: Path | None, as_json: bool) -> int:
    from rich.console import Console

    from finode.testnet.bench import report
    from finode.testnet.bench.measure import Results, run
    from finode.testnet.bench.plots import draw
    from finode.testnet.bench.work import Row
    from finode.testnet.report import open_screen

    works = tuple(dict.fromkeys(work for group in groups.values() for work in group))
    done: list[Row] = []
    homes = Path(tempfile.mkdtemp(prefix="finode-bench-"))

    def on_row(row: Row) -> None:
        done.append(row)
        if directory is not None:
            report.write(Results(tuple(done)), directory)  # after each, so that an interrupted run leaves what it has

    try:
        with open_screen(Console(stderr=True)) as screen:
            results = await run(works, plan, homes, on_step=partial(screen.step, "bench"), on_row=on_row)
    finally:
        shutil.rmtree(homes, ignore_errors=True)
    if directory is not None:
        written = list(report.write(results, directory))
        by_work = {row.work: row for row in results.rows}
        for name, group in groups.items():
            if name:
                draw(name, [by_work[work] for work in group], directory / f"{name}.png")
                written.append(directory / f"{name}.png")
        click.echo(f"wrote {', '.join(map(str, written))}", err=True)
    if as_json:
        click.echo(report.to_json(results))
    else:
        report.print_results(Console(), results)
    return 0 if all(row.figures is not None for row in results.rows) else 1
