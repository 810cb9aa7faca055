"""The tables of `finode testnet fairness`, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from finode.testnet.fairness import Gain, Row, Score
from finode.testnet.opened import Comparison, DaemonRun
from finode.testnet.report import print_table


def to_json(rows: Sequence[Row], gains: Sequence[Gain]) -> str:
    """Return both tables as JSON."""
    return json.dumps(
        {"fairness": [asdict(row) for row in rows], "attacks": [asdict(gain) for gain in gains]}, indent=2
    )


def print_fairness(console: Console, rows: Sequence[Row], seeds: int) -> None:
    """Print one line for each alpha and scheme."""
    cells = [
        [f"{row.alpha:g}", row.scheme, *map(_or_dash, (row.f_skill, row.worst, row.pearson, row.spearman))]
        for row in rows
    ]
    headers = ["alpha", "scheme", "F_skill", "worst seed", "Pearson", "Spearman"]
    print_table(console, f"How pay follows accuracy, mean of {seeds} seeds", headers, cells)


def print_attacks(console: Console, gains: Sequence[Gain]) -> None:
    """Print for each alpha one line for each attack, and one column for each scheme: mean of the seeds / largest."""
    schemes = list(dict.fromkeys(gain.scheme for gain in gains))
    for alpha in dict.fromkeys(gain.alpha for gain in gains):
        by_attack: dict[str, dict[str, Gain]] = {}
        for gain in gains:
            if gain.alpha == alpha:
                by_attack.setdefault(gain.attack, {})[gain.scheme] = gain
        cells = [
            [attack, *(f"{of[scheme].mean:.2f} / {of[scheme].largest:.2f}" for scheme in schemes)]
            for attack, of in by_attack.items()
        ]
        print_table(console, f"What attackers earn, alpha {alpha:g}", ["attack", *schemes], cells)


def opened_json(runs: Sequence[DaemonRun]) -> str:
    """Return what daemons opened, and what it is in the clear, as JSON."""
    return json.dumps([_opened(run) for run in runs], indent=2)


def print_opened(console: Console, runs: Sequence[DaemonRun]) -> None:
    """Print for each run and scheme its scores on the opened sums beside those in the clear."""
    cells = [
        [f"{run.alpha:g}", scheme, *_beside(run.opened[scheme], clear)]
        for run in runs
        for scheme, clear in run.clear.items()
        if scheme in run.opened
    ]
    headers = ["alpha", "scheme", "F_skill", "in the clear", "Pearson", "in the clear", "Spearman", "in the clear"]
    print_table(console, f"How pay follows accuracy by sums that daemons opened, seed {runs[0].seed}", headers, cells)
    for run in runs:
        books = f"{'the same' if run.equal else 'OTHER'} books on {len(run.books)} nodes"
        lines = (
            f"alpha {run.alpha:g}: {run.plan.queries} queries, {len(run.statements)} statements",
            f"  {describe_comparison(run.comparison)}",
            f"  {books}, {run.pending} micro-credits pending",
            "  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.seconds.items()),
        )
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def describe_comparison(comparison: Comparison) -> str:
    """Say how opened sums differ from those in the clear."""
    differences = {
        "joint votes": comparison.joint,
        "counts": comparison.counts,
        "agreement": comparison.agreement,
        "right answers": comparison.correct,
    }
    equal = [name for name, difference in differences.items() if not difference]
    parts = [f"equal to those in the clear: {', '.join(equal) or 'none'}"]
    parts += [f"{name} DIFFER by up to {difference}" for name, difference in differences.items() if difference]
    if not comparison.inputs:
        parts.append("they are of ANOTHER NUMBER of inputs")
    limit = f"{comparison.entropy_tolerance} / 2^16 are allowed"
    parts.append(f"entropy off by up to {comparison.entropy} / 2^16, {limit}")
    return "sums " + "; ".join(parts)


def _opened(run: DaemonRun) -> dict[str, object]:
    return {
        "seed": run.seed,
        "alpha": run.alpha,
        "holds": run.holds,
        "queries": run.plan.queries,
        "statements": len(run.statements),
        "schemes": {
            scheme: {"opened": asdict(score), "clear": asdict(run.clear[scheme])}
            for scheme, score in run.opened.items()
        },
        "sums": asdict(run.comparison),
        "books": [asdict(books) for books in run.books],
        "pending": run.pending,
        "seconds": dict(run.seconds),
    }


def _beside(opened: Score, clear: Score) -> list[str]:
    both = ((opened.f_skill, clear.f_skill), (opened.pearson, clear.pearson), (opened.spearman, clear.spearman))
    return [_or_dash(value) for pair in both for value in pair]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
