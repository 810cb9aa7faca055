"""`finode testnet up | down | demo | fairness`.

What they need is imported when they run, so that `finode --help` stays quick.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from finode.testnet.demo import DemoVote
    from finode.testnet.links import LinkTable
    from finode.testnet.network import NodeState
    from finode.testnet.topology import Topology

DEFAULT_DIRECTORY = "~/.finode-testnet"
INTERRUPTED = 130
"""The shell's status of a command that Ctrl-C ended."""

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the nodes' homes are.",
)


link_option = click.option(
    "--link",
    "link",
    default="",
    metavar="KIND|FILE",
    help="Emulate the links: lan, regional, continental or intercontinental, or a TOML file that says which.",
)


@click.group()
def testnet() -> None:
    """Run a federation of several nodes on this machine."""


@testnet.command()
@click.option(
    "--topology",
    "topology_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TOML file that says what nodes there are; by default six organizations.",
)
@directory_option
@link_option
@click.option("--detach", is_flag=True, help="Return when all are ready; stop them with `finode testnet down`.")
def up(topology_path: Path | None, directory: Path, link: str, detach: bool) -> None:
    """Start a testnet, say who is what, and stop it on Ctrl-C."""
    from finode.testnet.topology import default_topology, load_topology

    topology = load_topology(topology_path) if topology_path else default_topology()
    links = _links(link, topology)
    sys.exit(run_async(partial(_up, topology, _absolute(directory), links, detach), interrupted=0))


@testnet.command()
@directory_option
def down(directory: Path) -> None:
    """Stop a testnet that was detached, or whose starter was killed."""
    sys.exit(run_async(partial(_down, _absolute(directory)), interrupted=INTERRUPTED))


@testnet.command()
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of split and models.")
@click.option(
    "--vote",
    type=click.Choice(("soft", "prior")),
    default="soft",
    show_default=True,
    help="How the models' answers become one.",
)
@link_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(seed: int, vote: DemoVote, link: str, as_json: bool) -> None:
    """Train five models, and answer a private query with all of them.

    Five organizations train small models on uneven parts of scikit-learn's digits. A sixth asks for 32 digits at
    once, on secret shares; the answer is compared with the plaintext one.
    """
    from finode.testnet.demo import demo_topology

    links = _links(link, demo_topology())
    sys.exit(run_async(partial(_demo, seed, vote, links, as_json), interrupted=INTERRUPTED))


