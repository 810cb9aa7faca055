"""Weighted votes: against their definition in floating point, and against the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from finode.errors import InputError
from finode.smpc.lowering import lower
from finode.smpc.native import NativeEngine
from finode.smpc.simulation import simulate_program
from finode.smpc.voting import RIDGE_BITS, SQUARINGS, normalized
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker

WEIGHTS = (1, 0, 5)


def mixed(classes: int = 10) -> list[PlanMaker]:
    """Models whose lanes are not in the order of the program: the first and the last have one plan."""
    makers = [models.mlp(0, classes), models.small_cnn(1), models.mlp(2, classes)]
    return makers if classes == 10 else [makers[0], models.mlp(1, classes), makers[2]]


def inputs(batch: int) -> Floats:
    # Of all sizes, so that the models are sure of some and not of others.
    x = np.random.default_rng(batch).uniform(0, 1, size=(batch, 1, 8, 8))
    return x * np.linspace(0.05, 4, batch).reshape(-1, 1, 1, 1)


def entropy(p: Tensor) -> Tensor:
    weights = (p * p.clamp(min=1e-12).log()).sum(-1, keepdim=True).exp()
    mean: Tensor = (weights * p).sum(0) / weights.sum(0)
    return mean


def spectral_weights(p: Tensor) -> Tensor:
    confidence = p.amax(-1)
    centred = confidence - confidence.mean(1, keepdim=True)
    matrix = centred @ centred.T / p.shape[1] + 2.0**-RIDGE_BITS * torch.eye(len(p), dtype=torch.float64)
    power: Tensor = torch.linalg.matrix_power(matrix / matrix.trace(), 2**SQUARINGS)
    return power.diagonal() / power.trace()


def spectral(p: Tensor) -> Tensor:
    return (spectral_weights(p)[:, None, None] * p).sum(0)


def weighted(p: Tensor) -> Tensor:
    weights = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    return (weights[:, None, None] * p).sum(0)


VOTES: dict[str, Callable[[Tensor], Tensor]] = {"entropy": entropy, "spectral": spectral, "weighted": weighted}


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("vote", VOTES)
def test_a_weighted_vote_is_what_it_says(vote: str, batch: int, parties: int) -> None:
    makers, x = mixed(), inputs(batch)
    changes = {"vote": vote, "vote_weights": WEIGHTS if vote == "weighted" else ()}
    program = models.program_of(makers, batch=batch, parties=parties, **changes)

    done = simulate_program(program, [maker.weights for maker in makers], x)

    real = VOTES[vote](torch.stack([models.float_logits(maker, x).softmax(-1) for maker in makers])).numpy()
    oracle = NativeEngine().plaintext(program, [maker.weights for maker in makers], x).probabilities
    assert done.output.probabilities is not None
    assert oracle is not None
    assert np.abs(done.output.probabilities - real).max() < 0.002
    assert np.abs(done.output.probabilities - oracle).max() < 0.0004
    assert done.costs[0].rounds == 15 + {"entropy": 15, "spectral": 27, "weighted": 11}[vote]


@pytest.mark.parametrize("reveal", ["top1", "label"])
@pytest.mark.parametrize("vote", VOTES)
def test_a_weighted_vote_may_show_less(vote: str, reveal: str) -> None:
    makers, x = mixed(), inputs(4)
    changes = {"vote": vote, "vote_weights": WEIGHTS if vote == "weighted" else ()}

    done = simulate_program(
        models.program_of(makers, batch=4, reveal=reveal, **changes), [maker.weights for maker in makers], x
    )

    real = VOTES[vote](torch.stack([models.float_logits(maker, x).softmax(-1) for maker in makers])).numpy()
    assert (done.output.labels == real.argmax(1)).all()
    assert done.output.probabilities is None
    if reveal == "top1":
        assert done.output.top is not None
        assert np.abs(done.output.top - real.max(1)).max() < 0.002


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("vote", ["entropy", "spectral"])
def test_few_and_many_classes(vote: str, classes: int) -> None:
    makers, x = mixed(classes), inputs(6)

    done = simulate_program(models.program_of(makers, batch=6, vote=vote), [maker.weights for maker in makers], x)

    real = VOTES[vote](torch.stack([models.float_logits(maker, x).softmax(-1) for maker in makers])).numpy()
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < 0.002


def test_one_model_has_all_the_weight() -> None:
    maker, x = models.mlp(3), inputs(5)
    real = models.float_votes([maker], x).numpy()

    for vote in ("entropy", "spectral"):
        done = simulate_program(models.program_of([maker], batch=5, vote=vote), [maker.weights], x)
        assert done.output.probabilities is not None
        assert np.abs(done.output.probabilities - real).max() < 0.002


def test_spectral_weights_are_equal_at_batch_one_and_for_equal_models() -> None:
    maker, other, x = models.mlp(3), models.mlp(4), inputs(1)
    real = models.float_votes([maker, other], x).numpy()

    done = simulate_program(models.program_of([maker, other], vote="spectral"), [maker.weights, other.weights], x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < 0.0005


def sure_and_unsure(batch: int) -> tuple[list[PlanMaker], Floats]:
    """Two models, each of which reads its logits off the input: one is always sure, the other never. So means are large
    beside the variances, and what is left of a mean decides the weights."""
    generator = np.random.default_rng(1)
    x = np.zeros((batch, 4))
    x[:, 0] = generator.normal(6, 0.1, size=batch)
    x[:, 3] = generator.normal(0.4, 0.05, size=batch)
    makers = [PlanMaker((4,), 0), PlanMaker((4,), 0)]
    for maker, own in zip(makers, (np.eye(4)[:2], np.eye(4)[2:]), strict=True):
        maker.linear(2)
        maker.weights = {"w0": own, "b0": np.zeros(2)}
    return makers, x


@pytest.mark.parametrize("batch", [450, 1000, 3000])
def test_a_spectral_vote_of_a_large_batch_is_what_it_says(batch: int) -> None:
    makers, x = sure_and_unsure(batch)
    program = models.program_of(makers, batch=batch, vote="spectral")

    oracle = NativeEngine().plaintext(program, [maker.weights for maker in makers], x).probabilities

    real = spectral(torch.stack([models.float_logits(maker, x).softmax(-1) for maker in makers])).numpy()
    assert oracle is not None
    assert np.abs(oracle - real).max() < 0.001


def test_a_spectral_vote_of_an_odd_batch_is_what_it_says_on_shares() -> None:
    makers, x = sure_and_unsure(37)
    # Confidences as far from their means as those of two classes go, and of variances that are nearly equal.
    x[::2, 0] = 0
    x[:, 3] = np.where(np.arange(37) % 3, 6, 0)

    done = simulate_program(
        models.program_of(makers, batch=37, vote="spectral"), [maker.weights for maker in makers], x
    )

    real = spectral(torch.stack([models.float_logits(maker, x).softmax(-1) for maker in makers])).numpy()
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < 0.001


@pytest.mark.slow
def test_votes_of_many_models() -> None:
    makers, x = [models.mlp(seed) for seed in range(40)], inputs(20)
    p = torch.stack([models.float_logits(maker, x).softmax(-1) for maker in makers])

    for vote in ("entropy", "spectral"):
        program = models.program_of(makers, batch=20, vote=vote)
        done = simulate_program(program, [maker.weights for maker in makers], x)
        assert done.output.probabilities is not None
        assert np.abs(done.output.probabilities - VOTES[vote](p).numpy()).max() < 0.004


def test_weights_add_up_to_one() -> None:
    assert normalized((1, 1, 1)) == (21846, 21845, 21845)
    assert normalized((0, 7)) == (0, 65536)
    assert sum(normalized(tuple(range(64)))) == 65536
    for wrong in ((), (0, 0), (1, -1)):
        with pytest.raises(InputError, match="weights"):
            normalized(wrong)


def test_weights_and_vote_must_fit() -> None:
    makers = mixed()
    for changes in ({"vote": "weighted"}, {"vote_weights": (1, 2, 3)}, {"vote": "weighted", "vote_weights": (1, 2)}):
        with pytest.raises(InputError, match="weights"):
            lower(models.program_of(makers, **changes))
