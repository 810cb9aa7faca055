"""A query's progress on standard error: bars by phase on a terminal, a line for each phase otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from finode.client import Progress as Step

PHASES = ("committee", "deployment", "preprocessing", "rounds")
OnProgress = Callable[["Step"], None]


@contextmanager
def shown_progress() -> Iterator[OnProgress]:
    """Show the progress of one query while the block runs; gives the callback for `Client.query`."""
    with _bars() if sys.stderr.isatty() else _lines() as on_progress:
        yield on_progress


@contextmanager
def _lines() -> Iterator[OnProgress]:
    last = ""

    def on_progress(step: Step) -> None:
        nonlocal last
        if step.phase != last:
            click.echo(f"{step.phase}: {step.detail}" if step.detail else step.phase, err=True)
        last = step.phase

    yield on_progress


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def on_progress(step: Step) -> None:
        if step.phase not in tasks:
            for phase, task in tasks.items():
                # A second attempt begins again with the committee; what is before the phase that runs is done.
                if _order(phase) < _order(step.phase):
                    bars.stop_task(task)
            tasks[step.phase] = bars.add_task(f"{step.phase:<13}", total=step.total or None, detail="")
        bars.update(tasks[step.phase], completed=step.done, total=step.total or None, detail=escape(step.detail))

    with bars:
        yield on_progress


def _order(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)