@testnet.command()
@click.option("--seeds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Federations at each skew.")
@click.option(
    "--alpha",
    "alphas",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    show_default="0.1, 0.3, 0.5 and 1; with --daemons 0.1",
    help="Of the Dirichlet split: the smaller, the more uneven; may be given again.",
)
@click.option("--attacks", is_flag=True, help="Also measure what owners that cheat would earn.")
@click.option("--daemons", is_flag=True, help="Have daemons answer and open the sums, for one seed at each skew.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="With --daemons: which.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def fairness(seeds: int, alphas: tuple[float, ...], attacks: bool, daemons: bool, seed: int, as_json: bool) -> None:
    """Compare the reward schemes: does pay follow accuracy?

    Trains five models on uneven parts of scikit-learn's digits, for several seeds and degrees of skew, and pays them
    by what every scheme sees. Without --daemons the sums that they see are computed in the clear.
    """
    from rich.console import Console

    from finode.testnet.fairness import ALPHAS, measure
    from finode.testnet.fairness_report import print_attacks, print_fairness, to_json
    from finode.testnet.report import open_screen

    if daemons:
        if attacks:
            raise click.UsageError("--attacks are not for daemons: none of finode's cheats")
        sys.exit(run_async(partial(_fairness, seed, alphas or ALPHAS[:1], as_json), interrupted=INTERRUPTED))
    with open_screen(Console(stderr=True)) as screen:
        rows, gains = measure(
            seeds, alphas=alphas or ALPHAS, with_attacks=attacks, on_progress=partial(screen.step, "train")
        )
    if as_json:
        click.echo(to_json(rows, gains))
        return
    print_fairness(Console(), rows, seeds)
    print_attacks(Console(), gains)


def _links(value: str, topology: Topology) -> LinkTable | None:
    from finode.testnet.links import load_links

    return load_links(value, [node.name for node in topology.nodes]) if value else None


def _absolute(directory: Path) -> Path:
    return directory.expanduser().absolute()


async def _up(topology: Topology, directory: Path, links: LinkTable | None, detach: bool) -> int:
    from rich.console import Console

    from finode.testnet.network import describe_exit, read_state, start
    from finode.testnet.report import open_screen, print_nodes

    network = await start(topology, directory, links=links)
    is_left_running = False
    try:
        ready: list[str] = []
        with open_screen(Console(stderr=True)) as screen:

            def on_ready(node: NodeState) -> None:
                ready.append(node.name)
                screen.step("daemons", f"{node.name} knows all others", len(ready), len(network.nodes))

            screen.step("daemons", "starting", 0, len(network.nodes))
            await network.wait_ready(on_ready)
        print_nodes(Console(), network.nodes)
        if detach:
            network.detach()
            is_left_running = True
            click.echo(f"\nStop them with: finode testnet down --dir {directory}")
            return 0
        click.echo("\nCtrl-C stops them.")

        def on_exit(node: NodeState, code: int) -> None:
            click.echo(f"{node.name} ({node.organization}) {describe_exit(code)}; its log: {node.log_path}", err=True)

        await network.watch(on_exit)
        if read_state(directory) is None:
            return 0  # `finode testnet down` did it
        click.echo("no node is left", err=True)
        return 1
    finally:
        if not is_left_running:
            _say_killed(await network.stop())


async def _down(directory: Path) -> int:
    from finode.testnet.network import stop_detached

    stopped, killed = await stop_detached(directory)
    click.echo(f"stopped {', '.join(node.name for node in stopped)}" if stopped else "no node was left")
    _say_killed(killed)
    return 0


async def _demo(seed: int, vote: DemoVote, links: LinkTable | None, as_json: bool) -> int:
    from rich.console import Console

    from finode.errors import FinodeError
    from finode.testnet.demo import run_demo
    from finode.testnet.report import demo_json, describe_agreement, open_screen, print_demo

    directory = Path(tempfile.mkdtemp(prefix="finode-demo-"))
    is_kept = False
    try:
        with open_screen(Console(stderr=True)) as screen:
            result = await run_demo(directory, seed=seed, vote=vote, screen=screen, links=links)
    except FinodeError:
        is_kept = True
        click.echo(f"the nodes' homes and logs are kept in {directory}", err=True)
        raise
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(demo_json(result), indent=2))
    else:
        print_demo(Console(), result)
    for asked in result.queries:
        if not asked.agreement.holds:
            raise FinodeError(
                f"the private answer is not the plaintext one: {describe_agreement(asked.agreement)}",
                hint=f"this is a bug of finode; it comes again with --seed {seed}",
            )
    if not result.settlement.holds:
        raise FinodeError("the books of the nodes differ, or do not add up", hint="this is a bug of finode")
    return 0


async def _fairness(seed: int, alphas: tuple[float, ...], as_json: bool) -> int:
    from rich.console import Console

    from finode.errors import FinodeError
    from finode.testnet.fairness_report import opened_json, print_opened
    from finode.testnet.opened import run_with_daemons
    from finode.testnet.report import open_screen

    runs = []
    for alpha in alphas:
        directory = Path(tempfile.mkdtemp(prefix="finode-fairness-"))
        try:
            with open_screen(Console(stderr=True)) as screen:
                runs.append(await run_with_daemons(directory, seed=seed, alpha=alpha, screen=screen))
        except FinodeError:
            click.echo(f"the nodes' homes and logs are kept in {directory}", err=True)
            raise
        shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        click.echo(opened_json(runs))
    else:
        print_opened(Console(), runs)
    if not all(run.holds for run in runs):
        raise FinodeError(
            "the opened sums are not those in the clear, or the books of the nodes differ",
            hint=f"this is a bug of finode; it may come again with --seed {seed}",
        )
    return 0


def _say_killed(killed: tuple[NodeState, ...]) -> None:
    for node in killed:
        click.echo(f"{node.name} did not stop and was killed; its log: {node.log_path}", err=True)


def run_async(main: Callable[[], Awaitable[int]], *, interrupted: int) -> int:
    """Run `main` on trio and return its status, or `interrupted` if a signal cancelled it."""
    import trio

    from finode.testnet.network import first_error

    async def guarded() -> int:
        status = interrupted
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with first_error(), trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                async def listen() -> None:
                    async for _ in signals:
                        if not scope.cancel_called:
                            click.echo("stopping", err=True)
                        scope.cancel()

                nursery.start_soon(listen)
                with scope:
                    status = await main()
                nursery.cancel_scope.cancel()
        return status

    return trio.run(guarded)
