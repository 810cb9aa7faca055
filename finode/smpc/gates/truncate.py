"""One opening that serves truncation, comparison and selection.

Let z be secret at scale 2^(p), |z| < 2^62, and s the number of digits to drop (s may be 0). The dealer knows r,
uniform in Z_2^64; write r' = r >> s for the unsigned shift and r63 for r's top bit.

    open   c = z + r + 2^62,   and let  c' = c >> s (unsigned),  k = c' - 2^(62-s),  wrap = (1 - c63) * 2^(64-s)
    then   x = k - r' + r63 * wrap        is z / 2^s, exact up to one unit in the last place

because 0 <= z + 2^62 < 2^63: the sum wraps exactly when r's top bit is 1 and c's is 0, so the wrap is *linear* in the
shared bit r63. The usual probabilistic truncation fails once in 2^20 elements at such scales; this one never does.

x is public minus what the dealer knows. So the sign of x is a comparison of k with r' (compare.py), and a product of x
with any shared bit b is local once b xor beta is open, for a random bit beta of which the dealer shares [beta],
[beta r'] and [beta r63].

r63 only counts mod 2^s, so it travels in as few bytes. For s = 0 nothing is dropped: r' = r, wrap = 0.

Source: truncation by an opened value and a dealer's shifted mask as in [Catrina, Saxena 2010] and ABY2.0 [Patra,
Schneider, Suresh, Yalame 2021]; the linear wrap and the reuse of one opening are this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from finode.smpc import ring
from finode.smpc.gates.base import Gate
from finode.smpc.gates.compare import SignMaterial, sign_of
from finode.smpc.material import Shape, Source, Value, width_for
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MaskMaterial:
    """Shares of r, r' and r63 for values truncated by `shift`; r63 is not dealt (0) where nothing is dropped."""

    r: Tensor
    high: Tensor
    top: Tensor
    shift: int


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Opened:
    """A masked value after its opening: the truncated `x` as a share, and the public k and wrap (None for s = 0)."""

    x: Tensor
    k: Tensor
    wrap: Tensor | None


def mask_material(source: Source, shape: Shape, shift: int) -> MaskMaterial:
    """Take the masks of values of `shape`: 8 bytes of correction each for r', and r63's; none at all for shift 0."""
    r = source.uniform(shape)
    if shift == 0:
        return MaskMaterial(r, r, r.new_zeros(0), 0)
    high = source.dealt(shape, lambda: ring.high_part(r, shift))
    top = source.dealt(shape, lambda: ring.top_bit(r), width_for(shift))
    return MaskMaterial(r, high, top, shift)


def masked(z: Share, material: MaskMaterial) -> Tensor:
    """Return the share of c = z + r + 2^62, to be opened."""
    return z.add_public(1 << ring.OFFSET_BITS).data + material.r


def unmask(c: Tensor, material: MaskMaterial, first: bool) -> Opened:
    """Return what the opened c gives. Local."""
    shift = material.shift
    k = ring.high_part(c, shift) - (1 << (ring.OFFSET_BITS - shift))
    if shift == 0:
        return Opened(k - material.high if first else -material.high, k, None)
    wrap = (1 - ring.top_bit(c)) << (64 - shift)
    x = material.top * wrap - material.high
    return Opened(x + k if first else x, k, wrap)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SelectionMaterial:
    """Shares of a random bit, XOR and additive, and of its products with r' and r63."""

    bit: Tensor
    beta: Tensor
    beta_high: Tensor
    beta_top: Tensor | None


def selection_material(source: Source, shape: Shape, high: Value, top: Value, shift: int) -> SelectionMaterial:
    """Take what `select` needs for values of `shape` truncated by `shift`, whose r' and r63 the dealer gives by `high`
    and `top`: 8 bytes of correction each for beta and beta r', and beta r63's."""
    bit = source.bits(shape)
    return SelectionMaterial(
        bit,
        source.dealt(shape, lambda: bit.long()),
        source.dealt(shape, lambda: bit * high()),
        source.dealt(shape, lambda: bit * top(), width_for(shift)) if shift else None,
    )


def select(flag: Tensor, value: Opened, material: SelectionMaterial) -> Tensor:
    """Return the share of x * b, where `flag` = b xor beta is open: flag * x + (1 - 2 flag) * beta * x. Local."""
    chosen = flag.long()
    beta_x = value.k * material.beta - material.beta_high
    if value.wrap is not None and material.beta_top is not None:
        beta_x += value.wrap * material.beta_top
    return value.x * chosen + beta_x * (1 - 2 * chosen)


@dataclass(frozen=True, slots=True)
class Truncate(Gate[MaskMaterial]):
    """z / 2^shift, exact up to one unit in the last place, for |z| < 2^62.

    Cost: 1 round; 64 bits per element.

    1. Open c = z + r + 2^62; then x is local (module docstring).
    """

    shape: Shape
    shift: int

    def material(self, source: Source, *inputs: object) -> MaskMaterial:
        return mask_material(source, self.shape, self.shift)

    async def run(self, session: Session, material: MaskMaterial, *inputs: Share) -> Share:
        c = await session.open(masked(inputs[0], material))
        return Share(unmask(c, material, session.first).x, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return inputs[0] >> self.shift

    def cost(self) -> Cost:
        return Cost(1, 64 * math.prod(self.shape))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ReluMaterial:
    mask: MaskMaterial
    sign: SignMaterial
    selection: SelectionMaterial


@dataclass(frozen=True, slots=True)
class TruncateRelu(Gate[ReluMaterial]):
    """max(z / 2^shift, 0), for |z| < 2^62 and |z / 2^shift| < 2^bits - 1.

    Cost: 3 rounds; 64 + 2 (D - 1) + 1 bits per element, where D = ceil(bits / 6): 73 bits for bits = 28.
    For D = 1 the second round falls away.

    1. Open c = z + r + 2^62: x, k and wrap are local (module docstring).
    2. Open the masked digit bits of the sign of k - r' (compare.py).
    3. Open sign xor beta; then x * sign is local, and the result is x - x * sign.
    """

    shape: Shape
    shift: int
    bits: int

    def material(self, source: Source, *inputs: object) -> ReluMaterial:
        mask = mask_material(source, self.shape, self.shift)
        sign = sign_of(self.bits).material(source, self.shape, lambda: mask.high)
        selection = selection_material(source, self.shape, lambda: mask.high, lambda: mask.top, self.shift)
        return ReluMaterial(mask, sign, selection)

    async def run(self, session: Session, material: ReluMaterial, *inputs: Share) -> Share:
        comparison = sign_of(self.bits)
        c = await session.open(masked(inputs[0], material.mask))
        value = unmask(c, material.mask, session.first)

        digits, linear = comparison.masked_bits(value.k, material.sign, session.first)
        opened = await session.open_bits(digits) if len(digits) else digits
        sign = comparison.sign(opened, linear, material.sign, session.first)

        flag = await session.open_bits(sign ^ material.selection.bit)
        return Share(value.x - select(flag, value, material.selection), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return (inputs[0] >> self.shift).clamp(min=0)

    def cost(self) -> Cost:
        count = math.prod(self.shape)
        return Cost(1, 64 * count).then(sign_of(self.bits).cost(count)).then(Cost(1, count))
