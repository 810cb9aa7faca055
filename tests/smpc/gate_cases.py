"""All gates that open anything, each on inputs that would show a mask that serves twice.

An input is one site's, the same at all `SITES` (joint.py); the gate has the axis of the sites where `at` puts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finode.smpc.augmentation import SquaredNorm
from finode.smpc.gates import spline
from finode.smpc.gates.base import Gate
from finode.smpc.gates.linear import Mask
from finode.smpc.gates.log_softmax import Log, LogSoftmax
from finode.smpc.gates.maximum import ArgMax, OneHot, Winners
from finode.smpc.gates.piecewise import PiecewiseLinear, clip, leaky
from finode.smpc.gates.pool import MaxPool, Window
from finode.smpc.gates.product import MatrixProduct
from finode.smpc.gates.softmax import EXP_BITS, Exp, Multiply, Reciprocal, Softmax, reciprocal_table
from finode.smpc.gates.spline import Spline
from finode.smpc.gates.truncate import Truncate, TruncateRelu
from finode.smpc.gates.votes import Distance, Lookup
from finode.smpc.session import Session
from finode.smpc.share import Share
from tests.smpc.joint import SITES

F, BITS = 16, 28
ONE = 1 << F


@dataclass(frozen=True, slots=True)
class Case:
    """A gate, and for each run the values of its inputs at every site."""

    gate: Gate[Any]
    runs: Sequence[tuple[Tensor, ...]]
    max_block: int = 32
    """What `maximum.MAX_BLOCK` is in these runs: a small one makes a tournament of several levels out of few values."""


class OpenedMask(Mask):
    """A `Mask` whose public value is handed on as a share, as the only gate of a circuit has to."""

    __slots__ = ()

    async def run(self, session: Session, material: Tensor, *inputs: Share) -> Share:  # type: ignore[override]
        value = await Mask.run(self, session, material, *inputs)
        return Share(value if session.first else torch.zeros_like(value), session.first)


def at(axis: int, bits: int, values: Sequence[object]) -> list[tuple[Tensor, ...]]:
    """Return one run for each nested list of reals at scale 2^bits, repeated along a new axis of sites."""
    return [(_sites(axis, bits, value),) for value in values]


def pairs(axis: int, values: Sequence[tuple[object, object]]) -> list[tuple[Tensor, ...]]:
    """Return one run for each two operands at scale 2^F."""
    return [tuple(_sites(axis, F, value) for value in both) for both in values]


def _sites(axis: int, bits: int, value: object) -> Tensor:
    sample = (torch.tensor(value, dtype=torch.float64) * 2.0**bits).round().long().unsqueeze(axis)
    return sample.repeat([SITES if i == axis else 1 for i in range(sample.dim())])


# Constant, of either sign, at both ends of the range, equal, ascending and descending.
SQUARES = [
    [[0, 0], [0, 0]],
    [[1, 1], [1, 1]],
    [[-1, -1], [-1, -1]],
    [[2047, 1500], [3, 0.5]],
    [[-0.5, -3], [-1500, -2047]],
    [[5, -5], [-5, 5]],
]
ROWS = [
    [[0, 0, 0], [0, 0, 0]],
    [[9, 5, 1], [9, 5, 1]],
    [[-1, -2, -3], [-3, -2, -1]],
    [[2047, -2047, 2047], [4, 4, -4]],
]
WINDOWS = [  # of 2x2 or 1x2, side by side
    [[[[0, 0, 0, 0], [0, 0, 0, 0]]]],
    [[[[9, 3, 2047, 4], [1, 5, 6, 7]]]],
    [[[[1, 3, 4, 5], [5, 9, 6, 2047]]]],
    [[[[-1, -3, -2047, -4], [-5, -9, -6, -7]]]],
    [[[[2, 2, -2, -2], [2, 2, -2, -2]]]],
]
OVERLAPPING = [[[[row[:3] for row in planes] for planes in models] for models in window] for window in WINDOWS]
SPREAD = [[0, 0], [1, 1], [-1, -1], [-2000, 2000], [3.9, -3.9], [7.9, -8.1], [-15.8, 15.8]]

POOLS = {
    "max-pool of 2x2": ((2, 4), Window((2, 2), (2, 2), (0,) * 4), WINDOWS),
    "max-pool that overlaps": ((2, 3), Window((2, 2), (1, 1), (0,) * 4), OVERLAPPING),
    "max-pool of 1x2": ((2, 4), Window((1, 2), (1, 2), (0,) * 4), WINDOWS),
}
CURVES = (spline.GELU, spline.GELU_TANH, spline.SIGMOID, spline.TANH, spline.ERF, spline.EXP)

CASES: dict[str, Case] = {
    "mask": Case(OpenedMask((2, SITES, 3)), at(1, F, ROWS)),
    "truncate": Case(Truncate((2, SITES, 2), F), at(1, 2 * F, SQUARES)),
    "truncate nothing": Case(Truncate((2, SITES, 2), 0), at(1, 2 * F, SQUARES)),
    "relu": Case(TruncateRelu((2, SITES, 2), F, BITS), at(1, 2 * F, SQUARES)),
    "relu of one digit": Case(TruncateRelu((2, SITES, 2), 0, 6), at(1, 0, [[[0, 0], [1, 9]], [[-1, -9], [63, -63]]])),
    **{
        f"{name}{', relu' if relu else ''}": Case(
            MaxPool((1, SITES, 1, *size), window, F, BITS, relu), at(1, 2 * F, values)
        )
        for name, (size, window, values) in POOLS.items()
        for relu in (False, True)
    },
    "clip": Case(PiecewiseLinear((SITES, 2), F, BITS, clip(0, 6 * ONE)), at(0, 2 * F, SPREAD)),
    "leaky": Case(PiecewiseLinear((SITES, 2), F, BITS, leaky(6554, ONE)), at(0, 2 * F, SPREAD)),
    **{curve.name: Case(Spline((SITES, 2), F, F, BITS, curve), at(0, 2 * F, SPREAD)) for curve in CURVES},
    "multiply": Case(Multiply((2, SITES, 2), (2, SITES, 2)), pairs(1, [(s, s) for s in SQUARES])),
    "multiply by a column": Case(
        Multiply((1, SITES, 3), (1, SITES, 1)), pairs(1, [([[0, 0, 0]], [[0]]), ([[3, 3, 3]], [[3]])])
    ),
    "matrix product": Case(MatrixProduct((SITES, 2, 2), (SITES, 2, 2)), pairs(0, [(s, s) for s in SQUARES])),
    "squared norm": Case(SquaredNorm((2, SITES, 3)), at(1, F, ROWS)),
    **{f"largest of 3, {gives}": Case(ArgMax((2, SITES, 3), F, BITS, gives), at(1, 2 * F, ROWS)) for gives in Winners},
    "largest of 3 in blocks": Case(ArgMax((SITES, 3), F, BITS, Winners.TOP), at(0, 2 * F, [r[0] for r in ROWS]), 2),
    "one-hot": Case(OneHot((2, SITES, 3), 5), at(1, 0, [[[0, 0, 0], [0, 0, 0]], [[4, 4, 1], [0, 2, 4]]])),
    "exp of a distance": Case(Exp((2, SITES), F, BITS), at(1, F, [[0, 0], [-1, -1], [-15.8, -16], [-2000, 0]])),
    "reciprocal": Case(Reciprocal((2, SITES), 3), at(1, EXP_BITS, [[1, 1], [3, 1], [2.5, 1.5]])),
    "log": Case(Log((2, SITES), 10), at(1, EXP_BITS, [[1, 1], [10, 1], [2.5, 1.5]])),
    "lookup": Case(Lookup((2, SITES), 40, reciprocal_table(8)), at(1, 40, [[1, 1], [8, 1], [2.5, 1.5]])),
    "softmax": Case(Softmax((SITES, 3), F, F, BITS), at(0, 2 * F, [r[0] for r in ROWS])),
    "log-softmax": Case(LogSoftmax((SITES, 3), F, F, BITS), at(0, 2 * F, [r[0] for r in ROWS])),
    "distance": Case(Distance((2, SITES, 3), F, BITS), at(1, 2 * F, ROWS)),
}
