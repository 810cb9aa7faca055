"""Rows as JSON, CSV, a table and curves."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from finode.testnet.bench import plots, report
from finode.testnet.bench.agreement import Agreement
from finode.testnet.bench.measure import Results
from finode.testnet.bench.work import SWEEPS, Figures, Phases, Row, Work

FIGURES = Figures(
    online_s=0.25,
    offline_s=0.125,
    total_s=0.5,
    cold_s=0.75,
    first_s=2.0,
    rounds=29,
    bytes_sent=450_000,
    link_bytes=455_000,
    offline_bytes=4_500_000,
    bundle_last=4_499_968,
    bundle_others=32,
    max_error=2e-5,
    repeats=5,
    cold_repeats=5,
    dealt_ahead=4,
    images_per_s=128.0,
    sustained_images_per_s=16.5,
    load=1.5,
    note="",
    phases=Phases(latency_s=0.0625, asking_s=0.015625, transfer_s=0.03125, compute_s=0.125, rest_s=0.015625),
)
WORK = Work(model="lenet", models=5, batch=32, profile="throughput", cold=False)
AGREEMENT = Agreement(engine="native", link="lan", asked=1000, compared=996, agreeing=996, left_out=4, max_error=2e-5)
RESULTS = Results(
    (Row(WORK, FIGURES), Row(replace(WORK, engine="crypten"), None, "no such engine")),
    (AGREEMENT, replace(AGREEMENT, device="cuda")),
)


def test_json_has_the_fields_that_are_promised() -> None:
    measured, failed = json.loads(report.to_json(RESULTS))["rows"]

    assert list(measured) == list(failed) == list(report.COLUMNS)
    promised = (
        "engine model models parties batch link online_s offline_s cold_s rounds bytes_sent offline_bytes max_error"
    )
    assert set(promised.split()) <= set(measured)
    assert (measured["engine"], measured["online_s"], measured["rest_s"], measured["error"]) == (
        "native",
        0.25,
        0.015625,
        "",
    )
    assert (failed["engine"], failed["online_s"], failed["error"]) == ("crypten", None, "no such engine")


def test_csv_and_json_are_written_and_agree(tmp_path: Path) -> None:
    written = report.write(RESULTS, tmp_path / "out")

    assert [path.name for path in written] == ["rows.json", "rows.csv", "targets.csv"]
    found = list(csv.DictReader(io.StringIO(written[1].read_text())))
    assert [row["online_s"] for row in found] == ["0.25", ""]
    assert found[0]["offline_bytes"] == "4500000"
    targets = list(csv.DictReader(io.StringIO(written[2].read_text())))
    assert [row["met"] for row in targets[:2]] == ["True", "True"]
    whole = json.loads(written[0].read_text())
    assert whole["agreements"][0]["agreeing"] == 996
    assert [target["what"] for target in whole["targets"]] == [row["what"] for row in targets]


def test_the_table_shows_figures_phases_and_what_failed() -> None:
    console = Console(file=io.StringIO(), width=200)

    report.print_results(console, RESULTS)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "5 x lenet, batch 32, 2 parties" in text
    assert "128.0 (16.5 sustained)" in text
    assert "0.062" in text
    assert "not measured: 5 x lenet, batch 32, 2 parties, lan, crypten: no such engine" in text
    assert "digits, native: 996 of 996 with plaintext's class, 4 near ties left out, 1000 asked" in text
    assert "digits, native on cuda: 996 of 996" in text


@pytest.mark.slow
@pytest.mark.parametrize("sweep", list(SWEEPS))
def test_a_sweep_is_drawn(sweep: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [Row(work, replace(FIGURES, cold_s=None if work.batch == 2 else 1.0)) for work in SWEEPS[sweep]()]

    plots.draw(sweep, [*rows, Row(WORK, None, "failed")], tmp_path / "curves" / "sweep.png")

    assert (tmp_path / "curves" / "sweep.png").read_bytes().startswith(b"\x89PNG")
