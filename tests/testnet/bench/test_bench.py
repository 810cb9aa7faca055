"""`finode bench` itself: what it refuses, and one real run on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from finode.testnet.bench import plots, report
from finode.testnet.bench.commands import bench
from finode.testnet.bench.measure import Results
from finode.testnet.bench.series import Plan
from finode.testnet.bench.work import SWEEPS, Row, Work, on_devices, quick_preset, table_preset, with_engines


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--quick", "--sweep", "batch"], "give one of --quick, --sweep and --model"),
        (["--model", "alexnet"], "'alexnet' is none of mlp, small-cnn"),
        (["--sweep", "phases"], "Invalid value for '--sweep'"),
        (["--engine", "spu"], "Invalid value for '--engine'"),
        (["--device", "tpu"], "Invalid value for '--device'"),
    ],
    ids=["two-kinds", "model", "sweep", "engine", "device"],
)
def test_wrong_usage_is_named(arguments: list[str], problem: str) -> None:
    result = CliRunner().invoke(bench, arguments)

    assert result.exit_code == 2
    assert problem in result.output


def test_curves_are_refused_before_anything_is_measured_where_nothing_can_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    result = CliRunner().invoke(bench, ["--sweep", "batch", "--dir", str(tmp_path)])

    assert result.exit_code == 1
    assert "curves are drawn with matplotlib" in str(result.exception)
    assert not list(tmp_path.iterdir())
    with pytest.raises(type(result.exception) if result.exception else AssertionError, match=r"finode\[bench\]"):
        plots.require_matplotlib()


@pytest.mark.parametrize(
    ("options", "works", "agreement_of"),
    [
        ([], with_engines(table_preset(), ["native", "crypten"]), ("native", "crypten")),
        (["--engine", "native"], table_preset(), ("native",)),
        (["--quick"], quick_preset(), ()),
        (["--sweep", "all"], tuple(dict.fromkeys(work for sweep in SWEEPS.values() for work in sweep())), ()),
        (["--sweep", "links", "--link", "lan"], [w for w in SWEEPS["links"]() if w.link == "lan"], ()),
        (["--quick", "--device", "cpu", "--device", "cuda"], on_devices(quick_preset(), ["cpu", "cuda"]), ()),
    ],
    ids=["table", "native", "quick", "all-sweeps", "one-link", "devices"],
)
def test_what_is_measured_follows_from_the_options(
    options: list[str], works: Sequence[Work], agreement_of: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[set[Work], Plan]] = []

    async def run(given: Sequence[Work], plan: Plan, directory: Path, **_: object) -> Results:
        asked.append((set(given), plan))
        return Results(tuple(Row(work, None, "not run") for work in given))

    monkeypatch.setattr("finode.testnet.bench.measure.run", run)
    done = CliRunner().invoke(bench, [*options, "--repeat", "3", "--json"])

    assert asked == [(set(works), Plan(repeats=3, agreement_of=agreement_of))]
    assert len(json.loads(done.stdout)["rows"]) == len(works)
    assert done.exit_code == 1  # no row has figures


@pytest.mark.slow
def test_a_real_run_gives_rows_whose_bytes_are_those_of_the_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finode.cli", "bench", "--model", "tiny", "--models", "2", "--batch", "8"]
    command += ["--link", "regional", "--repeat", "2", "--dir", str(tmp_path), "--json"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)

    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert list(row) == list(report.COLUMNS)
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [row]
    assert (row["model"], row["models"], row["parties"], row["batch"], row["link"]) == ("tiny", 2, 2, 8, "regional")
    assert (row["engine"], row["device"], row["repeats"], row["error"]) == ("native", "cpu", 2, "")
    assert 0 <= row["max_error"] < 0.002
    assert row["rounds"] > 0
    assert row["offline_bytes"] > 0
    assert row["cold_s"] > 0
    # Framing, encryption and a heartbeat: the rest of what the link carried are the rounds' own bytes.
    assert row["bytes_sent"] < row["link_bytes"] < 1.05 * row["bytes_sent"] + 8192
    assert row["latency_s"] == pytest.approx(row["rounds"] * 0.005)
    assert row["online_s"] >= row["latency_s"]
