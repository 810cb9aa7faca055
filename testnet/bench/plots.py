"""The rows of a sweep as curves: latency, and beside it bytes and rounds, over what was varied. One PNG for a sweep.

A colour is an engine, on a GPU or not, on a link; a full line is what a query costs whose bundle lies ready, a broken
one what comes on top of that or instead of it. matplotlib comes with `finode[bench]`; it is imported when something is
drawn, without a display.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from finode.errors import ConfigError
from finode.testnet.bench.work import Figures, Row
from finode.testnet.links import KINDS

AXES: Final = {"parties": "parties", "batch": "inputs of one query", "links": "round-trip time (ms)", "models": "model"}
"""What each sweep varies, as its axis says."""
_SIZE_INCHES: Final = (14, 5)
_COLORS: Final = ("#0b6e99", "#d9730d", "#4d8c57", "#8f4a9e", "#c0392b", "#6b6b6b", "#b58900", "#2e5c8a")
"""By line; told apart in print and by the colour-blind as far as eight colours can be."""
_BAR_WIDTH: Final = 0.8
_HEADROOM: Final = 6
"""Factor by which an axis goes beyond the largest value, so that the legend has a place of its own."""

_LONG_AXIS: Final = 1000
"""Factor from the bottom of an axis to its top from which powers of ten suffice to read it."""

_Points = list[tuple[Any, Figures]]


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

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    latency, traffic, rounds = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    lines = _lines(sweep, rows)
    plot = _bars if sweep == "models" else _curves
    plot(latency, lines, lambda each: each.online_s, lambda each: each.cold_s)
    # Neither depends on the link, and lines that lie on each other show one colour for all.
    same = lines if sweep == "links" else _one_link(lines)
    plot(traffic, same, lambda each: each.bytes_sent / 1e6, lambda each: each.offline_bytes / 1e6)
    plot(rounds, same, lambda each: each.rounds, None)
    on_any = "" if sweep == "links" else ", on any link"
    titles = (
        (latency, "latency (s)", "bundle ready", "cold: nothing dealt ahead"),
        (traffic, "megabytes" + on_any, "sent by a party, online", "bundle, to all parties"),
        (rounds, "rounds" + on_any, "", ""),
    )
    for axes, title, full, broken in titles:
        _dress(axes, sweep, rows, title)
        if full:
            _explain_styles(axes, sweep, full, broken)
    for axes in (latency, traffic):
        _rise_in_decades(axes)
    rounds.set_ylim(bottom=0)
    handles, labels = latency.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    figure.suptitle(_title(sweep, rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _curves(
    axes: Any,
    lines: dict[str, _Points],
    full: Callable[[Figures], float],
    broken: Callable[[Figures], float | None] | None,
) -> None:
    for color, (label, points) in zip(_cycle(len(lines)), lines.items(), strict=True):
        axes.plot(
            [at for at, _ in points], [full(each) for _, each in points], marker="o", ms=4, color=color, label=label
        )
        if broken is not None and (beside := [(at, y) for at, each in points if (y := broken(each)) is not None]):
            axes.plot(*zip(*beside, strict=True), "--", marker=".", lw=1, color=color)


def _bars(
    axes: Any,
    lines: dict[str, _Points],
    full: Callable[[Figures], float],
    broken: Callable[[Figures], float | None] | None,
) -> None:
    names = list(dict.fromkeys(at for points in lines.values() for at, _ in points))
    width = _BAR_WIDTH / max(1, len(lines))
    for index, (color, (label, points)) in enumerate(zip(_cycle(len(lines)), lines.items(), strict=True)):
        x = [names.index(at) - _BAR_WIDTH / 2 + (index + 0.5) * width for at, _ in points]
        axes.bar(x, [full(each) for _, each in points], width, color=color, label=label)
        if broken is not None and (beside := [(at, broken(each)) for at, (_, each) in zip(x, points, strict=True)]):
            above = [(at, y) for at, y in beside if y is not None]
            axes.plot(
                [at for at, _ in above], [y for _, y in above], "_", ms=60 * width / len(names) ** 0.5, color=color
            )
    axes.set_xticks(range(len(names)), names)


def _dress(axes: Any, sweep: str, rows: Sequence[Row], title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(AXES[sweep])
    axes.grid(visible=True, axis="y" if sweep == "models" else "both", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if sweep == "models":
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
        return
    if sweep == "parties":
        ticks: list[float] = sorted({row.work.parties for row in rows})
    elif sweep == "batch":
        axes.set_xscale("log", base=2)
        ticks = sorted({row.work.batch for row in rows})
    else:
        axes.set_xscale("log")
        ticks = sorted({_rtt_ms(row) for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _rise_in_decades(axes: Any) -> None:
    """Make the upright axis logarithmic, with plain numbers; a short one has 2 and 5 between its powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * _HEADROOM)
    steps = (1.0,) if top * _HEADROOM / bottom > _LONG_AXIS else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _explain_styles(axes: Any, sweep: str, full: str, broken: str) -> None:
    """Add a legend of what a full and a broken line mean, whatever their colour."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    gray = "0.35"
    if sweep == "models":
        handles: list[Any] = [
            Patch(color=gray, label=full),
            Line2D([], [], ls="", marker="_", ms=12, color=gray, label=broken),
        ]
    else:
        handles = [
            Line2D([], [], color=gray, marker="o", ms=4, label=full),
            Line2D([], [], color=gray, ls="--", marker=".", lw=1, label=broken),
        ]
    axes.legend(handles=handles, fontsize=8, loc="upper left", framealpha=0.8)


def _cycle(count: int) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(count)]


def _title(sweep: str, rows: Sequence[Row]) -> str:
    work = rows[0].work if rows else None
    if work is None:
        return ""
    what = "one model" if sweep == "models" else f"{work.models} x {work.model}"
    parts = [what]
    parts += [f"{work.parties} parties"] if sweep in ("batch", "models") else []
    parts += [f"batch {work.batch}"] if sweep != "batch" else []
    return ", ".join(parts)


def _rtt_ms(row: Row) -> float:
    return KINDS[row.work.link].rtt_ms if row.work.link in KINDS else 0.0


def _one_link(lines: dict[str, _Points]) -> dict[str, _Points]:
    """Return the first line of those that differ in their link alone."""
    found: dict[str, _Points] = {}
    for label, points in lines.items():
        found.setdefault(label.split(", ")[0], points)
    return found


def _lines(sweep: str, rows: Sequence[Row]) -> dict[str, _Points]:
    """Return points (x, figures) by the label of the line that they are on."""
    lines: dict[str, _Points] = {}
    for row in rows:
        if row.figures is None:
            continue
        work = row.work
        x = {"parties": work.parties, "batch": work.batch, "models": work.model, "links": _rtt_ms(row)}[sweep]
        apart = f"{work.parties} parties" if sweep == "links" else work.link
        lines.setdefault(f"{work.computed_by}, {apart}", []).append((x, row.figures))
    return lines
