"""The demo: how it judges an answer, what it prints, and the whole of it once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from finode.client import Answer, BalanceView, CommitteeView, RewardsView, Timings, Traffic
from finode.errors import ConfigError, DaemonUnavailable, FinodeError
from finode.testnet import commands
from finode.testnet.demo import Asked, DemoResult, compare
from finode.testnet.digits import DigitsFederation, TrainedModel
from finode.testnet.links import KINDS, LinkTable
from finode.testnet.report import (
    BarScreen,
    PlainScreen,
    demo_json,
    describe_agreement,
    open_screen,
    print_demo,
    print_settlement,
)
from finode.testnet.settlement import Books, Reason, Settlement

PLAINTEXT = np.array([[0.7, 0.2, 0.1], [0.401, 0.399, 0.2]])
LABELS = np.array([0, 1])


def test_the_same_answer_agrees() -> None:
    agreement = compare(PLAINTEXT, LABELS, PLAINTEXT + 0.0005, np.array([0, 0]))

    assert agreement.holds
    assert (agreement.questions, agreement.same_labels, agreement.wrong, agreement.accuracy) == (2, 2, 0, 0.5)
    assert agreement.largest_difference == pytest.approx(0.0005)


def test_another_label_is_excused_where_the_plaintext_is_a_near_tie() -> None:
    agreement = compare(PLAINTEXT, LABELS, PLAINTEXT, np.array([0, 1]))

    assert agreement.holds
    assert (agreement.same_labels, agreement.near_ties, agreement.wrong) == (1, 1, 0)
    assert "1 of 2 labels as in plaintext, 1 a near tie there" in describe_agreement(agreement)


def test_another_label_elsewhere_is_wrong() -> None:
    agreement = compare(PLAINTEXT, LABELS, PLAINTEXT, np.array([1, 0]))

    assert not agreement.holds
    assert "1 WRONG" in describe_agreement(agreement)


def test_a_probability_that_is_too_far_off_is_wrong() -> None:
    agreement = compare(PLAINTEXT, LABELS, PLAINTEXT + np.array([[0, 0.002, 0], [0, 0, 0]]), np.array([0, 0]))

    assert not agreement.holds
    assert "NOT below 0.002" in describe_agreement(agreement)


def result() -> DemoResult:
    federation = DigitsFederation(
        models=(
            TrainedModel(
                organization="", path=Path("m.onnx"), architecture="MLP", accuracy=0.75, samples=9, label_counts=(4, 5)
            ),
        ),
        inputs=np.zeros((2, 1, 8, 8)),
        labels=LABELS,
        plaintext_probabilities=PLAINTEXT,
    )
    answer = Answer(
        session="5e",
        service="digits",
        labels=("0", "0"),
        label_indices=np.array([0, 0]),
        probabilities=PLAINTEXT,
        top=None,
        classes=("0", "1", "2"),
        committee=CommitteeView(
            id="c0ffee", parties=("P0", "P1"), dealer="D", owners=("P0",), organizations={"P0": "North", "D": "Deal"}
        ),
        timings=Timings(negotiation_s=0.1, deployment_s=0.2, offline_s=0.3, online_s=0.4, total_s=1.0),
        traffic=Traffic(rounds=20, bytes_sent_per_party=(1000, 2_000_000), offline_bytes=3_000_000),
        engine="native",
        attempts=1,
    )
    asked = Asked(answer=answer, agreement=compare(PLAINTEXT, LABELS, PLAINTEXT, answer.label_indices))
    return DemoResult(
        seed=4,
        owners=("North",),
        federation=federation,
        queries=(asked, asked),
        settlement=settlement(),
        seconds={"all": 1.5},
    )


def settlement() -> Settlement:
    books = Books(node="north", organization="North", receipts=2, statements=1, digest="d1" * 32)
    balance = {"paid": 64_000, "as_owner": 0, "as_party": 0, "as_dealer": 0}
    return Settlement(
        books=(books, replace(books, node="south", organization="South")),
        late=replace(books, node="registry", organization="Registry"),
        late_s=2.25,
        rewards=RewardsView(
            epoch=None,
            epochs=(7,),
            receipts=2,
            statements=1,
            paid_in=64_000,
            paid_out=64_000,
            pending=0,
            schemes={"dawid_skene": 2},
            balances=(BalanceView(organization="North", peers=("P0",), balance=-64_000, **balance),),
            digest="d1" * 32,
        ),
        receipts=(),
        reasons={"North": (Reason(role="querier", amount=-64_000, receipts=2, why="it asked 64 inputs"),)},
    )


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_report_says_who_served_and_what_it_took(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=160, color_system=None)

    print_demo(console, result())

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for expected in (
        "North",
        "MLP",
        "75.0 %",
        "4 of 4 labels",
        "party 1",
        "c0ffee",
        "same committee",
        "1.0 kB + 2.00 MB",
    ):
        assert expected in text, expected


def test_the_report_compares_the_books_of_all_nodes() -> None:
    def printed(found: Settlement) -> str:
        console = Console(file=io.StringIO(), width=160, color_system=None)
        print_settlement(console, found, {"North": 0.75})
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    found = settlement()
    equal = printed(found)
    other = replace(found.books[1], digest="e2" * 32)
    unequal = printed(replace(found, books=(found.books[0], other)))
    late = printed(replace(found, late=replace(found.late, receipts=1)))

    assert "balances are equal on every node" in equal
    assert "Registry, started only now, has the same books after 2.2 s" in equal
    assert "North: -0.064000 as querier, 2 receipts, such as: it asked 64 inputs" in equal
    assert "0.064000 paid in = 0.064000 paid out + 0.000000 pending" in equal
    assert "BALANCES DIFFER" in unequal
    assert "equal on every node" not in unequal
    assert "has OTHER books" in late


@pytest.mark.parametrize("changes", [{"receipts": 3}, {"statements": 0}, {"digest": "00" * 32}])
def test_books_that_differ_anywhere_fail_the_demo(changes: dict[str, Any]) -> None:
    found = settlement()

    assert found.holds
    assert not replace(found, books=(found.books[0], replace(found.books[1], **changes))).holds
    assert not replace(found, late=replace(found.late, **changes)).holds
    assert not replace(found, rewards=replace(found.rewards, paid_out=63_999)).holds


def test_the_json_is_json() -> None:
    found = json.loads(json.dumps(demo_json(result())))

    assert found["holds"] is True
    assert found["seed"] == 4
    assert found["queries"][0]["timings"]["online_s"] == 0.4
    assert found["owners"] == [
        {"organization": "North", "architecture": "MLP", "samples": 9, "label_counts": [4, 5], "accuracy": 0.75}
    ]


def test_progress_is_lines_in_a_pipe_and_bars_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with open_screen(console) as screen:
        assert isinstance(screen, PlainScreen)
        for done in range(3):
            screen.step("query", "rounds", done, 3)  # one line, not three
        screen.step("daemons", "a knows all others", 1, 2)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "query: rounds\ndaemons: a knows all others (1 of 2)\n"

    terminal = Console(file=io.StringIO(), force_terminal=True)
    with open_screen(terminal) as screen:
        assert isinstance(screen, BarScreen)
        screen.step("query", "rounds", 3, 3)
    assert isinstance(terminal.file, io.StringIO)
    assert "3/3" in terminal.file.getvalue()


def test_an_answer_that_is_not_the_plaintext_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = result()
    wrong = compare(PLAINTEXT, LABELS, PLAINTEXT, np.array([2, 0]))

    async def run_demo(*_: object, **__: object) -> DemoResult:
        return replace(found, queries=(found.queries[0], replace(found.queries[1], agreement=wrong)))

    monkeypatch.setattr("finode.testnet.demo.run_demo", run_demo)
    ran = CliRunner().invoke(commands.testnet, ["demo", "--seed", "4", "--json"])

    assert json.loads(ran.stdout)["holds"] is False
    assert isinstance(ran.exception, FinodeError)
    assert "is not the plaintext one: 1 of 2 labels" in ran.exception.message
    assert "--seed 4" in ran.exception.hint


def test_a_demo_that_fails_keeps_its_logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def run_demo(directory: Path, **_: object) -> DemoResult:
        (directory / "log").write_text("why")
        raise DaemonUnavailable("a node ended")

    monkeypatch.setattr("finode.testnet.demo.run_demo", run_demo)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ran = CliRunner().invoke(commands.testnet, ["demo"])

    (kept,) = tmp_path.iterdir()
    assert (kept / "log").read_text() == "why"
    assert str(kept) in ran.stderr
    assert isinstance(ran.exception, DaemonUnavailable)


def test_the_demo_runs_over_the_links_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[LinkTable | None] = []

    async def run_demo(*_: object, links: LinkTable | None, **__: object) -> DemoResult:
        named.append(links)
        return result()

    monkeypatch.setattr("finode.testnet.demo.run_demo", run_demo)
    for options in ([], ["--link", "regional"]):
        assert CliRunner().invoke(commands.testnet, ["demo", "--json", *options]).exit_code == 0
    wrong = CliRunner().invoke(commands.testnet, ["demo", "--link", "lunar"])

    assert named == [None, LinkTable("regional", KINDS["regional"])]
    assert isinstance(wrong.exception, ConfigError)
    assert "'lunar' is neither lan" in wrong.exception.message


@pytest.mark.slow
def test_the_whole_demo_agrees_with_plaintext() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finode.cli", "testnet", "demo", "--seed", "3", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["holds"] is True
    settlement = found["settlement"]
    assert settlement["equal"] is True
    assert settlement["late"]["digest"] == settlement["books"][0]["digest"] == settlement["rewards"]["digest"]
    assert len(settlement["books"]) == 6
    assert settlement["rewards"]["pending"] == 0
    assert settlement["rewards"]["paid_in"] == settlement["rewards"]["paid_out"] > 0
    assert all(not receipt["withheld"] for receipt in settlement["receipts"])
    first, second, _ = found["queries"]
    assert first["agreement"]["questions"] == 32
    assert first["committee"]["id"] == second["committee"]["id"]
    assert second["timings"]["deployment_s"] < first["timings"]["deployment_s"]
    members = first["committee"]
    serving = [members["organizations"][peer] for peer in (*members["parties"], members["dealer"])]
    assert len(set(serving)) == 3
    assert len(members["owners"]) == 5
