"""`finode receipts`, `finode rewards` and `finode feedback`, against a fake node's API."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finode.cli.output import credits_decimals, credits_text, range_text
from finode.cli.root import finode
from finode.node.interface import ReceiptView, RewardsView
from tests.fakes.node import (
    ABORTED,
    DEALER,
    EPOCH,
    PARTIES,
    PEER,
    RECEIPT,
    SESSION,
    FakeNode,
    receipt_view,
    rewards_view,
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(finode, [str(argument) for argument in arguments])


def found(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fits(result: Result) -> str:
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    return result.stdout


def refused(result: Result, *says: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    for text in says:
        assert text in result.stderr
    assert "Traceback" not in result.stderr


# ---- receipts


def test_receipts_are_listed(home: Path, node: FakeNode) -> None:
    text = fits(run("receipts", "list", "--home", home))
    for word in (RECEIPT[:8], ABORTED[:8], "digits", "0.032", "3/4", "pending", "aborted"):
        assert word in text
    assert [view["id"] for view in found("receipts", "list", "--home", home, "--limit", 1)] == [RECEIPT]
    assert [view["id"] for view in found("receipts", "list", "--home", home, "--epoch", EPOCH - 1)] == [ABORTED]
    assert fits(run("receipts", "list", "--home", home, "--epoch", 3)) == "no receipts of epoch 3\n"
    assert node.asked_of_ledger[:2] == [("receipts", None, 20), ("receipts", None, 1)]


def test_a_receipt_is_shown_with_all_that_it_says(home: Path) -> None:
    text = fits(run("receipts", "show", RECEIPT[:6], "--home", home))

    for word in (
        RECEIPT,
        SESSION,
        "answered",
        "32 inputs",
        "0.032 credits",
        "dawid_skene",
        "pending",
        "3 of 4 members",
        f"…{PEER[-8:]} (Clinic South)",
        "46.9 KiB",
        "0.180 s",
        "78" * 32,
        "no: not in the ledger",
    ):
        assert word in text, word
    rows = [line.split() for line in text.splitlines()]
    members = [
        (row[:4], rows[number + 1]) for number, row in enumerate(rows) if row and row[0] in ("querier", "dealer")
    ]
    assert members == [
        (["querier", "Clinic", "South", "no"], [f"…{PEER[-8:]}"]),
        (["dealer", "Dealer", "Ltd", "yes"], [f"…{DEALER[-8:]}"]),
    ]


def test_an_aborted_receipt_says_who_was_at_fault(home: Path) -> None:
    text = fits(run("receipts", "show", ABORTED[:6], "--home", home))

    assert "timeout at round 9" in " ".join(text.split())
    assert "none: nothing was opened" in text
    assert "not due: the session was aborted" in text
    assert f"withheld by   …{PARTIES[1][-8:]} (Clinic West of the Long Name)" in text


def test_what_too_few_signed_is_not_due(home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    view = replace(receipt_view(), signers=(DEALER, PEER), withheld=PARTIES, settled=True)

    async def receipt(_: str) -> ReceiptView:
        return view

    async def receipts(_: int | None = None, __: int = 100) -> tuple[ReceiptView, ...]:
        return (view,)

    monkeypatch.setattr(node, "receipt", receipt)
    monkeypatch.setattr(node, "receipts", receipts)

    assert "unpaid" in fits(run("receipts", "list", "--home", home))
    assert "not due: no more than half" in fits(run("receipts", "show", RECEIPT, "--home", home))


def test_a_receipt_as_json_is_whole(home: Path) -> None:
    view = found("receipts", "show", RECEIPT, "--home", home)

    assert set(view) == set(ReceiptView.__dataclass_fields__)
    assert view["withheld"] == [PEER]
    refused(run("receipts", "show", "00", "--home", home), "no receipt or session begins with '00'", "receipts list")
    refused(run("receipts", "show", "export", "--home", home), "'export' is no id")


def test_an_export_is_written_once_and_verified_without_a_daemon(home: Path, tmp_path: Path, node: FakeNode) -> None:
    path = tmp_path / "ledger.finode"

    result = run("receipts", "export", "--epoch", 7, path, "--home", home)

    assert result.exit_code == 0, result.output
    assert "wrote" in result.stdout
    assert node.asked_of_ledger == [("export", 7)]
    refused(run("receipts", "export", path, "--home", home), "exists already", "--force")
    assert len(node.asked_of_ledger) == 1
    assert run("receipts", "export", path, "--force", "--home", home).exit_code == 0
    text = fits(run("receipts", "verify", path))
    assert "all 3 records are true" in text
    report = found("receipts", "verify", path)
    assert (report["receipts"], report["deployments"], report["problems"]) == (1, 2, [])


def test_a_file_that_was_changed_is_bad(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.finode"
    run("receipts", "export", path, "--home", home)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)

    result = run("receipts", "verify", path)

    assert result.exit_code == 1
    assert "BAD: 2 problems, 2 records are true" in result.stdout
    assert "record 3, a receipt, at byte" in result.stdout
    assert "the file, at byte" in result.stdout
    assert "remedy: it was changed after it was signed" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 120
    as_json = run("receipts", "verify", path, "--json")
    assert as_json.exit_code == 1
    assert [problem["kind"] for problem in json.loads(as_json.stdout)["problems"]] == ["receipt", "file"]
    refused(run("receipts", "verify", tmp_path / "nothing"), "cannot read", "No such file")


# ---- rewards


def test_rewards_are_a_table_whose_sums_are_shown(home: Path) -> None:
    text = fits(run("rewards", "--home", home))

    for word in ("Clinic East", "-0.038400", "0.006400", f"…{DEALER[-8:]}", "9a" * 32):
        assert word in text
    assert "paid in 0.038400 = paid out 0.016000 + pending 0.022400" in text
    assert f"{EPOCH - 1} to {EPOCH}, 2 of them with receipts" in text


def test_rewards_as_json(home: Path, node: FakeNode) -> None:
    assert found("rewards", "--home", home)["balances"][1]["balance"] == -38_400
    assert found("rewards", "--epoch", EPOCH, "--home", home)["epoch"] == EPOCH
    assert node.asked_of_ledger == [("rewards", None), ("rewards", EPOCH)]


def test_large_balances_fit_too(home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    view = rewards_view(None)
    large = replace(
        view,
        balances=tuple(replace(one, balance=-98_765_432_109_876, as_owner=98_765_432_109_876) for one in view.balances),
    )

    async def rewards(_: int | None = None) -> RewardsView:
        return large

    monkeypatch.setattr(node, "rewards", rewards)

    assert "-98,765,432  " in fits(run("rewards", "--home", home))


def test_money_that_is_unaccounted_for_is_said(home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def rewards(_: int | None = None) -> RewardsView:
        return replace(rewards_view(None), pending=22_399)

    monkeypatch.setattr(node, "rewards", rewards)

    result = run("rewards", "--home", home)

    assert "1 micro-credits are unaccounted for" in result.stderr
    assert "= paid out" not in result.stdout


def test_why_an_organization_has_its_balance(home: Path, node: FakeNode) -> None:
    text = fits(run("rewards", "explain", "Clinic East", "--home", home))

    for word in (RECEIPT[:8], ABORTED[:8], "0.003200", "17 of the 34 rounds", "balance 0.006400 credits, 2 amounts"):
        assert word in " ".join(text.split())
    assert found("rewards", "explain", "Clinic East", "--epoch", 9, "--home", home)["balance"] == 6_400
    assert run("rewards", "--epoch", 8, "--home", home, "explain", "Clinic East").exit_code == 0
    asked = [epoch for *_, epoch in node.asked_of_ledger]
    assert asked == [None, 9, 8]
    refused(run("rewards", "explain", "Nobody", "--home", home), "'Nobody' neither paid nor earned", "finode rewards")


# ---- feedback


@pytest.mark.parametrize(
    ("labels", "indices"),
    [
        ("one,-,two", (1, -1, 2)),
        ("0, 2 ,-", (0, 2, -1)),
        ("-,zero", (-1, 0)),
        ("-", (-1,)),
        ("-,h", ()),
    ],
)
def test_labels_are_names_or_indices(home: Path, node: FakeNode, labels: str, indices: tuple[int, ...]) -> None:
    result = run("feedback", SESSION, labels, "--home", home)

    if not indices:
        refused(result, "'h' is no class of the service", "its classes: zero, one, two")
        return
    assert result.exit_code == 0, result.output
    assert node.labels == [indices]
    labelled = sum(index >= 0 for index in indices)
    assert f"shared {labelled} labels of the {len(indices)} inputs" in result.stdout


def test_labels_come_from_a_file_too(home: Path, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("one\n-\ntwo\n")

    taken = found("feedback", SESSION[:8], f"@{path}", "--home", home)

    assert taken == {"session": SESSION, "count": 3, "labelled": 2}
    assert node.labels == [(1, -1, 2)]
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    refused(run("feedback", SESSION, f"@{tmp_path / 'bytes'}", "--home", home), "not a text")
    refused(run("feedback", SESSION, f"@{tmp_path / 'nothing'}", "--home", home), "cannot read")


def test_what_is_wrong_with_feedback_is_said(home: Path, node: FakeNode) -> None:
    refused(run("feedback", SESSION, "one,,two", "--home", home), "label 2 of 3 is empty")
    refused(run("feedback", SESSION, "3", "--home", home), "'3' is no class")
    refused(run("feedback", SESSION, "-1", "--home", home), "'-1' is no class")
    refused(run("feedback", "00ff", "one", "--home", home), "no receipt or session begins with '00ff'")
    refused(run("feedback", "ba" * 16, "one", "--home", home), "not kept any more")
    assert node.labels == []


def test_a_name_that_is_a_number_comes_before_the_index(
    home: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = replace(node.services()[0], classes=("2", "0", "1"))
    monkeypatch.setattr(node, "services", lambda: (view,))

    assert run("feedback", SESSION, "2,0,1", "--home", home).exit_code == 0

    assert node.labels == [(0, 1, 2)]


# ---- amounts


@pytest.mark.parametrize(
    ("amount", "decimals", "text"),
    [
        (0, None, "0"),
        (1, None, "0.000001"),
        (-1_500_000, None, "-1.5"),
        (10_000_000, None, "10"),
        (1_234_567_890_123, None, "1,234,567.890123"),
        (1_005_000, 2, "1.01"),
        (-1_004_999, 2, "-1.00"),
        (-4_999, 2, "0.00"),
        (10**30, 6, "1,000,000,000,000,000,000,000,000.000000"),
        (1_600_000, 0, "2"),
    ],
)
def test_credits_are_exact_or_rounded(amount: int, decimals: int | None, text: str) -> None:
    assert credits_text(amount, decimals) == text


def test_decimals_follow_the_largest_amount() -> None:
    assert credits_decimals([], 9) == 6
    assert credits_decimals([-99_999_999, 1], 9) == 4
    assert credits_decimals([12_345_000_000], 9) == 2
    assert credits_decimals([123_456_789_000_000], 9) == 0


def test_epochs_are_a_range() -> None:
    assert [range_text(numbers) for numbers in ((), (4,), (4, 5, 9))] == [
        "none",
        "4",
        "4 to 9, 3 of them with receipts",
    ]
