"""The figures that the engine is held to: which there are, which are met, and how they are shown."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from finode.testnet.bench import report
from finode.testnet.bench.agreement import Agreement
from finode.testnet.bench.measure import Results
from finode.testnet.bench.targets import Target, outcomes, targets
from finode.testnet.bench.work import Figures, Phases, Row, Work, on_devices, table_preset, with_engines

PHASES = Phases(latency_s=0.5, asking_s=0.04, transfer_s=0.0, compute_s=0.01, rest_s=0.05)


def figures(**changed: float | str) -> Figures:
    found = Figures(
        online_s=0.06,
        offline_s=0.0,
        total_s=0.07,
        cold_s=0.16,
        first_s=1.0,
        rounds=29,
        bytes_sent=450_000,
        link_bytes=460_000,
        offline_bytes=4_540_032,
        bundle_last=4_540_000,
        bundle_others=32,
        max_error=1e-5,
        repeats=5,
        cold_repeats=5,
        dealt_ahead=5,
        images_per_s=60.0,
        sustained_images_per_s=20.0,
        load=0.5,
        note="",
        phases=PHASES,
    )
    return replace(found, **changed)  # type: ignore[arg-type]


def table(**changed: float | str) -> tuple[Row, ...]:
    return tuple(Row(work, figures(**changed)) for work in with_engines(table_preset(), ["native", "crypten"]))


def test_every_target_is_a_figure_of_a_row_of_the_table() -> None:
    works = set(table_preset())

    assert all(target.work in works for target in targets())
    assert len(targets()) == 2 * 7 + 2
    held = {(target.what, target.work.link): target.bound for target in targets()}
    assert held["5 x LeNet-5, 2 parties", "lan"] == 0.12
    assert held["ResNet-18, 2 parties", "continental"] == 2.8
    assert held["5 x LeNet-5, bundle, others", "lan"] == 1000
    # Cold queries are measured where there is a target for them, and a stream where there is one.
    assert all(target.work.cold for target in targets() if target.measure == "cold_s")
    assert all(target.work.sustained for target in targets() if target.measure == "sustained_images_per_s")


@pytest.mark.parametrize(
    ("measure", "bound", "value", "reached"),
    [
        ("online_s", 0.12, 0.12, True),
        ("online_s", 0.12, 0.121, False),
        ("images_per_s", 40, 40, True),
        ("images_per_s", 40, 39.9, False),
    ],
)
def test_a_time_is_at_most_and_a_rate_at_least_its_bound(
    measure: str, bound: float, value: float, reached: bool
) -> None:
    target = Target(what="", work=Work(model="lenet"), measure=measure, bound=bound)  # type: ignore[arg-type]

    assert target.reached(value) is reached


def test_outcomes_tell_what_is_met_what_is_missed_and_what_is_unknown() -> None:
    rows = table()
    missed = {row.work: row for row in rows if row.work.parties == 5 and row.work.engine == "native"}
    rows = tuple(Row(row.work, figures(online_s=2.0)) if row.work in missed else row for row in rows)
    rows = tuple(Row(row.work, None, "lost") if row.work.model == "resnet18" else row for row in rows)
    good = Agreement(engine="native", link="lan", asked=1000, compared=996, agreeing=996, left_out=4)

    found = {(each.what, each.link): each for each in outcomes(Results(rows, (good,)))}

    assert found["5 x LeNet-5, 2 parties", "0.3 ms"].met is True
    assert found["5 x LeNet-5, 5 parties", "40 ms"].met is False
    assert (found["ResNet-18, 2 parties", "40 ms"].met, found["ResNet-18, 2 parties", "40 ms"].measured) == (None, "-")
    assert found["digits with plaintext's class", "0.3 ms"].measured == "996/996"
    assert found["5 x LeNet-5, bundle, others", "0.3 ms"].measured == "0.032 kB"
    assert found["largest error of a probability", ""].met is True


def test_one_digit_of_another_class_misses_the_target() -> None:
    off = Agreement(engine="native", link="lan", asked=1000, compared=996, agreeing=995, left_out=4)

    (outcome,) = (each for each in outcomes(Results((), (off,))) if "digits" in each.what)

    assert outcome.met is False
    assert not Agreement(engine="native", link="lan").holds  # nothing compared proves nothing


def test_only_what_the_processor_computed_is_held_to_the_targets() -> None:
    rows = tuple(Row(work, figures(online_s=0.001)) for work in on_devices(table_preset(), ["cuda"]))
    agreements = (
        Agreement(engine="native", link="lan", asked=10, compared=10, agreeing=10),
        Agreement(engine="native", link="lan", device="cuda", asked=10, compared=10, agreeing=9),
    )

    found = {each.what: each for each in outcomes(Results(rows, agreements))}

    assert list(found) == ["largest error of a probability", "digits with plaintext's class"]
    assert found["digits with plaintext's class"].measured == "10/10"


def test_a_figure_of_one_query_says_so() -> None:
    results = Results(table(note="one cold query", repeats=5, cold_repeats=1))

    found = {(each.what, each.link): each for each in outcomes(results)}

    assert found["5 x LeNet-5, 2 parties", "0.3 ms"].crypten == "0.060 s"
    assert found["5 x LeNet-5, 2 parties, cold", "0.3 ms"].crypten == "0.160 s (1)"


def test_the_table_of_targets_fits_a_hundred_columns() -> None:
    console = Console(file=io.StringIO(), width=100)
    changed = figures(
        online_s=123.456, cold_s=123.456, images_per_s=0.1, sustained_images_per_s=0.1, note="one", repeats=1
    )
    rows = tuple(Row(row.work, changed) for row in table())
    agreements = tuple(
        Agreement(engine=engine, link="lan", asked=1000, compared=1000, agreeing=1000)
        for engine in ("native", "crypten")
    )

    report.print_results(console, Results(rows, agreements))

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("The figures"))
    assert max(map(len, lines[start + 1 : start + 2 + len(outcomes(Results(rows, agreements)))])) <= 100
