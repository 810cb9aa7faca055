"""The rows of a sweep as curves: latency, and beside it bytes and rounds, over what was varied. One PNG for a sweep.

matplotlib comes with `finode[bench]`; it is imported when something is drawn, without a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from finode.errors import ConfigError
from finode.testnet.bench.work import Row
from finode.testnet.links import KINDS

AXES: Final = {"parties": "parties", "batch": "inputs of one query", "links": "round-trip time (ms)", "models": "model"}
"""What each sweep varies, as its axis says."""
_MEASURES: Final = ("online", "offline", "cold")


def require_matplotlib() -> None:
    """Raise `ConfigError` that says how to get matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"curves are drawn with matplotlib: {error}", hint="pip install 'finode[bench]'") from None


def draw(sweep: str, rows: Sequence[Row], path: Path) -> None:
    """Draw the rows of one of `AXES`, those that have figures, to a PNG file."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    latency, traffic, rounds = figure.subplots(1, 3)
    lines = _lines(sweep, rows)
    for label, points in lines.items():
        x = [point[0] for point in points]
        figures = [point[1] for point in points]
        (online,) = latency.plot(x, [each.online_s for each in figures], marker="o", label=f"{label}, online")
        color = online.get_color()
        latency.plot(x, [each.offline_s for each in figures], ":", color=color, label=f"{label}, offline")
        cold = [(at, each.cold_s) for at, each in zip(x, figures, strict=True) if each.cold_s is not None]
        if cold:
            latency.plot(*zip(*cold, strict=True), "--", color=color, label=f"{label}, cold")
        traffic.plot(x, [each.bytes_sent / 1e6 for each in figures], marker="o", color=color, label=f"{label}, online")
        traffic.plot(x, [each.offline_bytes / 1e6 for each in figures], ":", color=color, label=f"{label}, bundle")
        rounds.plot(x, [each.rounds for each in figures], marker="o", color=color, label=label)
    for axes, title in ((latency, "seconds"), (traffic, "MB: sent by a party, and bundle"), (rounds, "rounds")):
        axes.set_title(title)
        axes.set_xlabel(AXES[sweep])
        axes.grid(visible=True, alpha=0.3)
        if sweep == "links":
            axes.set_xscale("log")
        elif sweep == "batch":
            axes.set_xscale("log", base=2)
        elif sweep == "parties":
            axes.set_xticks(sorted({row.work.parties for row in rows}))
        else:
            axes.tick_params(axis="x", labelrotation=30)
        if axes is not rounds:
            axes.set_yscale("log")
        if lines:
            axes.legend(fontsize=7)
    rounds.set_ylim(bottom=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _lines(sweep: str, rows: Sequence[Row]) -> dict[str, list[tuple[Any, Any]]]:
    """Return points (x, figures) by the label of the line that they are on."""
    lines: dict[str, list[tuple[Any, Any]]] = {}
    for row in rows:
        if row.figures is None:
            continue
        work = row.work
        x = {
            "parties": work.parties,
            "batch": work.batch,
            "models": work.model,
            "links": KINDS[work.link].rtt_ms if work.link in KINDS else 0.0,
        }[sweep]
        parts = [work.engine]
        parts += [work.link] if sweep != "links" else []
        parts += [f"{work.parties} parties"] if sweep == "links" else []
        lines.setdefault(", ".join(parts), []).append((x, row.figures))
    return lines
