"""Softmax over the last dimension: exp(x_j - max) / sum_i exp(x_i - max), on shares.

The largest value comes from a tournament (maximum.py), so all exponents lie in (-2^range, 0], exp in (0, 1], and the
sum in [1, C]. Exponents below -15.9 count as nothing: exp is cut off there to 0. Scales are fixed by what fits: exp
has 18 digits after the point, the reciprocal 36, their product `PROBABILITY_BITS`, which leaves room to add up the
probabilities of 64 models before the one truncation that follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc import frames
from finode.smpc.gates.base import Gate
from finode.smpc.gates.compare import SignMaterial, sign_of
from finode.smpc.gates.lookup import EXP, RECIPROCAL, Table
from finode.smpc.gates.maximum import Tournament, TournamentMaterial
from finode.smpc.gates.truncate import (
    MaskMaterial,
    SelectionMaterial,
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

EXP_BITS = 18
"""Digits of exp after the point; the error of a sum of C of them stays below 2^-18 * sqrt(C)."""
RECIPROCAL_BITS = 36
PROBABILITY_BITS = EXP_BITS + RECIPROCAL_BITS
MAX_SUMMED = 64
"""Probabilities that fit into 2^62 when added at scale 2^PROBABILITY_BITS, with room to spare."""

_EXP_TABLE_BITS = 48
_RECIPROCAL_INPUT_BITS = 16
_RECIPROCAL_STEP_BITS = 5


def exp_table(input_bits: int) -> Table:
    """Return exp on [-15.875, 0], nodes 1/16 apart: within 2^-14.6 of exp, three times 2^8 entries."""
    return Table(EXP, -15.875, 4, 8, input_bits, _EXP_TABLE_BITS)


def reciprocal_table(largest: int) -> Table:
    """Return 1/x on [31/32, largest + 1/32], nodes 1/32 apart: within 2^-14.2 of it."""
    nodes = (largest << _RECIPROCAL_STEP_BITS) + 4
    return Table(
        RECIPROCAL,
        1 - 2.0**-_RECIPROCAL_STEP_BITS,
        _RECIPROCAL_STEP_BITS,
        (nodes - 1).bit_length(),
        _RECIPROCAL_INPUT_BITS,
        RECIPROCAL_BITS,
    )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ExpMaterial:
    mask: MaskMaterial
    sign: SignMaterial
    table: Tensor
    value: MaskMaterial
    selection: SelectionMaterial


@dataclass(frozen=True, slots=True)
class Exp(Gate[ExpMaterial]):
    """exp(x) at scale 2^EXP_BITS for -2^(bits - input_bits) < x <= 0 at scale 2^input_bits; 0 below -15.875.

    For bits - input_bits >= 4, so that x - start is in range too.

    Cost: 3 rounds; 64 + 2 (D - 1) + 64 + 1 bits per element, where D = ceil(bits / 6): 137 bits for bits = 28.

    1. Open c = x + r. Local: the value e at scale 2^48 from the table (lookup.py; meaningless below its start).
    2. Open the masked digit bits of the sign of x - start (compare.py), and e + r_e + 2^62, which truncates e and
       prepares its selection (truncate.py).
    3. Open sign xor beta; then e - e * sign is local.
    """

    shape: Shape
    input_bits: int
    bits: int

    @property
    def _table(self) -> Table:
        return exp_table(self.input_bits)

    @property
    def _dropped(self) -> int:
        return _EXP_TABLE_BITS - EXP_BITS

    def material(self, source: Source, *inputs: object) -> ExpMaterial:
        mask = mask_material(source, self.shape, 0)
        sign = sign_of(self.bits).material(source, self.shape, lambda: mask.high)
        table = self._table.material(source, self.shape, mask)
        value = mask_material(source, self.shape, self._dropped)
        selection = selection_material(source, self.shape, lambda: value.high, lambda: value.top, self._dropped)
        return ExpMaterial(mask, sign, table, value, selection)

    async def run(self, session: Session, material: ExpMaterial, *inputs: Share) -> Share:
        comparison, first, table = sign_of(self.bits), session.first, self._table
        k = unmask(await session.open(masked(inputs[0], material.mask)), material.mask, first).k

        digits, linear = comparison.masked_bits(k - table.start_units, material.sign, first)
        e = Share(table.read(k, material.table), first)
        digits, c = await session.open_together(frames.bits(digits), frames.elements(masked(e, material.value)))
        sign = comparison.sign(digits, linear, material.sign, first)
        value = unmask(c, material.value, first)

        flag = await session.open_bits(sign ^ material.selection.bit)
        return Share(value.x - select(flag, value, material.selection), first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        start = self._table.start_units
        value = self._table.plain(inputs[0].clamp(min=start)) >> self._dropped
        return torch.where(inputs[0] < start, 0, value)

    def cost(self) -> Cost:
        count = math.prod(self.shape)
        digits = sign_of(self.bits).cost(count)
        return Cost(3, (64 + 64 + 1) * count + digits.bits)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ReciprocalMaterial:
    mask: MaskMaterial
    table: Tensor


@dataclass(frozen=True, slots=True)
class Reciprocal(Gate[ReciprocalMaterial]):
    """1/x at scale 2^RECIPROCAL_BITS, for x in [1, largest] at scale 2^EXP_BITS.

    Cost: 1 round; 64 bits per element.

    1. Open c = x + r + 2^62, without its last two digits; then read the table (lookup.py).
    """

    shape: Shape
    largest: int

    @property
    def _table(self) -> Table:
        return reciprocal_table(self.largest)

    def material(self, source: Source, *inputs: object) -> ReciprocalMaterial:
        mask = mask_material(source, self.shape, EXP_BITS - _RECIPROCAL_INPUT_BITS)
        return ReciprocalMaterial(mask, self._table.material(source, self.shape, mask))

    async def run(self, session: Session, material: ReciprocalMaterial, *inputs: Share) -> Share:
        c = await session.open(masked(inputs[0], material.mask))
        k = unmask(c, material.mask, session.first).k
        return Share(self._table.read(k, material.table), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return self._table.plain(inputs[0] >> (EXP_BITS - _RECIPROCAL_INPUT_BITS))

    def cost(self) -> Cost:
        return Cost(1, 64 * math.prod(self.shape))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class TripleMaterial:
    a: Tensor
    b: Tensor
    c: Tensor


@dataclass(frozen=True, slots=True)
class Multiply(Gate[TripleMaterial]):
    """x * y elementwise, broadcast; the scale is the sum of theirs [Beaver 1991].

    Cost: 1 round; 64 bits per element of x and of y.

    1. Open d = x - a and e = y - b, where the dealer shares a, b and c = a * b.
    2. [x * y] = [c] + d * [b] + e * [a] + d * e; only party 0 adds the public term. Local.
    """

    left: Shape
    right: Shape

    def material(self, source: Source, *inputs: object) -> TripleMaterial:
        a, b = source.uniform(self.left), source.uniform(self.right)
        shape = tuple(np.broadcast_shapes(self.left, self.right))
        return TripleMaterial(a, b, source.dealt(shape, lambda: a * b))

    async def run(self, session: Session, material: TripleMaterial, *inputs: Share) -> Share:
        d, e = await session.open_together(
            frames.elements(inputs[0].data - material.a), frames.elements(inputs[1].data - material.b)
        )
        product = Share(material.c + d * material.b + e * material.a, session.first)
        return product.add_public(d * e)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]

    def cost(self) -> Cost:
        return Cost(1, 64 * (math.prod(self.left) + math.prod(self.right)))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SoftmaxMaterial:
    tournament: TournamentMaterial
    exp: ExpMaterial
    reciprocal: ReciprocalMaterial
    product: TripleMaterial


@dataclass(frozen=True, slots=True)
class Softmax(Gate[SoftmaxMaterial]):
    """Softmax of x = z / 2^shift over the last dimension, x at scale 2^input_bits; the result has PROBABILITY_BITS.

    For |z| < 2^62, |x| < 2^(bits - 1) - 1 units, and bits - input_bits >= 4. Within 2^-13 of the real one for C <= 256;
    beyond, the roundings of C exponentials add up to some sqrt(C) * 2^-18.

    Cost: 9 rounds for 2 to 32 classes, 4 more for every further level of the tournament: its bits, then those of
    `Exp` per element, of `Reciprocal` per row, and of `Multiply`.

    1. 4 rounds: the largest value, and all values truncated (`Tournament`).
    2. 3 rounds: e_j = exp(x_j - largest) (`Exp`).
    3. 1 round: the reciprocal of sum_j e_j (`Reciprocal`).
    4. 1 round: e_j times the reciprocal (`Multiply`).
    """

    shape: Shape
    shift: int
    input_bits: int
    bits: int

    @property
    def _tournament(self) -> Tournament:
        return Tournament(self.shape, self.shift, self.bits, with_value=True, with_index=False)

    @property
    def _exp(self) -> Exp:
        return Exp(self.shape, self.input_bits, self.bits)

    @property
    def _reciprocal(self) -> Reciprocal:
        return Reciprocal((*self.shape[:-1], 1), self.shape[-1])

    @property
    def _product(self) -> Multiply:
        return Multiply(self.shape, (*self.shape[:-1], 1))

    def material(self, source: Source, *inputs: object) -> SoftmaxMaterial:
        return SoftmaxMaterial(
            self._tournament.material(source),
            self._exp.material(source),
            self._reciprocal.material(source),
            self._product.material(source),
        )

    async def run(self, session: Session, material: SoftmaxMaterial, *inputs: Share) -> Share:
        winner = await self._tournament.run(session, material.tournament, inputs[0])
        if winner.largest is None:
            raise LocalError("a softmax needs the largest value")
        exponents = Share(winner.values - winner.largest[..., None], session.first)
        e = await self._exp.run(session, material.exp, exponents)
        inverse = await self._reciprocal.run(session, material.reciprocal, e.map(lambda x: x.sum(-1, keepdim=True)))
        return await self._product.run(session, material.product, e, inverse)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        x = inputs[0] >> self.shift
        e = self._exp.plain(weights, x - x.amax(-1, keepdim=True))
        return e * self._reciprocal.plain(weights, e.sum(-1, keepdim=True))

    def cost(self) -> Cost:
        parts = (self._tournament, self._exp, self._reciprocal, self._product)
        return reduce(Cost.then, (part.cost() for part in parts))
