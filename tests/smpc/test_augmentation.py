"""The augmented vote: against its definition in floating point and the oracle; its gates at their stated cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from finode.errors import InputError, ModelError
from finode.smpc import sharing
from finode.smpc.augmentation import KNOT_STEP, Differences, SquaredNorm, knots_of, root
from finode.smpc.engine import AnswerSpec
from finode.smpc.gates.piecewise import PiecewiseLinear
from finode.smpc.lowering import lower
from finode.smpc.native import NativeEngine
from finode.smpc.session import Cost
from finode.smpc.simulation import simulate, simulate_program
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker
from tests.smpc.openings import opened, payload
from tests.smpc.statistics import IMPROBABLE, chi_square
from tests.smpc.test_votes import inputs, mixed


def with_copies(x: Floats, copies: int, noise: float = 0.3) -> Floats:
    rows = np.repeat(x, 1 + copies, axis=0)
    moved = np.random.default_rng(1).normal(size=rows.shape) * noise
    moved[:: 1 + copies] = 0
    return rows + moved


def augmented(makers: list[PlanMaker], rows: Floats, copies: int, gamma: float) -> Floats:
    logits = torch.stack([models.float_logits(maker, rows) for maker in makers])
    logits = logits.reshape(len(makers), -1, 1 + copies, logits.shape[-1])
    distance = (logits[:, :, 1:] - logits[:, :, :1]).norm(dim=-1).mean(-1)
    weights = (gamma * distance).softmax(0)[..., None]
    answer: Floats = (weights * logits[:, :, 0].softmax(-1)).sum(0).numpy()
    return answer


@pytest.mark.parametrize("parties", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("copies", "gamma"), [(1, -1.0), (3, -2.5), (4, 0.5), (2, 0.0)])
def test_stable_models_count_more(copies: int, gamma: float, parties: int) -> None:
    makers, rows = mixed(), with_copies(inputs(3), copies)
    program = models.program_of(
        makers, batch=len(rows), parties=parties, vote="augmented", copies=copies, gamma=round(gamma * 256)
    )
    weights = [maker.weights for maker in makers]

    done = simulate_program(program, weights, rows)

    oracle = NativeEngine().plaintext(program, weights, rows).probabilities
    assert done.output.probabilities is not None
    assert oracle is not None
    assert done.output.probabilities.shape == (3, 10)
    # A distance is exact to 1/64, and gamma times that is the relative error of a weight.
    assert np.abs(done.output.probabilities - augmented(makers, rows, copies, gamma)).max() < 0.002 + abs(gamma) / 128
    assert np.abs(done.output.probabilities - oracle).max() < 0.0004
    assert done.costs[0].rounds == 15 + 17


@pytest.mark.parametrize("reveal", ["top1", "label"])
def test_an_augmented_vote_may_show_less(reveal: str) -> None:
    makers, rows = mixed(), with_copies(inputs(4), 2)
    changes = {"vote": "augmented", "copies": 2, "gamma": -256, "reveal": reveal}

    done = simulate_program(models.program_of(makers, batch=12, **changes), [maker.weights for maker in makers], rows)

    assert (done.output.labels == augmented(makers, rows, 2, -1.0).argmax(1)).all()
    assert done.output.probabilities is None


def test_a_model_that_moves_far_loses_all_its_weight() -> None:
    calm, wild = models.mlp(0), models.mlp(1)
    wild.weights = {name: value * 6 for name, value in wild.weights.items()}
    rows = with_copies(inputs(4), 2)
    program = models.program_of([calm, wild], batch=12, vote="augmented", copies=2, gamma=-1024)

    done = simulate_program(program, [calm.weights, wild.weights], rows)

    alone = models.float_logits(calm, rows[::3]).softmax(-1).numpy()
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - alone).max() < 0.002


def test_copies_like_their_inputs_and_one_model_alone_give_the_soft_vote() -> None:
    makers, x = mixed(), inputs(3)
    for some in (makers, makers[:1]):
        program = models.program_of(some, batch=9, vote="augmented", copies=2, gamma=-256)
        done = simulate_program(program, [maker.weights for maker in some], np.repeat(x, 3, axis=0))
        assert done.output.probabilities is not None
        assert np.abs(done.output.probabilities - models.float_votes(some, x).numpy()).max() < 0.002


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("fractional_bits", [8, 12])
def test_few_and_many_classes_with_fewer_digits(classes: int, fractional_bits: int) -> None:
    makers, rows = mixed(classes), with_copies(inputs(3), 2)
    program = models.program_of(
        makers, batch=9, vote="augmented", copies=2, gamma=-256, fractional_bits=fractional_bits
    )

    done = simulate_program(program, [maker.weights for maker in makers], rows)

    real = augmented(makers, rows, 2, -1.0)
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < 0.01 + 32 * 2.0**-fractional_bits


def test_the_root_is_as_exact_as_stated() -> None:
    exact = torch.cat((torch.zeros(1), torch.logspace(-3, 4, 400))).double()
    x = (exact**2 * 2**12).round().long()
    pieces = root(28, 1.0)

    done = simulate(PiecewiseLinear((401,), 0, 41, pieces), x, parties=2)

    value, real = done.opened.double() / 2**32, (x.double() / 2**12).sqrt()
    assert len(pieces.knots) == len(knots_of(2.0**14)) - 1
    assert ((value - real).abs() < torch.clamp(0.007 * real, min=KNOT_STEP / 4) + 2**-12).all()
    assert (value < real + 2**-10).all()


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_squared_norm_matches_plaintext_at_its_stated_cost(parties: int) -> None:
    x = torch.tensor([[3, -4, 0], [2**33, 1, -1], [0, 0, 0]])  # the second wraps

    done = simulate(SquaredNorm((3, 3)), x, parties=parties)

    assert torch.equal(done.opened, (x * x).sum(-1))
    assert done.costs == [Cost(1, 64 * 9)] * parties == [SquaredNorm((3, 3)).cost()] * parties
    assert done.correction_bytes == 8 * 3


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("value", [0, 1 << 20])
def test_what_a_squared_norm_opens_is_uniform_and_never_repeats(value: int, parties: int) -> None:
    runs = [simulate(SquaredNorm((64, 10)), torch.full((64, 10), value), parties=parties) for _ in range(2)]

    seen = [data for done in runs for data in opened(done.frames)]
    assert all(chi_square(data) < IMPROBABLE for data in seen)
    assert len({data[i : i + 8] for data in seen for i in range(0, len(data), 8)}) == 2 * 640


@pytest.mark.parametrize("spread", [0.0, 50.0])
def test_frames_are_uniform_however_stable_the_models_are(spread: float) -> None:
    makers, rows = [models.mlp(0), models.mlp(1)], with_copies(np.ones((8, 1, 8, 8)), 3, spread)
    program = models.program_of(makers, batch=32, vote="augmented", copies=3, gamma=-256)

    done = simulate_program(program, [maker.weights for maker in makers], rows)

    for frames in done.frames:
        for data in map(payload, frames):
            assert len(data) < 4096 or chi_square(data) < IMPROBABLE


def test_differences_are_of_every_copy_from_its_own_input() -> None:
    rows: Tensor = torch.arange(12).reshape(1, 6, 2) ** 2

    found = Differences(2).linear(rows)

    assert found.shape == (1, 2, 2, 2)
    assert torch.equal(found[0, 1, 1], rows[0, 5] - rows[0, 3])


def test_the_answer_has_a_row_for_each_input_that_is_no_copy() -> None:
    spec = AnswerSpec(
        models=2, classes=3, parties=2, batch=8, fractional_bits=16, vote="augmented", reveal="label", copies=3
    )

    assert sharing.output_shape(spec) == (2, 1)


def test_copies_and_vote_must_fit() -> None:
    makers = mixed()
    for changes in (
        {"vote": "augmented"},
        {"copies": 1, "batch": 2},
        {"vote": "augmented", "copies": 2, "batch": 4},
        {"vote": "augmented", "copies": 16, "batch": 17},
        {"vote": "augmented", "copies": 1, "batch": 2, "gamma": 5000},
    ):
        with pytest.raises(InputError, match="copies"):
            lower(models.program_of(makers, **changes))
    wide = (makers[0].plan(24),) * len(makers)
    with pytest.raises(ModelError, match="squared distances"):
        lower(models.program_of(makers, vote="augmented", copies=1, batch=2, plans=wide))
