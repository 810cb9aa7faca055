"""The rows of a benchmark: as a table for people, as JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from finode.errors import ConfigError
from finode.testnet.bench.work import Row
from finode.testnet.report import print_table

COLUMNS: Final = (
    "engine",
    "device",
    "model",
    "models",
    "parties",
    "batch",
    "link",
    "online_s",
    "offline_s",
    "total_s",
    "cold_s",
    "first_s",
    "rounds",
    "bytes_sent",
    "link_bytes",
    "offline_bytes",
    "max_error",
    "images_per_s",
    "sustained_images_per_s",
    "latency_s",
    "transfer_s",
    "rest_s",
    "repeats",
    "dealt_ahead",
    "load",
    "error",
)
"""Fields of a row; those of `Work`, `Figures` and `Phases`. A row with an `error` has None for all figures."""


def flat(row: Row) -> dict[str, Any]:
    """Return a row as the JSON has it."""
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {name: value for name, value in asdict(row.work).items() if name in values}
    if row.figures is not None:
        figures = asdict(row.figures)
        values |= figures.pop("phases") | figures
    values["error"] = row.error
    return values


def to_json(rows: Sequence[Row]) -> str:
    return json.dumps({"rows": [flat(row) for row in rows]}, indent=2)


def to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in rows)
    return text.getvalue()


def write(rows: Sequence[Row], directory: Path) -> tuple[Path, ...]:
    """Write `rows.json` and `rows.csv` to a directory and return their paths."""
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in (("rows.json", to_json(rows) + "\n"), ("rows.csv", to_csv(rows))):
            path = directory / name
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from None
    return tuple(written)


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print what was measured, and below it where the online time goes."""
    measured = [(row, row.figures) for row in rows if row.figures is not None]
    headers = (
        "work",
        "engine",
        "link",
        "online s",
        "offline s",
        "cold s",
        "images/s",
        "rounds",
        "sent",
        "bundle",
        "error",
    )
    print_table(
        console,
        "Medians of queries on a kept committee; cold: on a new one, deployments kept, nothing dealt ahead",
        headers,
        [
            (
                _work(row),
                row.work.computed_by,
                row.work.link,
                f"{figures.online_s:.3f}",
                f"{figures.offline_s:.3f}",
                _seconds(figures.cold_s),
                _rate(figures.images_per_s, figures.sustained_images_per_s),
                str(figures.rounds),
                _megabytes(figures.bytes_sent),
                _megabytes(figures.offline_bytes),
                f"{figures.max_error:.1e}",
            )
            for row, figures in measured
        ],
    )
    print_table(
        console,
        "Where the online time goes: rounds x half a round trip, bytes / rate, the rest (computing, processes, asking)",
        ("work", "engine", "link", "online s", "latency s", "transfer s", "rest s", "queries", "dealt ahead", "load"),
        [
            (
                _work(row),
                row.work.computed_by,
                row.work.link,
                f"{figures.online_s:.3f}",
                f"{figures.phases.latency_s:.3f}",
                f"{figures.phases.transfer_s:.3f}",
                f"{figures.phases.rest_s:.3f}",
                str(figures.repeats),
                "-" if figures.dealt_ahead is None else str(figures.dealt_ahead),
                f"{figures.load:.1f}",
            )
            for row, figures in measured
        ],
    )
    for row in rows:
        if row.figures is None:
            console.print(f"not measured: {row.work}: {row.error}", markup=False, highlight=False, soft_wrap=True)


def _work(row: Row) -> str:
    work = row.work
    what = f"{work.models} x {work.model}" if work.models > 1 else work.model
    return f"{what}, batch {work.batch}, {work.parties} parties"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rate(online: float, sustained: float | None) -> str:
    return f"{online:.1f}" if sustained is None else f"{online:.1f} ({sustained:.1f} sustained)"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
