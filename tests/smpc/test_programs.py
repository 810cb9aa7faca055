"""Whole ensembles against the oracle and against floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from finode.errors import InputError, ModelError
from finode.smpc.lowering import lanes, lower
from finode.smpc.native import NativeEngine
from finode.smpc.plan import Op
from finode.smpc.sharing import output_bytes
from finode.smpc.simulation import ProgramRun, simulate_program
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker

PARTIES = pytest.mark.parametrize("parties", [2, 3, 5])
CLOSE = 0.002


def _inputs(batch: int, *shape: int) -> Floats:
    return np.random.default_rng(batch).uniform(0, 1, size=(batch, *shape))


def _run(makers: Sequence[PlanMaker], x: Floats, **changes: object) -> ProgramRun:
    program = models.program_of(makers, batch=len(x), **changes)
    return simulate_program(program, [maker.weights for maker in makers], x)


ENSEMBLES: dict[str, Callable[[], list[PlanMaker]]] = {
    "mlps": lambda: [models.mlp(seed) for seed in range(3)],
    "max-pool": lambda: [models.small_cnn(seed) for seed in range(3)],
    "average-pool": lambda: [models.average_cnn(1)],
    "residual": lambda: [models.residual_cnn(1)],
    "mixed": lambda: [models.mlp(1), models.small_cnn(1), models.average_cnn(2), models.residual_cnn(3), models.mlp(4)],
}


@PARTIES
@pytest.mark.parametrize("name", ENSEMBLES)
def test_soft_vote_agrees_with_the_oracle_and_with_floating_point(name: str, parties: int) -> None:
    makers, x = ENSEMBLES[name](), _inputs(8, 1, 8, 8)

    done = _run(makers, x, parties=parties)

    program = models.program_of(makers, batch=8, parties=parties)
    oracle = NativeEngine().plaintext(program, [maker.weights for maker in makers], x)
    real = models.float_votes(makers, x).numpy()
    assert done.output.probabilities is not None
    assert oracle.probabilities is not None
    assert np.abs(done.output.probabilities - oracle.probabilities).max() < 0.0002
    assert np.abs(done.output.probabilities - real).max() < CLOSE
    two_best = np.sort(real, axis=1)[:, -2:]
    clear = two_best[:, 1] - two_best[:, 0] > 2 * CLOSE
    assert clear.any()
    assert (done.output.labels == real.argmax(1))[clear].all()


@pytest.mark.parametrize("vote", ["soft", "hard"])
@pytest.mark.parametrize("reveal", ["probabilities", "top1", "label"])
def test_every_vote_reveals_what_it_says(vote: str, reveal: str) -> None:
    makers, x = [models.mlp(seed) for seed in range(5)], _inputs(16, 1, 8, 8)
    real = models.float_votes(makers, x).numpy()
    if vote == "hard":
        labels = [models.float_logits(maker, x).argmax(1).numpy() for maker in makers]
        real = np.stack([label[:, None] == np.arange(10) for label in labels]).mean(0)

    done = _run(makers, x, parties=3, vote=vote, reveal=reveal)

    output = done.output
    if reveal == "probabilities":
        assert done.costs[0].rounds == 5 + {"soft": 10, "hard": 4}[vote]  # the model's own are 5
    assert (output.labels == real.argmax(1)).all()
    assert (output.probabilities is not None) == (reveal == "probabilities")
    assert (output.top is not None) == (reveal != "label")
    if output.top is not None:
        assert np.abs(output.top - real.max(1)).max() < CLOSE
    if output.probabilities is not None:
        assert np.abs(output.probabilities - real).max() < CLOSE
    assert all(
        len(share) == 16 * 8 * {"probabilities": 10, "top1": 2, "label": 1}[reveal] for share in done.output_shares
    )


def test_a_hard_vote_over_many_classes() -> None:
    makers, x = [models.mlp(seed, classes=40) for seed in range(3)], _inputs(6, 1, 8, 8)

    done = _run(makers, x, vote="hard", reveal="probabilities")

    labels = np.stack([models.float_logits(maker, x).argmax(1).numpy() for maker in makers])
    assert done.output.probabilities is not None
    assert np.array_equal(done.output.probabilities, (labels[:, :, None] == np.arange(40)).mean(0))


def test_an_ensemble_takes_the_rounds_of_its_deepest_model_plus_the_vote() -> None:
    x = _inputs(1, 1, 8, 8)
    shallow, deep = models.mlp(0), models.small_cnn(1)

    alone = {name: _run([maker], x).costs[0].rounds for name, maker in (("shallow", shallow), ("deep", deep))}
    together = _run([shallow, deep, models.mlp(2), models.small_cnn(3)], x).costs[0].rounds

    # Convolutions and linear layers 1 each, max-pools 4, ReLU 3; softmax 9, truncation 1.
    assert alone == {"shallow": 1 + 3 + 1 + 10, "deep": 1 + 4 + 1 + 4 + 1 + 3 + 1 + 10}
    assert together == alone["deep"]


def test_a_bundle_of_five_lenets_is_under_5_mb() -> None:
    program = models.program_of([models.lenet(seed) for seed in range(5)])

    assert NativeEngine().correction_bytes(program) < 5_000_000


@pytest.mark.slow
@PARTIES
def test_five_lenets_agree_with_floating_point(parties: int) -> None:
    makers, x = [models.lenet(seed) for seed in range(5)], _inputs(1, 3, 32, 32)

    done = _run(makers, x, parties=parties)

    assert done.costs[0].rounds == 29
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes(makers, x).numpy()).max() < CLOSE


def test_the_query_is_opened_once_for_all_models_and_layers() -> None:
    program = models.program_of([models.mlp(0), models.small_cnn(1), models.small_cnn(2)])

    masks = [node for node in lower(program).nodes if node.name.startswith("input/mask")]

    readers = [node.inputs for node in lower(program).nodes if "input" in node.inputs]
    assert len(masks) == 1
    # The MLP reshapes the query first: that is another tensor.
    assert readers == [("input",)] * 2


def test_models_of_equal_plan_are_one_lane() -> None:
    program = models.program_of([models.mlp(0), models.small_cnn(1), models.mlp(2)])

    assert lanes(program) == [(0, 2), (1,)]


def test_the_throughput_profile_trades_rounds_for_bytes() -> None:
    makers, x = [models.small_cnn(1)], _inputs(2, 1, 8, 8)

    fast, thrifty = _run(makers, x), _run(makers, x, profile="throughput")

    assert fast.output.probabilities is not None
    assert thrifty.output.probabilities is not None
    assert np.abs(fast.output.probabilities - thrifty.output.probabilities).max() < 0.0002
    assert thrifty.costs[0].rounds > fast.costs[0].rounds
    assert thrifty.correction_bytes < fast.correction_bytes


@pytest.mark.parametrize("fractional_bits", [12, 20])
def test_other_scales(fractional_bits: int) -> None:
    makers, x = [models.residual_cnn(2)], _inputs(4, 1, 8, 8)

    done = _run(makers, x, fractional_bits=fractional_bits)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes(makers, x).numpy()).max() < 2.0 ** (
        5 - fractional_bits
    )


@pytest.mark.parametrize("range_bits", [13, 19])
def test_wider_ranges(range_bits: int) -> None:
    maker = models.small_cnn(3)
    # The first layer's values reach half the range, and the last one's weights bring them back.
    largest = 2.0 ** (range_bits - 1)
    x = _inputs(2, 1, 8, 8)
    for name, factor in (("w0", largest / 16), ("b0", largest / 16), ("w3", 16 / largest)):
        # Such small weights have few digits left: the same few in the reference.
        maker.weights[name] = np.rint(maker.weights[name] * factor * 2.0**16) / 2.0**16
    plan = maker.plan(range_bits)

    done = simulate_program(replace(models.program_of([maker], batch=2), plans=(plan,)), [maker.weights], x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes([maker], x).numpy()).max() < 2 * CLOSE


def test_a_plan_with_softmax_in_the_middle_and_pools_of_all_sizes() -> None:
    maker = PlanMaker((2, 9, 9), 5)
    maker.conv(3, 3)
    maker.pool(Op.MAX_POOL, 5, stride=2, pad=2)
    maker.flatten()
    maker.linear(12)
    maker.step(Op.SOFTMAX, (12,))
    maker.relu()
    maker.linear(4)
    x = _inputs(3, 2, 9, 9)

    done = _run([maker], x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes([maker], x).numpy()).max() < CLOSE


def test_a_pool_that_only_thins_out_and_a_model_without_weights() -> None:
    makers = []
    for seed in (1, 2):
        maker = PlanMaker((1, 4, 4), seed)
        maker.pool(Op.MAX_POOL, 1, stride=2)
        maker.relu()
        maker.flatten()
        makers.append(maker)
    x = _inputs(3, 1, 4, 4) * 6 - 3

    done = _run(makers, x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes(makers, x).numpy()).max() < CLOSE


def test_a_relu_that_others_read_too_is_not_swallowed_by_the_pool() -> None:
    maker = PlanMaker((1, 4, 4), 3)
    before = maker.conv(2, 3, pad=1)
    after = maker.relu()
    pooled = maker.pool(Op.MAX_POOL, 3, stride=1, pad=1)
    maker.step(Op.ADD, (2, 4, 4), pooled, after)
    maker.step(Op.ADD, (2, 4, 4), maker.last, before)
    maker.flatten()
    maker.linear(3)
    x = _inputs(4, 1, 4, 4)

    done = _run([maker], x, parties=3)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - models.float_votes([maker], x).numpy()).max() < CLOSE


def test_programs_that_cannot_be_computed_are_refused_by_name() -> None:
    good = models.program_of([models.mlp(0)])
    wide = replace(good.plans[0], range_bits=40)

    for changes, error, problem in (
        ({"deployments": ()}, InputError, "one deployment"),
        ({"plans": good.plans * 65, "deployments": good.deployments * 65}, InputError, "65 models"),
        ({"vote": "loud"}, InputError, "loud"),
        ({"parties": 1}, InputError, "two parties"),
        ({"plans": (wide,)}, ModelError, r"2\^40"),
    ):
        with pytest.raises(error, match=problem):
            lower(replace(good, **changes))
    other = models.program_of([models.mlp(0), models.mlp(1, classes=7)])
    with pytest.raises(ModelError, match="classes"):
        lower(other)


def test_a_plan_whose_shapes_lie_is_refused() -> None:
    program = models.program_of([models.mlp(0)])
    plan = program.plans[0]
    steps = [replace(step, output_shape=(31,)) if step.op is Op.RELU else step for step in plan.steps]

    with pytest.raises(ModelError, match="relu2"):
        lower(replace(program, plans=(replace(plan, steps=tuple(steps)),)))


def test_output_sizes() -> None:
    program = models.program_of([models.mlp(0)], batch=3)

    assert [output_bytes(replace(program, reveal=reveal)) for reveal in ("probabilities", "top1", "label")] == [
        240,
        48,
        24,
    ]
