"""Weights from augmented copies of each input: a model whose logits move less under noise or a flip counts more.

The querier puts A copies beside each input (rows i (A + 1) + a of the batch, a = 0 being the input itself), and all
are inputs to the models like any other. With x_ka the logits of model k for one of them,

    d_k = (1 / A) sum_a |x_ka - x_k0|_2          w_k = exp(gamma d_k) / sum_l exp(gamma d_l)

weigh the models' probabilities of the input itself; gamma < 0 makes stable models count more. On shares, for 2 to 32
models, beside the softmax of the inputs, which takes 9 rounds:

    differences x_ka - x_k0, truncated        1 round      `Differences`, `Truncate`
    their squared norms                       1            `SquaredNorm`
    gamma / A times their roots               3            `PiecewiseLinear`; the sum over the copies is local
    exp and its normalization                 9            `Softmax` over the models: no range to clamp to
    weights truncated                         1            then the product and the last truncation: 17 rounds in all

**The root** is a function of straight pieces between the squares of `knots_of`. Its chord between a^2 and b^2 lies
below the root by at most (b - a)^2 / (4 (a + b)). For a, b = h j (j +- 1) / 2 that is h / 4, whatever j is: so knots
at the triangular numbers keep the error of a distance within [-h / 4, 0] up to `TRIANGULAR` of them, and beyond, where
they grow by a constant factor, within 0.7%. What all models have in common cancels out of the weights. gamma / A is a
factor of the public slopes and costs nothing.

Source: the test-time augmentation of FedSEI (arXiv 2603.02214); its protocol here is this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from finode.errors import InputError, ModelError
from finode.smpc.circuit import CircuitBuilder
from finode.smpc.engine import Program
from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import Local
from finode.smpc.gates.piecewise import Pieces, PiecewiseLinear
from finode.smpc.gates.softmax import PROBABILITY_BITS, Softmax
from finode.smpc.gates.truncate import Truncate
from finode.smpc.gates.votes import Join, Swap
from finode.smpc.material import Shape, Source
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights

GAMMA_BITS = 8
"""gamma is a public multiple of 2^-8."""
MAX_GAMMA = 16 << GAMMA_BITS
MAX_COPIES = 15
WEIGHT_BITS = 16
"""Digits of a weight when it meets the probabilities."""

KNOT_STEP = 1 / 16
"""h: distances below 18.75 are exact to h / 4 = 1/64. With rounding, and less what all models have in common, that is
0.012 either way: 1.2% of a weight for gamma = -1."""
TRIANGULAR = 24
GROWTH = 1.25
_SQUARE_BITS = 12
"""Digits of a squared distance: the first knot, h^2 = 2^-8, and a root to 2^-8 just above zero."""
_SLOPE_BITS = 20
_DISTANCE_BITS = 16
_LEAST_DIGITS = 6
"""Digits of a difference without which its square has fewer than _SQUARE_BITS. With 8 a distance is within 0.015, with
7 within 0.035, with 6 within 0.08."""
_FITS_BITS = 61


def check(program: Program) -> None:
    """Raise `InputError` or `ModelError` unless the program's copies fit its vote, its batch and its models."""
    if (program.vote == "augmented") != bool(program.copies):
        raise InputError(f"a {program.vote} vote with {program.copies} augmented copies of each input")
    if not 0 <= program.copies <= MAX_COPIES or abs(program.gamma) > MAX_GAMMA:
        raise InputError(
            f"{program.copies} copies with gamma = {program.gamma / (1 << GAMMA_BITS):g}",
            hint=f"copies may be 1 to {MAX_COPIES}, gamma {-MAX_GAMMA >> GAMMA_BITS} to {MAX_GAMMA >> GAMMA_BITS}",
        )
    if program.batch % (1 + program.copies):
        raise InputError(f"{program.batch} rows are not inputs with {program.copies} copies each")
    for plan in program.plans if program.copies else ():
        if digits_of(program.fractional_bits, plan.range_bits, plan.classes) < _LEAST_DIGITS:
            raise ModelError(
                f"squared distances of logits below 2^{plan.range_bits} do not fit",
                hint="an augmented vote needs models imported with fewer range_bits",
            )


