"""Random plans over all operators: the engine against the oracle, and both against floating point."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from finode.models.float_run import run_float, softmax
from finode.smpc.counts import with_counts
from finode.smpc.native import NativeEngine
from finode.smpc.plan import INPUT, Op
from finode.smpc.simulation import simulate_program
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker

LIMIT = 64.0
"""What a value is clipped to before it can grow further: random weights know no range."""

CURVES = (Op.SIGMOID, Op.TANH, Op.GELU, Op.GELU_TANH, Op.ERF)
ANYWHERE = (
    *CURVES,
    Op.RELU,
    Op.LEAKY_RELU,
    Op.CLIP,
    Op.EXP,
    Op.TIMES,
    Op.ADD,
    Op.SUB,
    Op.MUL,
    Op.ADD_WEIGHT,
    Op.MUL_WEIGHT,
    Op.CONCAT,
    Op.SLICE,
    Op.PAD,
    Op.SOFTMAX,
    Op.LOG_SOFTMAX,
    Op.LINEAR,
)
IMAGES = (Op.CONV, Op.MAX_POOL, Op.AVERAGE_POOL, Op.SCALE, Op.TRANSPOSE, Op.MATMUL, Op.RESHAPE, Op.GLOBAL_AVERAGE_POOL)

COUNTS = ((20, 5, 3, 4), (2, 15, 8, 9))
"""Of two models. No class is nearly one model's alone: the scores add up to a sixth at least, by which the querier
divides them, and their errors with them."""


def prior(logits: Floats) -> Floats:
    """The votes of models that know of their classes what `COUNTS` says."""
    counts = np.array(COUNTS)[:, None] + 1.0
    votes = softmax(logits - np.log(counts))
    scores = (counts * votes).sum(0) / counts.sum(0)
    return np.asarray(scores / scores.sum(-1, keepdims=True))


VOTES: dict[str, Callable[[Floats], Floats]] = {
    "soft": lambda logits: softmax(logits).mean(0),
    "weighted": lambda logits: softmax(logits)[0] / 4 + softmax(logits)[1] * 3 / 4,
    "prior": prior,
}
"""Of all models' logits, in floating point."""


def grow(maker: PlanMaker, op: Op, choice: int) -> None:
    """Append a step of that operation, with attributes by `choice`, where it fits the last value."""
    shape, index = maker.shapes[maker.last], len(maker.steps)
    axis = choice % len(shape)
    match op:
        case Op.ADD | Op.SUB | Op.MUL:
            same = [name for name, other in maker.shapes.items() if other == shape]
            maker.step(op, shape, maker.last, same[choice % len(same)])
        case Op.LEAKY_RELU:
            maker.step(op, shape, numbers=((0.1, 0.01, 0.5)[choice % 3],))
        case Op.CLIP:
            maker.step(op, shape, numbers=((0.0, 6.0), (-1.0, math.inf), (-math.inf, 0.5))[choice % 3])
        case Op.EXP:
            maker.step(Op.CLIP, shape, numbers=(-math.inf, 2.0))
            maker.step(op, shape)
        case Op.TIMES:
            maker.step(op, shape, numbers=((-1.0, 0.125, 3.0, 0.3, -0.7)[choice % 5],))
        case Op.ADD_WEIGHT | Op.MUL_WEIGHT:
            maker.step(op, shape, weight=maker.weight(f"w{index}", *shape[choice % 2 :], fan=2))
        case Op.CONCAT:
            wider = tuple(2 * side if i == axis else side for i, side in enumerate(shape))
            maker.step(op, wider, maker.last, maker.last, axes=(axis,))
        case Op.SLICE:
            strides = tuple(-1 if i == axis else 1 for i in range(len(shape)))
            counts = tuple(max(1, side - 1) if i == axis else side for i, side in enumerate(shape))
            starts = tuple(side - 1 if i == axis else 0 for i, side in enumerate(shape))
            maker.step(op, counts, starts=starts, strides=strides)
        case Op.PAD:
            pads = tuple(1 if i == axis else 0 for i in range(2 * len(shape)))
            wider = tuple(side + (i == axis) for i, side in enumerate(shape))
            maker.step(op, wider, pads=pads, numbers=((0.0, -1.5)[choice % 2],))
        case Op.LINEAR:
            out = 3 + choice % 4
            weight = maker.weight(f"w{index}", out, shape[-1], fan=shape[-1])
            maker.step(op, (*shape[:-1], out), weight=weight, bias=maker.weight(f"b{index}", out, fan=4))
        case Op.CONV:
            maker.conv(2 + choice % 3, 1 + choice % 2, pad=1, groups=1)
        case Op.MAX_POOL | Op.AVERAGE_POOL:
            if min(shape[1:]) >= 2:
                maker.pool(op, 2, stride=1 + choice % 2)
        case Op.SCALE:
            maker.step(
                op,
                shape,
                weight=maker.weight(f"w{index}", shape[0], fan=2),
                bias=maker.weight(f"b{index}", shape[0], fan=2),
            )
        case Op.TRANSPOSE:
            axes = ((1, 0, 2), (2, 0, 1), (0, 2, 1))[choice % 3]
            maker.step(op, tuple(shape[a] for a in axes), axes=axes)
        case Op.MATMUL:
            left = maker.last
            right = maker.step(Op.TRANSPOSE, (shape[0], shape[2], shape[1]), axes=(0, 2, 1))
            maker.step(op, (shape[0], shape[1], shape[1]), left, right)
        case Op.RESHAPE:
            maker.flatten()
        case Op.GLOBAL_AVERAGE_POOL:
            maker.step(op, (shape[0], 1, 1))
        case _:
            maker.step(op, shape)
    if op not in CURVES:
        maker.step(Op.CLIP, maker.shapes[maker.last], numbers=(-LIMIT, LIMIT))


