"""What a plan and a program may promise: what would not fit, or be computed wrongly, is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finode.errors import InputError, MalformedMessage, ModelError
from finode.smpc.counts import COUNTS, has_counts, with_counts
from finode.smpc.lowering import HEADROOM_BITS, MAX_BATCH, lower
from finode.smpc.plan import LEAST_RANGE_BITS, Op, Plan, WeightSpec, decode_plan
from finode.smpc.simulation import ProgramRun, simulate_program
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker

CLOSE = 0.002


def _run(maker: PlanMaker, range_bits: int, x: Floats) -> tuple[ProgramRun, Floats]:
    """Run one model in that range; return the run and the real answer."""
    program = models.program_of([maker], plans=(maker.plan(range_bits),), batch=len(x))
    return simulate_program(program, [maker.weights], x), models.float_votes([maker], x).numpy()


def _lower(maker: PlanMaker, range_bits: int, fractional_bits: int = 16) -> None:
    lower(models.program_of([maker], plans=(maker.plan(range_bits),), fractional_bits=fractional_bits))


@pytest.mark.parametrize("range_bits", [LEAST_RANGE_BITS - 1, 1, 0, -5])
def test_a_range_too_narrow_for_the_gates_is_refused_with_the_field_and_the_remedy(range_bits: int) -> None:
    plan = models.mlp(0).plan()
    with pytest.raises(ModelError, match="range_bits") as caught:
        replace(plan, range_bits=range_bits)
    assert "import the model again" in caught.value.hint

    # As it comes from a peer.
    object.__setattr__(plan, "range_bits", range_bits)
    with pytest.raises(MalformedMessage, match="range_bits"):
        decode_plan(plan.encode())


@pytest.mark.parametrize("op", [Op.SIGMOID, Op.TANH, Op.EXP, Op.GELU, Op.ERF, Op.SOFTMAX, Op.LOG_SOFTMAX])
def test_every_curve_is_right_in_the_narrowest_range(op: Op) -> None:
    maker = PlanMaker((8,), 0)
    maker.step(op, (8,))
    maker.linear(4)
    maker.weights["w1"] /= 4
    # Of exp only what stays in the range itself.
    x = np.linspace(-15.9, 2.7 if op is Op.EXP else 15.9, 64).reshape(8, 8)
    if op in (Op.SOFTMAX, Op.LOG_SOFTMAX):
        x /= 4

    done, real = _run(maker, LEAST_RANGE_BITS, x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < CLOSE


def _pooled(side: int, level: float) -> PlanMaker:
    """The mean of side * side values of about `level`, brought back by 2^-16, less 7.5."""
    maker = PlanMaker((1, side, side), 0)
    maker.step(Op.SCALE, (1, side, side), weight=maker.weight("gain", 1, fan=1), bias=maker.weight("lift", 1, fan=1))
    maker.step(Op.GLOBAL_AVERAGE_POOL, (1,))
    maker.linear(2)
    maker.weights |= {
        "gain": np.array([level]),
        "lift": np.zeros(1),
        "w2": np.array([[0.0], [2.0**-16]]),
        "b2": np.array([0, -7.5]),
    }
    return maker


def test_the_mean_of_many_values_of_a_wide_range_is_right() -> None:
    # 2,304 values below 2^19 at 32 digits and the 12 of their number: two too many.
    maker, x = _pooled(48, 520_000.0), np.random.default_rng(0).uniform(0.98, 1, size=(16, 1, 48, 48))

    done, real = _run(maker, 19, x)

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < CLOSE


@pytest.mark.parametrize(("side", "range_bits", "fractional_bits"), [(48, 37, 12), (32, 45, 8)])
def test_a_mean_that_has_no_room_is_refused(side: int, range_bits: int, fractional_bits: int) -> None:
    with pytest.raises(ModelError, match=f"global_average_pool1.*{range_bits}") as caught:
        _lower(_pooled(side, 1.0), range_bits, fractional_bits)
    assert "fewer range_bits" in caught.value.hint

    _lower(_pooled(side, 1.0), range_bits - 8, fractional_bits)


def test_a_log_softmax_that_has_no_room_is_refused() -> None:
    maker = PlanMaker((4,), 0)
    maker.step(Op.LOG_SOFTMAX, (4,))
    maker.linear(2)

    _lower(maker, HEADROOM_BITS - 36)
    with pytest.raises(ModelError, match="log_softmax0"):
        _lower(maker, HEADROOM_BITS - 35)


def test_a_large_weight_is_added_to_a_softmax_at_a_scale_that_fits() -> None:
    maker = PlanMaker((4,), 0)
    maker.step(Op.SOFTMAX, (4,))
    maker.step(Op.ADD_WEIGHT, (4,), weight=maker.weight("shift", 4, fan=1))
    maker.linear(2)
    maker.weights |= {"shift": np.array([900.0, -700.0, 500.0, 1100.0]), "w2": maker.weights["w2"] / 500}

    done, real = _run(maker, 11, _inputs(3))

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < CLOSE


def _inputs(batch: int) -> Floats:
    return np.random.default_rng(batch).normal(0, 2, size=(batch, 4))


def _times(factor: float) -> PlanMaker:
    maker = PlanMaker((4,), 0)
    maker.step(Op.TIMES, (4,), numbers=(factor,))
    maker.relu()
    maker.linear(2)
    return maker


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**-100])
def test_a_factor_may_be_as_small_as_it_likes(factor: float) -> None:
    done, real = _run(_times(factor), 11, _inputs(3))

    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < CLOSE


@pytest.mark.parametrize("factor", [2.0**27, 1e300, -np.inf, np.nan])
def test_a_factor_that_brings_every_value_out_of_range_is_refused(factor: float) -> None:
    with pytest.raises(ModelError, match="times0"):
        _lower(_times(factor), 11)


def _weighted_plan() -> Plan:
    maker = PlanMaker((4,), 0)
    maker.step(Op.MUL_WEIGHT, (4,), weight=maker.weight("factor", 4, fan=1))
    maker.step(Op.ADD_WEIGHT, (4,), weight=maker.weight("summand", 4, fan=1))
    maker.linear(4)
    return maker.plan()


def test_a_weight_is_a_factor_or_a_summand_and_not_both() -> None:
    plan = _weighted_plan()
    first, second, last = plan.steps

    for steps, name in (
        ((first, replace(second, weight="factor"), last), "factor"),
        ((replace(first, weight="summand"), second, last), "summand"),
        ((first, second, replace(last, bias="factor")), "factor"),
    ):
        with pytest.raises(ModelError, match=f"multiplies with the weight '{name}' and adds it"):
            replace(plan, steps=steps)
    # In one role a weight may serve as often as one likes.
    replace(plan, steps=(first, second, replace(last, bias="summand")))


def test_no_two_weights_have_one_name() -> None:
    plan = _weighted_plan()

    with pytest.raises(ModelError, match="two weights of the plan are called 'summand'"):
        replace(plan, weights=(*plan.weights, WeightSpec(name="summand", shape=(4,))))


def test_counts_are_a_weight_that_no_step_reads() -> None:
    maker = models.mlp(0)
    plan, _ = with_counts(maker.plan(), maker.weights, [1] * 10)
    last = replace(plan.steps[-1], bias=COUNTS)
    read = replace(plan, steps=(*plan.steps[:-1], last))

    assert (has_counts(plan), has_counts(read)) == (True, False)
    with pytest.raises(InputError, match="model 0 has none"):
        lower(models.program_of([maker], plans=(read,), vote="prior"))


@pytest.mark.parametrize("changes", [{"batch": MAX_BATCH + 1}, {"fractional_bits": 7}, {"fractional_bits": 21}])
def test_a_program_beyond_what_the_engine_has_room_for_is_refused(changes: dict[str, Any]) -> None:
    program = models.program_of([models.mlp(0)])
    lower(replace(program, batch=MAX_BATCH))

    with pytest.raises(InputError) as caught:
        lower(replace(program, **changes))
    assert str(next(iter(changes.values()))) in caught.value.message
