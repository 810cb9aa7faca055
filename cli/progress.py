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
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bars = Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}
    attempt = 1

    def on_progress(step: Step) -> None:
        nonlocal attempt
        if step.phase == PHASES[0] and len(tasks) > 1:
            # Without the member that failed, from the beginning; what it was stays on the screen.
            attempt += 1
            for task in tasks.values():
                bars.remove_task(task)
            tasks.clear()
        if step.phase not in tasks:
            for task in tasks.values():
                bars.update(task, total=1, completed=1)
            name = step.phase if attempt == 1 else f"{step.phase} (attempt {attempt})"
            tasks[step.phase] = bars.add_task(f"{name:<13}", total=None, detail="")
        detail = f"round {step.done}" if step.phase == "rounds" and step.done else step.detail
        bars.update(tasks[step.phase], detail=escape(detail))

    with bars:
        yield on_progress
