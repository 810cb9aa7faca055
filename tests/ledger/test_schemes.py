"""Schemes: what they pay, exactly, and that integers say the same as real numbers would."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finode.daemon.schemes import sums_of_answers, sums_of_statements
from finode.errors import InputError, LocalError
from finode.ledger.schemes import dawid_skene, rule_of
from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.ledger.schemes.sums import Sums, pairs_of
from finode.wire.committee import Scheme
from tests.ledger import float_dawid_skene
from tests.ledger.building import models, statement
from tests.ledger.votes import federation

every_scheme = pytest.mark.parametrize("scheme", list(Scheme))


def random_sums(generator: np.random.Generator, k: int, c: int) -> Sums:
    """Return sums as a dishonest committee might sign them: any numbers, negative ones too."""

    def numbers(count: int) -> tuple[int, ...]:
        return tuple(int(value) for value in generator.integers(-(1 << 52), 1 << 52, (count,)))

    return Sums(
        models=k,
        classes=c,
        samples=9,
        joint=numbers(k * (k - 1) // 2 * c * c),
        counts=numbers(k * c),
        agreement=numbers(k),
        entropy=numbers(k),
        correct=numbers(k),
    )


def test_apportioning_gives_what_is_left_to_the_largest_remainders() -> None:
    assert apportion(10, (1, 1, 1)) == (4, 3, 3)
    assert apportion(10, (0, 3, 4)) == (0, 4, 6)
    assert apportion(7, (0, -5, 0)) == (3, 2, 2)  # nobody has a claim: all alike
    assert apportion(0, (1, 2)) == (0, 0)


@given(st.integers(0, 1 << 60), st.lists(st.integers(-5, 1 << 70), min_size=1, max_size=8))
def test_apportioned_parts_sum_to_the_amount_and_are_less_than_one_off(amount: int, weights: list[int]) -> None:
    parts = apportion(amount, weights)
    assert sum(parts) == amount
    total = sum(max(weight, 0) for weight in weights)
    for part, weight in zip(parts, weights, strict=True):
        assert total == 0 or abs(part * total - amount * max(weight, 0)) < total


@every_scheme
@pytest.mark.parametrize("size", [(1, 2), (2, 3), (3, 2), (5, 10), (9, 4)], ids=str)
def test_shares_sum_to_the_whole_whatever_the_sums(scheme: Scheme, size: tuple[int, int]) -> None:
    shares = rule_of(scheme).shares(random_sums(np.random.default_rng(1), *size))
    assert len(shares) == size[0]
    assert sum(shares) == WHOLE
    assert min(shares) >= 0


@every_scheme
def test_sums_without_a_single_vote_pay_all_alike(scheme: Scheme) -> None:
    nothing = Sums(models=4, classes=2, samples=1, joint=(0,) * 24, counts=(0,) * 8, agreement=(0,) * 4)
    assert set(rule_of(scheme).shares(nothing)) == {WHOLE // 4}


def test_the_plain_schemes_follow_their_sums() -> None:
    sums = Sums(models=2, classes=2, samples=8, agreement=(1, 3), entropy=(3, 5), correct=(-4, 4))
    assert rule_of(Scheme.EQUAL).shares(sums) == (WHOLE // 2, WHOLE // 2)
    assert rule_of(Scheme.FINAL_AGREEMENT).shares(sums) == (WHOLE // 4, 3 * WHOLE // 4)
    assert rule_of(Scheme.ENTROPY).shares(sums) == (3 * WHOLE // 8, 5 * WHOLE // 8)
    assert rule_of(Scheme.LABELLED).shares(sums) == (0, WHOLE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(3, 2), (5, 10), (8, 4)], ids=str)
def test_dawid_skene_in_integers_is_that_in_floats(seed: int, size: tuple[int, int]) -> None:
    answers, labels = federation(seed, models=size[0], classes=size[1])
    assert_as_in_floats(sums_of_answers(answers, labels))


@pytest.mark.parametrize("size", [(23, 32), (64, 11), (4, 100)], ids=str)  # as large as may be, or nearly
@pytest.mark.slow
def test_dawid_skene_does_not_overflow_on_the_largest_statements(size: tuple[int, int]) -> None:
    answers, labels = federation(0, models=size[0], classes=size[1], inputs=400)
    assert_as_in_floats(sums_of_answers(answers, labels))


def assert_as_in_floats(sums: Sums) -> None:
    cells = np.asarray(sums.joint, dtype=np.float64).reshape(-1, sums.classes, sums.classes)
    expected = float_dawid_skene.shares(dict(zip(pairs_of(sums.models), cells, strict=True)), sums.models)
    np.testing.assert_allclose(np.asarray(dawid_skene.shares(sums)) / WHOLE, expected, atol=1e-3)


def test_dawid_skene_pays_by_accuracy_without_a_label() -> None:
    skills, correlations = [], []
    for seed in range(5):
        answers, labels = federation(seed)
        accuracy = (answers.argmax(axis=2) == labels).mean(axis=1)
        paid = np.asarray(dawid_skene.shares(sums_of_answers(answers, labels))) / WHOLE
        skills.append(1 - np.abs(paid - accuracy / accuracy.sum()).sum() / 2)
        correlations.append(np.corrcoef(paid, accuracy)[0, 1])
    assert min(skills) > 0.95
    assert np.mean(correlations) > 0.9


def test_dawid_skene_gives_these_shares_on_every_machine() -> None:
    joint = tuple((7 * index * index + 3 * index) % 41 + 90 * (index % 9 in (0, 4, 8)) for index in range(54))
    sums = Sums(models=4, classes=3, samples=1000, joint=joint)
    assert dawid_skene.shares(sums) == GOLDEN


def test_the_order_of_the_models_does_not_matter() -> None:
    answers, labels = federation(3)
    turned = [4, 0, 3, 1, 2]
    straight = dawid_skene.shares(sums_of_answers(answers, labels))
    again = dawid_skene.shares(sums_of_answers(answers[turned], labels))
    differences = [abs(straight[old] - again[new]) for new, old in enumerate(turned)]
    assert max(differences) < WHOLE >> 16  # rounding alone: in statements the order is that of the versions


def test_noise_in_the_sums_moves_the_shares_little() -> None:
    answers, labels = federation(4)
    sums = sums_of_answers(answers, labels)
    noise = np.rint(np.random.default_rng(5).normal(0, 2, (len(sums.joint),))).astype(np.int64)
    noisy = replace(sums, joint=tuple(int(value) for value in np.asarray(sums.joint) + noise))
    assert min(noisy.joint) < 0
    difference = np.asarray(dawid_skene.shares(noisy)) - np.asarray(dawid_skene.shares(sums))
    assert np.abs(difference).max() / WHOLE < 0.02


def test_models_that_are_all_alike_are_paid_alike() -> None:
    answers, labels = federation(6, models=1)
    shares = dawid_skene.shares(sums_of_answers(np.repeat(answers, 4, axis=0), labels))
    assert max(shares) - min(shares) <= WHOLE // 1000


def test_two_models_are_paid_alike_and_too_many_by_final_agreement() -> None:
    answers, labels = federation(7, models=2)
    assert dawid_skene.shares(sums_of_answers(answers, labels)) == (WHOLE // 2, WHOLE // 2)
    without_joint = Sums(models=3, classes=900, samples=4, agreement=(1, 1, 2))
    assert dawid_skene.shares(without_joint) == (WHOLE // 4, WHOLE // 4, WHOLE // 2)


def test_statements_add_up_in_the_order_of_versions() -> None:
    first = replace(statement(["a"]), joint=tuple(range(12)), counts=(1, 2, 3, 4, 5, 6))
    # The same sums with the models listed backwards: pairs (2,1) (2,0) (1,0), each turned round.
    joint = (8, 10, 9, 11, 4, 6, 5, 7, 0, 2, 1, 3)
    turned = replace(
        first, models=models()[::-1], joint=joint, counts=(5, 6, 3, 4, 1, 2), agreement=first.agreement[::-1]
    )
    alone, both = Sums.of([first]), Sums.of([first, turned])
    assert both.joint == tuple(2 * value for value in alone.joint)
    assert both.counts == tuple(2 * value for value in alone.counts)
    assert both.agreement == tuple(2 * value for value in alone.agreement)
    assert both.samples == 6


def test_statements_of_different_kinds_do_not_add_up() -> None:
    labelled = statement(["a"], correct=(1, 2, 3))
    with pytest.raises(LocalError, match="do not add up"):
        Sums.of([statement(["a"]), labelled])
    opened = sums_of_statements([statement(["a"]), labelled])
    assert set(opened.sums.correct) == {1, 2, 3}
    assert opened.sums.agreement
    assert opened.versions == tuple(sorted(opened.versions))
    with pytest.raises(InputError, match="different models"):
        sums_of_statements([statement(["a"]), statement(["b"], used=models(2), agreement=(1, 1))])
    with pytest.raises(InputError, match="no epoch statements"):
        sums_of_statements([])


def test_sums_of_answers_are_what_a_statement_states() -> None:
    answers = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.7, 0.3]], [[0.2, 0.8], [0.1, 0.9]]])
    sums = sums_of_answers(answers, np.array([0, 0]))
    assert sums.joint == (1, 0, 1, 0, 0, 1, 0, 1, 0, 2, 0, 0)
    assert sums.counts == (1, 1, 2, 0, 0, 2)
    assert sums.correct == (1, 2, 0)
    assert sums.agreement == (65536, 32768, 32768)  # final labels 0 and 1: models 0 and 1, then 0 and 2
    assert sum(sums.entropy) == pytest.approx(2 * 65536, abs=6)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(3)))
def test_a_sum_of_the_wrong_length_is_our_own_mistake(order: list[int]) -> None:
    lengths = [3, 6, 12]
    sums = [tuple([1] * lengths[index]) for index in order]
    if order == [2, 1, 0]:
        Sums(models=3, classes=2, samples=1, joint=sums[0], counts=sums[1], agreement=sums[2])
        return
    with pytest.raises(LocalError):
        Sums(models=3, classes=2, samples=1, joint=sums[0], counts=sums[1], agreement=sums[2])


GOLDEN = (1066529297, 1066567520, 978443862, 1183426617)