def digits_of(fractional_bits: int, range_bits: int, classes: int) -> int:
    """Return the digits of differences of logits whose squared norms fit."""
    return min(fractional_bits, (_FITS_BITS - _norm_bits(range_bits, classes)) // 2)


def _norm_bits(range_bits: int, classes: int) -> int:
    """A squared norm of differences of logits is below 2^this."""
    return 2 * (range_bits + 1) + (classes - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Originals(Local):
    """Of (models, rows, C) the rows of the inputs themselves, (models, inputs, C)."""

    copies: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0][:, :: 1 + self.copies].contiguous()


@dataclass(frozen=True, slots=True)
class Differences(Local):
    """Of (models, rows, C) every copy's row less its input's, (models, inputs, copies, C)."""

    copies: int

    def linear(self, *inputs: Tensor) -> Tensor:
        models, rows, classes = inputs[0].shape
        grouped = inputs[0].reshape(models, rows // (1 + self.copies), 1 + self.copies, classes)
        return grouped[:, :, 1:] - grouped[:, :, :1]


@dataclass(frozen=True, slots=True)
class SumCopies(Local):
    """(models, inputs, copies) summed over the copies, (models, inputs)."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sum(-1)


@dataclass(frozen=True, slots=True)
class PerModel(Local):
    """Weights (inputs, models) as factors of probabilities, (models, inputs, 1)."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].T.unsqueeze(-1)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class NormMaterial:
    mask: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class SquaredNorm(Gate[NormMaterial]):
    """sum_j x_j^2 over the last dimension; twice the scale.

    Cost: 1 round; 64 bits per element. 8 bytes of correction per row.

    1. Open d = x - a, where the dealer shares a and n = sum_j a_j^2.
    2. [sum_j x_j^2] = [n] + sum_j (2 d_j [a_j] + d_j^2); only party 0 adds the public term. Local.

    Source: a square from one opening, with half of a triple [Beaver 1991].
    """

    shape: Shape

    def material(self, source: Source, *inputs: object) -> NormMaterial:
        a = source.uniform(self.shape)
        return NormMaterial(a, source.dealt(self.shape[:-1], lambda: (a * a).sum(-1)))

    async def run(self, session: Session, material: NormMaterial, *inputs: Share) -> Share:
        d = await session.open(inputs[0].data - material.mask)
        # Party 0's public term goes into its product: d (2 a + d).
        right = 2 * material.mask + d if session.first else 2 * material.mask
        return Share(material.norm + (d * right).sum(-1), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return (inputs[0] * inputs[0]).sum(-1)

    def cost(self) -> Cost:
        return Cost(1, 64 * math.prod(self.shape))


def knots_of(largest: float) -> list[float]:
    """Return the distances between which the root is straight, from the least to just above `largest`."""
    knots = [KNOT_STEP * j * (j + 1) / 2 for j in range(1, TRIANGULAR + 1)]
    while knots[-1] < largest:
        knots.append(knots[-1] * GROWTH)
    return knots


def root(norm_bits: int, factor: float) -> Pieces:
    """Return factor * sqrt(x) for x in [0, 2^norm_bits), x with _SQUARE_BITS digits, the value _SLOPE_BITS more.

    Each slope makes up for what rounding the one before it has left at the knot. Roots, products and quotients are
    rounded correctly everywhere (IEEE 754), so all parties come to the same slopes.
    """
    one = 1 << _SQUARE_BITS
    places = [0, *(round(knot * knot * one) for knot in knots_of(math.sqrt(1 << norm_bits)))]
    slopes, reached = [], 0
    for left, right in pairwise(places):
        due = factor * math.sqrt(right / one) * (1 << (_SQUARE_BITS + _SLOPE_BITS))
        slopes.append(round((due - reached) / (right - left)))
        reached += slopes[-1] * (right - left)
    return Pieces(tuple(places[1:-1]), tuple(slopes), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One lane's logits: the node, its shape (models, rows, C), its scale and the range |x| < 2^range_bits."""

    name: str
    shape: Shape
    point: int
    range_bits: int


def add_weights(builder: CircuitBuilder, program: Program, lanes: list[Lane]) -> str:
    """Add the gates from the logits to the weights (models, inputs, 1), at scale 2^WEIGHT_BITS and of sum 1."""
    distances = [_add_distances(builder, program, f"lane{i}/augmented", lane) for i, lane in enumerate(lanes)]
    joined = builder.add("vote/distances", Join(), *distances)
    exponents = builder.add("vote/exponents", Swap(), joined)
    range_bits = max(_exponent_bits(lane.range_bits, lane.shape[-1]) for lane in lanes)
    shape = (program.answers, program.models)
    dropped = _SQUARE_BITS + _SLOPE_BITS - _DISTANCE_BITS
    softmax = Softmax(shape, dropped, _DISTANCE_BITS, _DISTANCE_BITS + range_bits + 2)
    weights = builder.add("vote/weights", softmax, exponents)
    digits = builder.add("vote/weights/digits", Truncate(shape, PROBABILITY_BITS - WEIGHT_BITS), weights)
    return builder.add("vote/weights/factors", PerModel(), digits)


def _exponent_bits(range_bits: int, classes: int) -> int:
    """|gamma d| is below 2^this."""
    return -(-_norm_bits(range_bits, classes) // 2) + (MAX_GAMMA >> GAMMA_BITS).bit_length()


def _add_distances(builder: CircuitBuilder, program: Program, prefix: str, lane: Lane) -> str:
    """Add the gates from a lane's logits to gamma d, (models, inputs) at scale 2^(_SQUARE_BITS + _SLOPE_BITS)."""
    models, _, classes = lane.shape
    shape = (models, program.answers, program.copies, classes)
    digits = digits_of(program.fractional_bits, lane.range_bits, classes)
    value = builder.add(f"{prefix}/differences", Differences(program.copies), lane.name)
    if lane.point > digits:
        value = builder.add(f"{prefix}/digits", Truncate(shape, lane.point - digits), value)
    value = builder.add(f"{prefix}/squares", SquaredNorm(shape), value)
    norm_bits = _norm_bits(lane.range_bits, classes)
    pieces = root(norm_bits, program.gamma / (1 << GAMMA_BITS) / program.copies)
    gate = PiecewiseLinear(shape[:-1], 2 * digits - _SQUARE_BITS, _SQUARE_BITS + norm_bits + 1, pieces)
    return builder.add(f"{prefix}/sum", SumCopies(), builder.add(f"{prefix}/root", gate, value))
