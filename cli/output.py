"""What commands print: JSON on standard output and nothing else there, or tables that fit 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

SHORT = 8
"""Characters of a short id: the last ones of a peer id (all begin alike), the first ones of a hash."""

_CREDIT_DECIMALS = 6
"""A credit is a million micro-credits."""


def print_json(value: object) -> None:
    """Print a value (dataclasses too) as indented JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def console() -> Console:
    """Return the console of standard output, as it is now."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table; a column whose name starts with ">" is aligned right. `empty` is said when there are no rows."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows = [[escape(str(cell)) for cell in row] for row in rows]
    if not rows:
        click.echo(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line."""
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(escape(name), escape(str(value)))
    console().print(table)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    click.secho(f"warning: {text}", fg="yellow", err=True)


def short_peer(peer: str, organization: str = "") -> str:
    """Return the last characters of a peer id, with the organization."""
    tail = f"…{peer[-SHORT:]}"
    return f"{tail} ({organization})" if organization else tail


def short_hash(text: str) -> str:
    """Return the first characters of a hash or of a session's id."""
    return text[:SHORT]


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def size_text(count: int) -> str:
    """Return a number of bytes in a unit that people read."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def seconds_text(seconds: float) -> str:
    """Return a duration in a unit that people read."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"


def time_text(when: float) -> str:
    """Return a UTC time in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def credits_text(micro_credits: int, decimals: int | None = None) -> str:
    """Return an amount in credits: exactly, or rounded half away from zero to so many decimals."""
    shown = _CREDIT_DECIMALS if decimals is None else decimals
    scale = 10 ** (_CREDIT_DECIMALS - shown)
    whole, rest = divmod((abs(micro_credits) + scale // 2) // scale, 10**shown)
    sign = "-" if micro_credits < 0 and (whole or rest) else ""
    text = f"{sign}{whole:,}.{rest:0{shown}}" if shown else f"{sign}{whole:,}"
    return text.rstrip("0").rstrip(".") if decimals is None else text


def credits_decimals(amounts: Iterable[int], characters: int) -> int:
    """Return how many decimals all of these amounts can be shown with in so many characters; 0 if with none."""
    amounts = list(amounts)
    for decimals in range(_CREDIT_DECIMALS, 0, -1):
        if all(len(credits_text(amount, decimals)) <= characters for amount in amounts):
            return decimals
    return 0


def range_text(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a range and how many they are."""
    if len(numbers) < 2:
        return str(numbers[0]) if numbers else "none"
    return f"{numbers[0]} to {numbers[-1]}, {len(numbers)} of them with receipts"
