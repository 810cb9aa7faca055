"""The vector of statistics in the clear: its order, length and definition by hand; and labels as they are shared."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from finode.errors import InputError
from finode.smpc.labels import UNLABELLED, label_bits, label_bytes, share_labels
from finode.smpc.statistics_layout import (
    JOINT_LIMIT,
    ballot_places,
    equal_part,
    has_joint,
    model_pairs,
    open_statistics,
    plain_statistics,
    sensitivity,
    split_statistics,
    statistics_bytes,
    statistics_length,
)

ONE = 1 << 16


def test_by_hand() -> None:
    # Three models, two classes, three inputs; the vote says 0, 1, 1.
    labels = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0]])
    final = np.array([0, 1, 1])
    sure, unsure = [1.0, 0.0], [0.5, 0.5]
    probabilities = np.array([[sure, sure, unsure], [sure, unsure, unsure], [sure, unsure, unsure]])

    vector = plain_statistics(labels, final, probabilities)

    assert len(vector) == statistics_length(3, 2) == 3 * 4 + 6 + 6
    assert statistics_bytes(3, 2) == 8 * len(vector)
    found = split_statistics(3, 2, vector)
    assert found.joint is not None
    assert model_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert found.joint.tolist() == [[[2, 0], [0, 1]], [[1, 1], [0, 1]], [[1, 1], [0, 1]]]
    assert found.labels.tolist() == [[2, 1], [2, 1], [1, 2]]
    # Input 0: models 0 and 1 agree; input 1: all three; input 2: none.
    third = equal_part(3)
    assert found.agreement.tolist() == [ONE // 2 + third, ONE // 2 + third, third]
    # exp(-H) is 1 for the sure and 1/2 for the unsure.
    assert found.entropy.tolist() == [round(ONE * (1 / 3 + 1 / 2 + 1 / 3)), *[round(ONE * (1 / 3 + 1 / 4 + 1 / 3))] * 2]


def test_shares_add_up_and_sessions_too() -> None:
    generator = np.random.default_rng(1)
    vectors = generator.integers(0, 1000, size=(2, statistics_length(2, 3)))
    masks = generator.integers(-(2**63), 2**63 - 1, size=vectors.shape)
    shares = [masks.sum(0), (vectors - masks).sum(0)]

    found = open_statistics(2, 3, [share.astype("<i8").tobytes() for share in shares])

    assert found.labels.reshape(-1).tolist() == vectors.sum(0)[9:15].tolist()
    with pytest.raises(InputError, match="share of the statistics has 8 bytes"):
        open_statistics(2, 3, [bytes(8)])
    with pytest.raises(InputError, match="19 elements"):
        split_statistics(2, 3, vectors[0, :5])


def test_many_classes_have_no_joint_matrices() -> None:
    assert has_joint(2, 512)
    assert not has_joint(2, 513)
    assert has_joint(5, 161)
    assert 10 * 161**2 <= JOINT_LIMIT < 10 * 162**2
    assert not has_joint(5, 162)
    assert statistics_length(5, 162) == 5 * 162 + 10
    labels = np.zeros((5, 1), dtype=np.int64)
    found = split_statistics(5, 162, plain_statistics(labels, labels[0], np.full((5, 1, 162), 1 / 162)))
    assert found.joint is None
    assert found.entropy.tolist() == [ONE // 5] * 5
    assert has_joint(1, 4000)
    assert statistics_length(1, 4) == 4 + 2


def test_equal_parts() -> None:
    assert [equal_part(n) for n in range(5)] == [0, 65536, 32768, 21845, 16384]


def test_one_input_moves_the_vector_by_no_more_than_its_sensitivity() -> None:
    """An input in another's place: random ones, and two that differ as much as they can."""
    p = np.random.default_rng(3).dirichlet([0.5] * 4, size=(3, 40))
    p[:, 0] = [[0.97, 0.01, 0.01, 0.01], [0.26, 0.25, 0.25, 0.24], [0.26, 0.25, 0.25, 0.24]]
    p[:, 1] = [[0.24, 0.26, 0.25, 0.25], [0.01, 0.97, 0.01, 0.01], [0.24, 0.26, 0.25, 0.25]]
    most = dataclasses.astuple(sensitivity(3))
    reached = np.zeros(4)
    for i, j in itertools.permutations(range(40), 2):
        one, other = (
            split_statistics(3, 4, plain_statistics(p[:, [k]].argmax(-1), p[:, [k]].sum(0).argmax(-1), p[:, [k]]))
            for k in (i, j)
        )
        moved = [
            np.linalg.norm((a - b).astype(float))
            for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
        ]
        assert all(part <= bound + 1e-9 for part, bound in zip(moved, most, strict=True))
        reached = np.maximum(reached, np.array(moved) / most)
    # The bounds of the counts are reached, so they are not too large.
    assert reached[:2] == pytest.approx([1, 1])


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 10, 1000])
def test_labels_add_up_and_no_label_is_no_class(classes: int, parties: int) -> None:
    labels = [0, classes - 1, UNLABELLED, classes // 2]
    places = 1 << label_bits(classes)

    shares = [np.frombuffer(share, "<u2") for share in share_labels(labels, classes, parties)]

    assert places == ballot_places(classes) > classes
    assert len(shares) == parties
    assert all(share.nbytes == label_bytes(4) and (share < places).all() for share in shares)
    total = np.sum(shares, axis=0, dtype=np.int64) % places
    assert total.tolist() == [0, classes - 1, places - 1, classes // 2]
    assert places - 1 >= classes


def test_shares_of_labels_are_fresh_and_uniform() -> None:
    one, other = (share_labels([3] * 4000, 10, 2) for _ in range(2))

    assert not set(one) & set(other)
    for share in (*one, *other):
        counts = np.bincount(np.frombuffer(share, "<u2"), minlength=16)
        assert len(counts) == 16
        assert counts.min() > 150  # 250 expected: seven standard deviations


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([10], "label 10 of input 0"),
        ([0, -2], "label -2 of input 1"),
        ([0.5], "whole numbers"),
        ([[1]], "whole numbers"),
        (["cat"], "whole numbers"),
    ],
)
def test_what_is_no_label_is_refused(labels: list[object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        share_labels(labels, 10, 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 classes"):
        share_labels([], 0, 2)
