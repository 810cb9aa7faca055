"""The tables of `finode testnet fairness`, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from finode.testnet.fairness import Gain, Row
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


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
