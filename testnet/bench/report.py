"""The rows of a benchmark: as a table for people, as JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from finode.errors import ConfigError
from finode.testnet.bench.measure import Results
from finode.testnet.bench.targets import Outcome, outcomes
from finode.testnet.bench.work import Row, computed_by
from finode.testnet.report import print_table

COLUMNS: Final = (
    "engine",
    "device",
    "model",
    "models",
    "parties",
    "batch",
    "link",
    "profile",
    "online_s",
    "offline_s",
    "total_s",
    "cold_s",
    "first_s",
    "rounds",
    "bytes_sent",
    "link_bytes",
    "offline_bytes",
    "bundle_last",
    "bundle_others",
    "max_error",
    "images_per_s",
    "sustained_images_per_s",
    "latency_s",
    "asking_s",
    "transfer_s",
    "compute_s",
    "rest_s",
    "repeats",
    "cold_repeats",
    "dealt_ahead",
    "load",
    "note",
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


def to_json(results: Results) -> str:
    """Return all that was found; `targets` and `agreements` are empty where nothing of the kind was measured."""
    found: dict[str, Any] = {
        "rows": [flat(row) for row in results.rows],
        "targets": [asdict(outcome) for outcome in outcomes(results)],
        "agreements": [asdict(agreement) for agreement in results.agreements],
    }
    return json.dumps(found, indent=2)


def to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in rows)
    return text.getvalue()


def targets_csv(found: Sequence[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(outcome) for outcome in found)
    return text.getvalue()


def write(results: Results, directory: Path) -> tuple[Path, ...]:
    """Write `rows.json`, `rows.csv` and, where there are targets, `targets.csv` to a directory; return their paths."""
    texts = {"rows.json": to_json(results) + "\n", "rows.csv": to_csv(results.rows)}
    if found := outcomes(results):
        texts["targets.csv"] = targets_csv(found)
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = directory / name
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from None
    return tuple(written)


def print_results(console: Console, results: Results) -> None:
    """Print what was measured, below it where the online time goes, and at the end how the targets stand."""
    measured = [(row, row.figures) for row in results.rows if row.figures is not None]
    print_table(
        console,
        "Medians of queries on a kept committee; cold: on a new one, deployments kept, nothing dealt ahead",
        ("work", "engine", "link", "online s", "offline s", "cold s", "images/s", "rounds", "sent", "bundle", "error"),
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
        "Where the online time goes: rounds x half a round trip, a round trip for input and output, bytes / rate, "
        "computing, the rest",
        (
            *("work", "engine", "link", "online s", "latency", "asking", "transfer", "compute", "rest"),
            *("queries", "dealt ahead", "load", ""),
        ),
        [
            (
                _work(row),
                row.work.computed_by,
                row.work.link,
                f"{figures.online_s:.3f}",
                f"{figures.phases.latency_s:.3f}",
                f"{figures.phases.asking_s:.3f}",
                f"{figures.phases.transfer_s:.3f}",
                f"{figures.phases.compute_s:.3f}",
                f"{figures.phases.rest_s:.3f}",
                str(figures.repeats),
                str(figures.dealt_ahead),
                f"{figures.load:.1f}",
                figures.note,
            )
            for row, figures in measured
        ],
    )
    if found := outcomes(results):
        print_table(
            console,
            "The figures that the native engine is held to, and CrypTen beside it; (1): of one query",
            ("work", "link", "target", "measured", "met", "CrypTen"),
            [(each.what, each.link, each.target, each.measured, _yes(each.met), each.crypten) for each in found],
        )
    lines = [f"not measured: {row.work}: {row.error}" for row in results.rows if row.figures is None]
    for each in results.agreements:
        by = computed_by(each.engine, each.device)
        if each.error:
            lines.append(f"digits, {by}: {each.error}")
        else:
            lines.append(
                f"digits, {by}: {each.agreeing} of {each.compared} with plaintext's class, {each.left_out} "
                f"near ties left out, {each.asked} asked; probabilities differ by {each.max_error:.1e}"
            )
    if lines:
        console.print("\n" + "\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _yes(met: bool | None) -> str:
    return "-" if met is None else "yes" if met else "NO"


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
