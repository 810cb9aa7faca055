"""The pieces that weighted votes are made of (voting.py puts them together).

Matrices over models have the shape (K, K), confidences (K, batch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import Local
from finode.smpc.gates.lookup import EXP, Expansion, Table
from finode.smpc.gates.maximum import Tournament, TournamentMaterial
from finode.smpc.gates.softmax import ReciprocalMaterial
from finode.smpc.gates.truncate import mask_material, masked, unmask
from finode.smpc.material import Shape, Source
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights


@dataclass(frozen=True, slots=True)
class Distance(Gate[TournamentMaterial]):
    """x_j - max_i x_i of x = z / 2^shift over the last dimension, for |z| < 2^62 and |x| < 2^(bits - 1) - 1 units.

    Cost: that of the `Tournament`: 4 rounds for 2 to 32 values.

    1. 4 rounds: the largest value, and all values truncated (`Tournament`); their difference is local.
    """

    shape: Shape
    shift: int
    bits: int

    @property
    def _tournament(self) -> Tournament:
        return Tournament(self.shape, self.shift, self.bits, with_value=True, with_index=False)

    def material(self, source: Source, *inputs: object) -> TournamentMaterial:
        return self._tournament.material(source)

    async def run(self, session: Session, material: TournamentMaterial, *inputs: Share) -> Share:
        winner = await self._tournament.run(session, material, inputs[0])
        if winner.largest is None:
            raise LocalError("a distance needs the largest value")
        return Share(winner.values - winner.largest[..., None], session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        x = inputs[0] >> self.shift
        return x - x.amax(-1, keepdim=True)

    def cost(self) -> Cost:
        return self._tournament.cost()


@dataclass(frozen=True, slots=True)
class Lookup(Gate[ReciprocalMaterial]):
    """The value of a table's function for x at scale 2^input_bits inside of the table.

    Cost: 1 round; 64 bits per element.

    1. Open c = x + r + 2^62 without the digits that the table does not look at; then read the table (lookup.py).
    """

    shape: Shape
    input_bits: int
    table: Table

    def material(self, source: Source, *inputs: object) -> ReciprocalMaterial:
        mask = mask_material(source, self.shape, self.input_bits - self.table.input_bits)
        return ReciprocalMaterial(mask, self.table.material(source, self.shape, mask))

    async def run(self, session: Session, material: ReciprocalMaterial, *inputs: Share) -> Share:
        c = await session.open(masked(inputs[0], material.mask))
        return Share(self.table.read(unmask(c, material.mask, session.first).k, material.table), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return self.table.plain(inputs[0] >> (self.input_bits - self.table.input_bits))

    def cost(self) -> Cost:
        return Cost(1, 64 * math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class _ScaledExp:
    factor: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, slope, curve = EXP.at(x)
        return value * self.factor, slope * self.factor, curve * self.factor


def scaled_exp(factor: float) -> Expansion:
    """Return factor * exp(x) as the function of a table; equal factors give equal functions."""
    return Expansion(f"{factor!r} exp", _ScaledExp(factor))


@dataclass(frozen=True, slots=True)
class RowSum(Local):
    """The sum over the last dimension, which stays as 1."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sum(-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Join(Local):
    """The models of all lanes, in the order of the lanes."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs)


@dataclass(frozen=True, slots=True)
class WeightedSum(Local):
    """sum_k weights_k x_k over the models, for public integers."""

    weights: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        factors = torch.tensor(self.weights).to(inputs[0].device).reshape(-1, *[1] * (inputs[0].dim() - 1))
        total: Tensor = (inputs[0] * factors).sum(0)
        return total


@dataclass(frozen=True, slots=True)
class Centre(Local):
    """(K, batch, 1) less the mean over the batch, as (K, batch), times batch * factor, a public integer: exact."""

    factor: int

    def linear(self, *inputs: Tensor) -> Tensor:
        x = inputs[0][..., 0]
        return (x * x.shape[1] - x.sum(1, keepdim=True)) * self.factor


@dataclass(frozen=True, slots=True)
class Swap(Local):
    """A matrix the other way round."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].transpose(-1, -2).contiguous()


@dataclass(frozen=True, slots=True)
class Trace(Local):
    """The sum of a matrix's diagonal times a public integer, (1, 1)."""

    factor: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return (inputs[0].diagonal(dim1=-2, dim2=-1).sum(-1) * self.factor).reshape(1, 1)


@dataclass(frozen=True, slots=True)
class Diagonal(Local):
    """A (K, K) matrix's diagonal as (K, 1, 1)."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].diagonal(dim1=-2, dim2=-1).reshape(-1, 1, 1)


@dataclass(frozen=True, slots=True)
class AddIdentity(Gate[None]):
    """factor * x + value * identity, both public integers. Costs nothing."""

    factor: int
    value: int

    def material(self, source: Source, *inputs: object) -> None:
        return None

    async def run(self, session: Session, material: None, *inputs: Share) -> Share:
        scaled = inputs[0].scale(self.factor)
        return scaled.add_public(self._identity(scaled.data))

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor + self._identity(inputs[0])

    def _identity(self, x: Tensor) -> Tensor:
        return self.value * torch.eye(x.shape[-1], dtype=torch.int64, device=x.device)
