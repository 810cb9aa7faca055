"""The prior-corrected, count-weighted vote: against its definition in floating point and the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from finode.errors import InputError
from finode.smpc.counts import COUNTS, MAX_COUNT, has_counts, with_counts
from finode.smpc.engine import Program
from finode.smpc.lowering import lower
from finode.smpc.native import NativeEngine
from finode.smpc.sharing import read_output
from finode.smpc.simulation import simulate_program
from finode.smpc.weights import masked_weights
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker, Weights
from tests.smpc.openings import payload
from tests.smpc.statistics import IMPROBABLE, chi_square
from tests.smpc.test_votes import inputs, mixed

SKEWED = ((200, 0, 3, 0, 90, 1, 0, 0, 10, 7), (0, 150, 0, 0, 90, 800, 0, 2, 1, 0), (5, 5, 70, 0, 1, 0, 400, 3, 30, 9))
"""Of class 3 nobody has a sample."""


def counted(makers: Sequence[PlanMaker], counts: Sequence[Sequence[int]], **changes: object) -> Program:
    plans = tuple(with_counts(m.plan(), m.weights, n)[0] for m, n in zip(makers, counts, strict=True))
    return models.program_of(makers, vote="prior", plans=plans, **changes)


def weights_of(makers: Sequence[PlanMaker], counts: Sequence[Sequence[int]]) -> list[Weights]:
    return [with_counts(m.plan(), m.weights, n)[1] for m, n in zip(makers, counts, strict=True)]


def scores(makers: Sequence[PlanMaker], counts: Sequence[Sequence[int]], x: Floats) -> Tensor:
    n = torch.tensor(counts).double()[:, None] + 1
    p = (torch.stack([models.float_logits(maker, x) for maker in makers]) - n.log()).softmax(-1)
    return (n * p).sum(0) / n.sum(0)


@pytest.mark.parametrize("parties", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch", [1, 6])
def test_a_prior_vote_is_what_it_says(batch: int, parties: int) -> None:
    makers, x = mixed(), inputs(batch)
    program, weights = counted(makers, SKEWED, batch=batch, parties=parties), weights_of(makers, SKEWED)

    done = simulate_program(program, weights, x)

    real = scores(makers, SKEWED, x)
    oracle = NativeEngine().plaintext(program, weights, x).probabilities
    assert done.output.probabilities is not None
    assert oracle is not None
    assert np.abs(done.output.probabilities - (real / real.sum(-1, keepdim=True)).numpy()).max() < 0.003
    assert np.abs(done.output.probabilities - oracle).max() < 0.0006
    assert done.costs[0].rounds == 15 + 12


@pytest.mark.parametrize("reveal", ["top1", "label"])
def test_a_prior_vote_may_show_less(reveal: str) -> None:
    makers, x = mixed(), inputs(5)

    done = simulate_program(counted(makers, SKEWED, batch=5, reveal=reveal), weights_of(makers, SKEWED), x)

    real = scores(makers, SKEWED, x).numpy()
    assert (done.output.labels == real.argmax(1)).all()
    assert done.output.probabilities is None
    if reveal == "top1":
        assert done.output.top is not None
        assert np.abs(done.output.top - real.max(1)).max() < 0.002


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("fractional_bits", [10, 16])
def test_few_and_many_classes_and_counts_of_all_sizes(classes: int, fractional_bits: int) -> None:
    makers, x = mixed(classes), inputs(4)
    counts = [[(k + 1) * c**2 % 1000 + c * k for c in range(classes - 1)] + [MAX_COUNT >> k] for k in range(3)]
    program = counted(makers, counts, batch=4, fractional_bits=fractional_bits)

    done = simulate_program(program, weights_of(makers, counts), x)

    real = scores(makers, counts, x)
    assert done.output.probabilities is not None
    found, expected = done.output.probabilities, (real / real.sum(-1, keepdim=True)).numpy()
    assert np.abs(found - expected).max() < 0.003 + 8 * 2.0**-fractional_bits


def test_equal_counts_of_all_classes_are_the_soft_vote_and_one_model_has_all_the_weight() -> None:
    x = inputs(4)
    for makers in (mixed(), mixed()[:1]):
        counts = [[50] * 10] * len(makers)
        done = simulate_program(counted(makers, counts, batch=4), weights_of(makers, counts), x)
        assert done.output.probabilities is not None
        assert np.abs(done.output.probabilities - models.float_votes(makers, x).numpy()).max() < 0.002


def test_the_one_that_knows_a_class_decides_on_it() -> None:
    # Model 0 is sure of class 0, of which it saw next to nothing; model 1, which knows it, is not.
    makers = [models.mlp(0, 2), models.mlp(1, 2)]
    for maker, bias in zip(makers, ((8.0, 0.0), (0.0, 2.0)), strict=True):
        maker.weights = {name: value * 0 for name, value in maker.weights.items()} | {"b3": np.array(bias)}
    counts = ((1, 500), (500, 500))
    x = inputs(1)

    prior = simulate_program(counted(makers, counts), weights_of(makers, counts), x)
    soft = simulate_program(models.program_of(makers), [maker.weights for maker in makers], x)

    assert soft.output.labels.tolist() == [0]
    assert prior.output.labels.tolist() == [1]


def test_scores_that_are_nearly_nothing_are_left_as_they_are() -> None:
    # Either model is sure of the class that the other has seen, and has hardly seen it.
    makers = [models.mlp(0, 2), models.mlp(1, 2)]
    for maker, bias in zip(makers, ((40.0, 0.0), (0.0, 40.0)), strict=True):
        maker.weights = {name: value * 0 for name, value in maker.weights.items()} | {"b3": np.array(bias)}
    counts, x = ((15, 65535), (65535, 31)), inputs(3)

    done = simulate_program(counted(makers, counts, batch=3), weights_of(makers, counts), x)

    real = scores(makers, counts, x).numpy()
    assert real.sum(1).max() < 2.0**-10
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < 2.0**-14


@pytest.mark.parametrize(
    ("fractional_bits", "least", "elements", "probabilities"),
    [
        (16, 256, (255, 0), (255 / 65536, 0)),
        (16, 256, (64, 192), (0.25, 0.75)),
        (10, 16, (5, 10), (5 / 1024, 10 / 1024)),
        (10, 16, (4, 12), (0.25, 0.75)),
    ],
)
def test_scores_are_divided_by_their_sum_where_that_says_anything(
    fractional_bits: int, least: int, elements: tuple[int, int], probabilities: tuple[float, float]
) -> None:
    program = counted([models.mlp(0, 2)], [(1, 1)], fractional_bits=fractional_bits)

    output = read_output(program, np.array([elements]))

    assert (sum(elements) < least) == (sum(probabilities) < 1)
    assert output.probabilities is not None
    assert output.probabilities[0].tolist() == list(probabilities)
    assert output.labels.tolist() == [int(np.argmax(elements))]


def test_other_votes_leave_the_counts_alone() -> None:
    makers, x = mixed(), inputs(3)
    program, weights = counted(makers, SKEWED, batch=3), weights_of(makers, SKEWED)

    done = simulate_program(replace(program, vote="soft"), weights, x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes(makers, x).numpy()).max() < 0.001
    # Never opened, not even under a mask: only ever added.
    assert all(spec.name != COUNTS for plan in program.plans for spec in masked_weights(plan))


@pytest.mark.parametrize("counts", [(0,) * 9 + (1,), (MAX_COUNT,) * 10])
def test_frames_are_uniform_whatever_the_counts(counts: tuple[int, ...]) -> None:
    makers = [models.mlp(0), models.mlp(1)]
    program = counted(makers, (counts, SKEWED[0]), batch=16)

    done = simulate_program(program, weights_of(makers, (counts, SKEWED[0])), np.zeros((16, 1, 8, 8)))

    for frames in done.frames:
        for data in map(payload, frames):
            assert len(data) < 4096 or chi_square(data) < IMPROBABLE


def test_every_model_must_have_counts() -> None:
    makers = mixed()
    program = counted(makers, SKEWED)
    without = replace(program, plans=(*program.plans[:2], makers[2].plan()))

    with pytest.raises(InputError, match="model 2 has none"):
        lower(without)
    assert [has_counts(plan) for plan in without.plans] == [True, True, False]


@pytest.mark.parametrize("counts", [(), (1,) * 9, (0,) * 10, (-1, *[1] * 9), (MAX_COUNT + 1, *[1] * 9)])
def test_counts_that_are_none(counts: tuple[int, ...]) -> None:
    maker = models.mlp(0)

    with pytest.raises(InputError, match="counts"):
        with_counts(maker.plan(), maker.weights, counts)


def test_counts_are_given_once() -> None:
    maker = models.mlp(0)

    with pytest.raises(InputError, match="already"):
        with_counts(*with_counts(maker.plan(), maker.weights, [1] * 10), [2] * 10)