def build(seed: int, choices: list[tuple[int, int]]) -> PlanMaker:
    maker = PlanMaker((2, 4, 4), seed)
    for kind, choice in choices:
        shape = maker.shapes[maker.last]
        known = (*ANYWHERE, *IMAGES) if len(shape) == 3 else ANYWHERE
        if math.prod(shape) <= 128:
            grow(maker, known[kind % len(known)], choice)
    if len(maker.shapes[maker.last]) > 1:
        maker.flatten()
    maker.linear(4)
    return maker


def within_range(maker: PlanMaker, x: Floats) -> Floats:
    """Return a model's logits; give a plan up whose values leave the range, where the engine promises nothing."""
    plan, peaks = maker.plan(), list[float]()
    logits = run_float(plan, maker.weights, x, lambda name, value: peaks.append(float(np.abs(value).max())))
    assume(max(peaks) < 2.0**plan.range_bits - 1)
    return logits


# The same plans each time: the masks differ anyway, and a plan at the edge of the tolerance must not fail now and then.
@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3, 5])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1000),
    choices=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=6),
    vote=st.sampled_from(["soft", "weighted", "entropy", "spectral", "prior"]),
    profile=st.sampled_from(["latency", "throughput"]),
)
def test_any_plan_gives_what_the_oracle_gives(
    parties: int, seed: int, choices: list[tuple[int, int]], vote: str, profile: str
) -> None:
    makers = [build(seed, choices), build(seed + 1, choices)]
    x = np.random.default_rng(seed).normal(size=(2, *makers[0].input_shape))
    logits = np.stack([within_range(maker, x) for maker in makers])
    changes = {"weighted": {"vote_weights": (1, 3)}}.get(vote, {})
    owned = [(maker.plan(), maker.weights) for maker in makers]
    if vote == "prior":
        owned = [with_counts(*own, counts) for own, counts in zip(owned, COUNTS, strict=True)]
    weights = [own[1] for own in owned]
    plans = tuple(own[0] for own in owned)
    program = models.program_of(makers, batch=2, parties=parties, vote=vote, profile=profile, plans=plans, **changes)

    done = simulate_program(program, weights, x)

    oracle = NativeEngine().plaintext(program, weights, x)
    assert done.output.probabilities is not None
    assert oracle.probabilities is not None
    assert np.abs(done.output.probabilities - oracle.probabilities).max() < 0.002
    if vote in VOTES:
        assert np.abs(done.output.probabilities - VOTES[vote](logits)).max() < 0.002


def test_every_operator_is_drawn() -> None:
    drawn = set(ANYWHERE) | set(IMAGES)

    assert drawn == set(Op)
    maker = PlanMaker((2, 4, 4), 0)
    for op in (*IMAGES[:6], *ANYWHERE):
        grow(maker, op, 1)
    assert maker.shapes[INPUT] == (2, 4, 4)
