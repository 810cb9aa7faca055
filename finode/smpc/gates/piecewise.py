"""Functions of straight pieces: leaky ReLU, clip, ReLU6, the absolute value.

    f(x) = offset + slope_0 x + sum_j (slope_j - slope_j-1) max(x - knot_j, 0)

Every knot is a comparison out of the one opening that truncates x anyway (truncate.py), and each max(x - knot, 0) is a
selection whose dealer-known part is that of x. So a function with m knots costs m comparisons and no round more than
ReLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc.gates.base import Gate
from finode.smpc.gates.compare import sign_of
from finode.smpc.gates.truncate import (
    Opened,
    ReluMaterial,
    mask_material,
    masked,
    select,
    selection_material,
    unmask,
)
from finode.smpc.material import Shape, Source
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights


@dataclass(frozen=True, slots=True)
class Pieces:
    """`slopes` (one more than `knots`, public integers), `offset` and the ascending `knots` in units of x.

    The function's value has the scale of x times that of the slopes.
    """

    knots: tuple[int, ...]
    slopes: tuple[int, ...]
    offset: int

    def __post_init__(self) -> None:
        if not self.knots or len(self.slopes) != len(self.knots) + 1 or list(self.knots) != sorted(self.knots):
            raise LocalError(f"{len(self.knots)} knots and {len(self.slopes)} slopes make no function of pieces")

    def combine(self, x: Tensor, above: Tensor, first: bool) -> Tensor:
        """Return the (share of the) value from x and max(x - knot_j, 0) of every knot."""
        value = x * self.slopes[0]
        for j, excess in enumerate(above):
            value = value + excess * (self.slopes[j + 1] - self.slopes[j])
        return value + self.offset if first else value


def leaky(slope: int, one: int) -> Pieces:
    """Return x above zero and x * slope / one below, raised by the factor `one`."""
    return Pieces((0,), (slope, one), 0)


def clip(least: int | None, most: int | None) -> Pieces:
    """Return x kept between two bounds, in units of x; None is no bound."""
    if least is None and most is not None:
        return Pieces((most,), (1, 0), 0)
    if least is not None and most is not None:
        return Pieces((least, max(least, most)), (0, 1, 0), least)
    if least is not None:
        return Pieces((least,), (0, 1), least)
    raise LocalError("a clip has a bound")


@dataclass(frozen=True, slots=True)
class PiecewiseLinear(Gate[ReluMaterial]):
    """f(z / 2^shift) for a function of m knots, |z| < 2^62 and |z / 2^shift - knot| < 2^bits - 1.

    Cost: 3 rounds; 64 + m (2 (D - 1) + 1) bits per element, where D = ceil(bits / 6): 73 bits for one knot and
    bits = 28, 82 for two. About 65 bytes of correction for the first knot and 55 for each further one.
    For D = 1 the second round falls away.

    1. Open c = z + r + 2^62: x, k and wrap are local (truncate.py).
    2. For every knot: k - knot is masked by the same r'. Open the masked digit bits of the signs (compare.py).
    3. Open every sign xor beta_j; then (x - knot_j) * sign_j is local, x - knot_j less that is max(x - knot_j, 0), and
       f is their public linear combination.
    """

    shape: Shape
    shift: int
    bits: int
    pieces: Pieces

    def _knots(self, device: torch.device) -> Tensor:
        return torch.tensor(self.pieces.knots).to(device).reshape(-1, *[1] * len(self.shape))

    def material(self, source: Source, *inputs: object) -> ReluMaterial:
        shape = (len(self.pieces.knots), *self.shape)
        mask = mask_material(source, self.shape, self.shift)
        sign = sign_of(self.bits).material(source, shape, lambda: mask.high.expand(shape))
        selection = selection_material(
            source, shape, lambda: mask.high.expand(shape), lambda: mask.top.expand(shape), self.shift
        )
        return ReluMaterial(mask, sign, selection)

    async def run(self, session: Session, material: ReluMaterial, *inputs: Share) -> Share:
        comparison, first = sign_of(self.bits), session.first
        opened = unmask(await session.open(masked(inputs[0], material.mask)), material.mask, first)
        shape = (len(self.pieces.knots), *self.shape)
        knots = self._knots(opened.k.device)
        excess = opened.x - knots if first else opened.x.expand(shape)
        value = Opened(excess, opened.k - knots, opened.wrap)

        digits, linear = comparison.masked_bits(value.k, material.sign, first)
        digits = await session.open_bits(digits) if len(digits) else digits
        signs = comparison.sign(digits, linear, material.sign, first)

        flags = await session.open_bits(signs ^ material.selection.bit)
        above = excess - select(flags, value, material.selection)
        return Share(self.pieces.combine(opened.x, above, first), first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        x = inputs[0] >> self.shift
        return self.pieces.combine(x, (x - self._knots(x.device)).clamp(min=0), True)

    def cost(self) -> Cost:
        count = math.prod(self.shape)
        compared = count * len(self.pieces.knots)
        return Cost(1, 64 * count).then(sign_of(self.bits).cost(compared)).then(Cost(1, compared))
