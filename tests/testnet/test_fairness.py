"""`finode testnet fairness`: how pay is compared with accuracy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from finode.cli.root import finode
from finode.errors import InputError
from finode.testnet.digits import answers
from finode.testnet.fairness import measure, score, score_statements
from tests.ledger.building import models, statement


def test_pay_in_proportion_to_accuracy_is_fair() -> None:
    fair = score([300, 200, 100], np.array([0.9, 0.6, 0.3]))
    assert fair.f_skill == pytest.approx(1)
    assert fair.pearson == pytest.approx(1)
    assert fair.spearman == pytest.approx(1)


def test_a_tenth_paid_to_the_wrong_models_costs_a_tenth() -> None:
    unfair = score([6, 3, 1], np.array([0.5, 0.4, 0.1]))
    assert unfair.f_skill == pytest.approx(0.9)
    assert unfair.spearman == pytest.approx(1)
    assert score([1, 3, 6], np.array([0.5, 0.4, 0.1])).spearman == pytest.approx(-1)


def test_equal_pay_correlates_with_nothing() -> None:
    equal = score([858993460, 858993459, 858993459], np.array([0.5, 0.4, 0.1]))
    assert equal.pearson is None
    assert equal.spearman is None
    assert score([5, 5, 2], np.array([0.4, 0.4, 0.1])).spearman == pytest.approx(1)  # ties share their rank


def test_sums_that_daemons_opened_are_scored_like_the_others() -> None:
    accuracies = {model.version.hex(): accuracy for model, accuracy in zip(models(), (0.2, 0.4, 0.6), strict=True)}
    opened = [statement(["a"]), statement(["b"], agreement=(2 << 16, 4 << 16, 6 << 16), samples=6)]

    scores = score_statements(opened, accuracies)

    assert set(scores) == {"equal", "final_agreement", "entropy", "dawid_skene"}
    assert scores["final_agreement"].f_skill == pytest.approx(1)
    assert "labelled" in score_statements([*opened, statement(["a"], correct=(1, 2, 3))], accuracies)
    with pytest.raises(InputError, match="no accuracy is known"):
        score_statements(opened, {})


@pytest.mark.slow
def test_trained_models_are_paid_by_their_accuracy() -> None:
    given, labels = answers(owners=5, alpha=0.5, seed=0, queries=600)
    assert given.shape == (5, 600, 10)
    assert np.array_equal(answers(owners=5, alpha=0.5, seed=0, queries=600)[0], given)
    assert ((given.argmax(axis=2) == labels).mean(axis=1) > 0.2).all()

    rows, gains = measure(1, with_attacks=True, alphas=(0.5,))

    by_scheme = {row.scheme: row for row in rows}
    assert by_scheme["dawid_skene"].f_skill >= 0.95
    assert by_scheme["dawid_skene"].f_skill > by_scheme["equal"].f_skill
    assert by_scheme["labelled"].f_skill == pytest.approx(1)
    copied = [gain for gain in gains if gain.scheme == "dawid_skene" and gain.attack == "Sybil, three times"]
    assert [gain.largest <= 1.25 for gain in copied] == [True]


@pytest.mark.slow
def test_the_command_prints_both_tables() -> None:
    arguments = ["testnet", "fairness", "--seeds", "1", "--alpha", "0.5"]

    shown = CliRunner().invoke(finode, [*arguments, "--attacks"])
    as_json = CliRunner().invoke(finode, [*arguments, "--json"])

    assert shown.exit_code == 0
    assert "How pay follows accuracy, mean of 1 seeds" in shown.output
    assert "What attackers earn, alpha 0.5" in shown.output
    tables = json.loads(as_json.stdout)
    assert [row["scheme"] for row in tables["fairness"]][3] == "dawid_skene"
    assert {row["alpha"] for row in tables["fairness"]} == {0.5}
    assert tables["attacks"] == []
