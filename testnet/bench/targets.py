"""The figures that the native engine is held to, on two cores, and whether a run of the benchmark reached them.

CrypTen's figure stands beside each, from the same run; it is held to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from finode.testnet.bench.agreement import Agreement
from finode.testnet.bench.measure import Results
from finode.testnet.bench.work import Figures, Row, Work
from finode.testnet.links import KINDS

NATIVE: Final = "native"
CRYPTEN: Final = "crypten"
MAX_ERROR: Final = 0.002

Measure = Literal["online_s", "cold_s", "images_per_s", "sustained_images_per_s", "bundle_last", "bundle_others"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One figure: `measure` of `work` is at most `bound`; a rate, at least."""

    what: str
    work: Work
    measure: Measure
    bound: float

    @property
    def is_rate(self) -> bool:
        return self.measure in ("images_per_s", "sustained_images_per_s")

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.is_rate else value <= self.bound

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        if self.is_rate:
            return f"{value:.1f} images/s"
        if self.measure in ("bundle_last", "bundle_others"):
            return f"{value / 1e6:.2f} MB" if value >= 100_000 else f"{value / 1e3:.3f} kB"
        return f"{value:.3f} s"

    @property
    def bound_text(self) -> str:
        """Return the bound as a person would write it."""
        unit, factor = "s", 1.0
        if self.is_rate:
            unit = "images/s"
        elif self.measure == "bundle_last":
            unit, factor = "MB", 1e6
        elif self.measure == "bundle_others":
            unit, factor = "kB", 1e3
        return f"{'>=' if self.is_rate else '<='} {self.bound / factor:g} {unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A target beside what was measured, as text; `met` is None where there is no figure."""

    what: str
    link: str
    target: str
    measured: str
    met: bool | None
    crypten: str


def targets() -> tuple[Target, ...]:
    """Return the figures of latency, rate and size, in the order of their table."""
    lenets = Work(model="lenet", models=5)
    many = replace(lenets, batch=32, profile="throughput", cold=False)
    kinds: tuple[tuple[str, Work, Measure, float, float], ...] = (
        ("5 x LeNet-5, 2 parties", lenets, "online_s", 0.12, 0.95),
        ("5 x LeNet-5, 3 parties", replace(lenets, parties=3, cold=False), "online_s", 0.18, 1.05),
        ("5 x LeNet-5, 5 parties", replace(lenets, parties=5, cold=False), "online_s", 0.45, 1.4),
        ("5 x LeNet-5, 2 parties, cold", lenets, "cold_s", 0.35, 1.7),
        ("ResNet-18, 2 parties", Work(model="resnet18", cold=False), "online_s", 0.60, 2.8),
        ("5 x LeNet-5, batch 32", many, "images_per_s", 40, 15),
        ("5 x LeNet-5, batch 32, sustained", many, "sustained_images_per_s", 12, 2.5),
    )
    found = [
        Target(what=what, work=replace(work, link=link), measure=measure, bound=bound)
        for what, work, measure, *bounds in kinds
        for link, bound in zip(("lan", "continental"), bounds, strict=True)
    ]
    found.append(Target(what="5 x LeNet-5, bundle, last party", work=lenets, measure="bundle_last", bound=8e6))
    found.append(Target(what="5 x LeNet-5, bundle, others", work=lenets, measure="bundle_others", bound=1e3))
    return tuple(found)


def outcomes(results: Results) -> tuple[Outcome, ...]:
    """Return how the targets stand that these results tell about."""
    rows = {row.work: row for row in results.rows}
    found = [
        Outcome(
            what=target.what,
            link=_round_trip(target.work.link),
            target=target.bound_text,
            measured=_text(target, rows.get(target.work)),
            met=_met(target, rows.get(target.work)),
            crypten=_text(target, rows.get(replace(target.work, engine=CRYPTEN))),
        )
        for target in targets()
        if target.work in rows
    ]
    return (*found, *_error_outcome(results.rows), *_agreement_outcome(results.agreements))


def _error_outcome(rows: Sequence[Row]) -> Iterator[Outcome]:
    largest = {engine: max(_errors(rows, engine), default=None) for engine in (NATIVE, CRYPTEN)}
    if (native := largest[NATIVE]) is not None:
        yield Outcome(
            what="largest error of a probability",
            link="",
            target=f"<= {MAX_ERROR:g}",
            measured=f"{native:.1e}",
            met=native <= MAX_ERROR,
            crypten="-" if largest[CRYPTEN] is None else f"{largest[CRYPTEN]:.1e}",
        )


def _errors(rows: Sequence[Row], engine: str) -> Iterator[float]:
    for row in rows:
        if row.figures is not None and row.work.engine == engine:
            yield row.figures.max_error


def _agreement_outcome(agreements: Sequence[Agreement]) -> Iterator[Outcome]:
    by_engine = {each.engine: each for each in agreements if each.device == "cpu"}
    if (native := by_engine.get(NATIVE)) is not None:
        yield Outcome(
            what="digits with plaintext's class",
            link=_round_trip(native.link),
            target="all",
            measured=_agreement_text(native),
            met=native.holds,
            crypten=_agreement_text(by_engine.get(CRYPTEN)),
        )


def _agreement_text(agreement: Agreement | None) -> str:
    if agreement is None or agreement.error:
        return "-"
    return f"{agreement.agreeing}/{agreement.compared}"


def _round_trip(link: str) -> str:
    return f"{KINDS[link].rtt_ms:g} ms" if link in KINDS else link


def _text(target: Target, row: Row | None) -> str:
    value = _value(target, row)
    if value is None or row is None or row.figures is None:
        return "-"
    return target.text(value) + _fewer(target, row.figures)


def _fewer(target: Target, figures: Figures) -> str:
    """Mark a figure that comes from one query, which was too slow to be repeated."""
    if target.measure in ("bundle_last", "bundle_others"):
        return ""
    count = figures.cold_repeats if target.measure == "cold_s" else figures.repeats
    return " (1)" if figures.note and count == 1 else ""


def _met(target: Target, row: Row | None) -> bool | None:
    value = _value(target, row)
    return None if value is None else target.reached(value)


def _value(target: Target, row: Row | None) -> float | None:
    value: float | None = None if row is None or row.figures is None else getattr(row.figures, target.measure)
    return value
