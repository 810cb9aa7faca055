"""The largest of C values, its index, or its one-hot vector. Ties of the truncated values go to the lowest index.

Up to 32 values are compared pairwise from one opening; more are cut into blocks of at most 32, whose winners meet in
a block of their own, and so on. What a winner brings along (the index it had) is its *payload*.

The losses of every candidate are summed locally and opened under a mask in a ring of just over C elements: exactly one
candidate has none, and the dealer has shared, for every candidate, what selecting it amounts to, as a table to be read
at the opened place.

Source: selection by a table rotated by the dealer's mask as in one-time truth tables [Ishai, Kushilevitz, Meldgaard,
Orlandi, Paskin-Cherniavsky 2013]; the counting of losses replaces the tree of conjunctions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from finode.errors import LocalError
from finode.smpc import frames, ring
from finode.smpc.gates.base import Gate
from finode.smpc.gates.compare import SignMaterial, sign_of
from finode.smpc.gates.truncate import MaskMaterial, Opened, mask_material, masked, unmask
from finode.smpc.material import Shape, Source, width_for
from finode.smpc.ring_products import matmul
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights

MAX_BLOCK = 32
"""Candidates that are compared pairwise: 32 make 496 comparisons; the tables grow with the square as well."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BlockMaterial:
    """The masks of the values, what compares them, and what selects one of them.

    `beta` masks the signs as XOR (`bit`) and additively mod 2^8; `rho` masks the losses. The tables have one row per
    candidate and one entry per residue: where rho is that residue 1, r', r63 and the payload's mask, elsewhere 0.
    """

    mask: MaskMaterial
    sign: SignMaterial
    bit: Tensor
    beta: Tensor
    rho: Tensor
    one_hot: Tensor
    high: Tensor | None
    top: Tensor | None
    payload_mask: Tensor | None
    payload: Tensor | None


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BlockWinner:
    """Shares: the truncated values (..., n), the one-hot vector of the largest (..., n), and, as far as asked for, the
    largest value (...) and its payload (...)."""

    values: Tensor
    one_hot: Tensor
    largest: Tensor | None
    payload: Tensor | None


@dataclass(frozen=True, slots=True)
class Block:
    """The largest of n <= 32 values in the last dimension of z / 2^shift.

    For |z| < 2^62 and |z / 2^shift| < 2^(bits - 1) - 1. P = n (n - 1) / 2, m = ceil(log2 n), D = ceil(bits / 6).

    Cost: 4 rounds; per block 64 n + (2 (D - 1) + 1) P + m n bits, and 64 n more with a payload.
    The second round falls away for D = 1.

    1. Open c = z + r + 2^62: x, k and wrap are local (truncate.py); and the payload under a mask.
    2. For every pair u < v: k_u - k_v is masked by r'_u - r'_v. Open the masked digit bits of the signs (compare.py).
    3. Open sign xor beta: with the dealer's [beta] mod 2^m, u's and v's losses are linear. Sum them per candidate.
    4. Open loss + rho mod 2^m. The candidate without a loss is the one with rho at the opened place: read the tables
       there. T gives the one-hot vector w; with k, wrap and the tables of r' and r63, the largest value is
       sum_j (k_j * w_j - r'_j * w_j + wrap_j * r63_j * w_j); the payload likewise.
    """

    shape: Shape
    shift: int
    bits: int
    with_value: bool
    with_payload: bool

    @property
    def count(self) -> int:
        return self.shape[-1]

    @property
    def residue_bits(self) -> int:
        return (self.count - 1).bit_length()

    def material(self, source: Source) -> BlockMaterial:
        shape, size = self.shape, 1 << self.residue_bits
        mask = mask_material(source, shape, self.shift)
        first, second, _ = _pairs(self.count, mask.r.device)
        pairs = (*shape[:-1], len(first))
        bit = source.bits(pairs)
        rho = source.uniform(shape, 8)
        payload_mask = source.uniform(shape) if self.with_payload else None

        def table(entry: Tensor | int) -> Tensor:
            chosen = ring.digit(rho, 0, self.residue_bits)[..., None] == torch.arange(size, device=rho.device)
            return chosen.long() * (entry if isinstance(entry, int) else entry[..., None])

        tables = (*shape, size)
        valued = self.with_value
        return BlockMaterial(
            mask=mask,
            sign=sign_of(self.bits).material(source, pairs, lambda: mask.high[..., first] - mask.high[..., second]),
            bit=bit,
            beta=source.dealt(pairs, lambda: bit.long(), 8),
            rho=rho,
            one_hot=source.dealt(tables, lambda: table(1)),
            high=source.dealt(tables, lambda: table(mask.high)) if valued else None,
            top=source.dealt(tables, lambda: table(mask.top), width_for(self.shift)) if valued and self.shift else None,
            payload_mask=payload_mask,
            payload=None if payload_mask is None else source.dealt(tables, lambda: table(payload_mask)),
        )

    async def run(self, session: Session, material: BlockMaterial, z: Share, payload: Tensor | None) -> BlockWinner:
        comparison, first = sign_of(self.bits), session.first
        earlier, later, losses = _pairs(self.count, z.data.device)

        openings = [frames.elements(masked(z, material.mask))]
        if payload is not None and material.payload_mask is not None:
            openings.append(frames.elements(payload - material.payload_mask))
        c, *payloads = await session.open_together(*openings)
        value = unmask(c, material.mask, first)

        compared = value.k[..., earlier] - value.k[..., later]
        digits, linear = comparison.masked_bits(compared, material.sign, first)
        digits = await session.open_bits(digits) if len(digits) else digits
        signs = comparison.sign(digits, linear, material.sign, first)

        flags = (await session.open_bits(signs ^ material.bit)).long()
        lost = material.beta * (1 - 2 * flags) + (flags if first else 0)
        loss = matmul(lost, losses)
        if first:  # the later one of a pair loses where the sign is 0: one loss for each earlier candidate
            loss = loss + torch.arange(self.count, device=loss.device)

        place = (await session.open_together(frames.residues(loss + material.rho, self.residue_bits)))[0]
        one_hot = _read(material.one_hot, place)
        return BlockWinner(
            value.x,
            one_hot,
            self._largest(value, one_hot, place, material),
            self._payload(payloads, one_hot, place, material),
        )

    def _largest(self, value: Opened, one_hot: Tensor, place: Tensor, material: BlockMaterial) -> Tensor | None:
        if material.high is None:
            return None
        chosen = value.k * one_hot - _read(material.high, place)
        if value.wrap is not None and material.top is not None:
            chosen += value.wrap * _read(material.top, place)
        return chosen.sum(-1)

    def _payload(self, opened: list[Tensor], one_hot: Tensor, place: Tensor, material: BlockMaterial) -> Tensor | None:
        if material.payload is None:
            return None
        return (opened[0] * one_hot + _read(material.payload, place)).sum(-1)

    def cost(self) -> Cost:
        count = math.prod(self.shape)
        comparisons = math.prod(self.shape[:-1]) * self.count * (self.count - 1) // 2
        cost = Cost(1, 64 * count * (2 if self.with_payload else 1)).then(sign_of(self.bits).cost(comparisons))
        return cost.then(Cost(1, comparisons)).then(Cost(1, self.residue_bits * count))


def _read(table: Tensor, place: Tensor) -> Tensor:
    return table.gather(-1, place[..., None])[..., 0]


@cache
def _pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs u < v as two index tensors, and the matrix by which a sign counts as u's loss, not v's."""
    first, second = torch.triu_indices(count, count, 1)  # on the processor: made once, whatever the device
    losses = torch.zeros((len(first), count), dtype=torch.int64)
    losses[torch.arange(len(first)), first] = 1
    losses[torch.arange(len(first)), second] = -1
    return first.to(device), second.to(device), losses.to(device)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class TournamentMaterial:
    """The material of every block, or, for a tournament of one, of its truncation."""

    single: MaskMaterial | None
    blocks: list[BlockMaterial]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Winner:
    """Shares: all values truncated (..., C), and as far as asked for, the largest and its index (...); its one-hot
    vector (..., C), None for C > 32."""

    values: Tensor
    largest: Tensor | None
    index: Tensor | None
    one_hot: Tensor | None


@dataclass(frozen=True, slots=True)
class Tournament:
    """The largest of C values in the last dimension of z / 2^shift, by blocks of at most 32.

    Cost: that of its `Block`s, one after the other: 4 rounds for C <= 32, 8 for C <= 1024 (3 and 6 where D = 1), and
    1 round for C = 1 if there is anything to truncate.
    """

    shape: Shape
    shift: int
    bits: int
    with_value: bool
    with_index: bool

    @property
    def blocks(self) -> list[Block]:
        """The blocks of every level: (..., blocks, n), the last level with one block."""
        levels: list[Block] = []
        count, shift = self.shape[-1], self.shift
        while count > 1:
            number = -(-count // MAX_BLOCK)
            shape = (*self.shape[:-1], number, -(-count // number))
            levels.append(
                Block(shape, shift, self.bits, self.with_value or number > 1, self.with_index and bool(levels))
            )
            count, shift = number, 0
        return levels

    def material(self, source: Source) -> TournamentMaterial:
        single = mask_material(source, self.shape, self.shift) if self.shape[-1] == 1 and self.shift else None
        return TournamentMaterial(single, [block.material(source) for block in self.blocks])

    async def run(self, session: Session, material: TournamentMaterial, z: Share) -> Winner:
        if self.shape[-1] == 1:
            return await self._single(session, material, z)
        first, count = session.first, self.shape[-1]
        entrants, results = z.data, list[BlockWinner]()
        index: Tensor | None = None
        for block, taken in zip(self.blocks, material.blocks, strict=True):
            # Blocks are filled up with a public value that loses against all others.
            lowest = -(1 << (self.bits - 1 + block.shift)) if first else 0
            payload = None if index is None else _cut(index, block.shape, 0)
            winner = await block.run(session, taken, Share(_cut(entrants, block.shape, lowest), first), payload)
            results.append(winner)
            if winner.payload is not None:
                index = winner.payload
            elif self.with_index:
                places = torch.arange(math.prod(block.shape[-2:]), device=z.data.device).view(block.shape[-2:])
                index = (winner.one_hot * places[0]).sum(-1)
                if first:
                    index = index + places[:, 0]
            if winner.largest is not None:
                entrants = winner.largest
        last = results[-1]
        return Winner(
            results[0].values.flatten(-2)[..., :count],
            None if last.largest is None else last.largest[..., 0],
            None if index is None else index[..., 0],
            last.one_hot[..., 0, :] if len(results) == 1 else None,
        )

    async def _single(self, session: Session, material: TournamentMaterial, z: Share) -> Winner:
        x = z.data
        if material.single is not None:
            x = unmask(await session.open(masked(z, material.single)), material.single, session.first).x
        one_hot = torch.full_like(x, 1 if session.first else 0)
        return Winner(x, x[..., 0], torch.zeros_like(x[..., 0]), one_hot)

    def cost(self) -> Cost:
        if self.shape[-1] == 1:
            return Cost(1, 64 * math.prod(self.shape)) if self.shift else Cost(0, 0)
        cost = Cost(0, 0)
        for block in self.blocks:
            cost = cost.then(block.cost())
        return cost


def _cut(x: Tensor, shape: Shape, fill: int) -> Tensor:
    """Cut the last dimension into (blocks, n) as in `shape`, filled up with `fill`."""
    return pad(x, (0, math.prod(shape[-2:]) - x.shape[-1]), value=fill).reshape(shape)


class Winners(StrEnum):
    """What `ArgMax` gives: the index (...), index and value (..., 2), or the one-hot vector (..., C)."""

    INDEX = "index"
    TOP = "top"
    ONE_HOT = "one_hot"


@dataclass(frozen=True, slots=True)
class ArgMax(Gate[TournamentMaterial]):
    """Which of the C values in the last dimension of z / 2^shift is the largest. A one-hot vector needs C <= 32.

    For |z| < 2^62 and |z / 2^shift| < 2^(bits - 1) - 1.

    Cost: that of the `Tournament`.
    """

    shape: Shape
    shift: int
    bits: int
    gives: Winners

    @property
    def _tournament(self) -> Tournament:
        return Tournament(
            self.shape,
            self.shift,
            self.bits,
            with_value=self.gives is Winners.TOP,
            with_index=self.gives is not Winners.ONE_HOT,
        )

    def material(self, source: Source, *inputs: object) -> TournamentMaterial:
        return self._tournament.material(source)

    async def run(self, session: Session, material: TournamentMaterial, *inputs: Share) -> Share:
        winner = await self._tournament.run(session, material, inputs[0])
        if self.gives is Winners.ONE_HOT:
            data = winner.one_hot
        elif self.gives is Winners.TOP and winner.index is not None and winner.largest is not None:
            data = torch.stack((winner.index, winner.largest), -1)
        else:
            data = winner.index
        if data is None:
            raise LocalError(f"no one-hot vector of {self.shape[-1]} values comes out of a tournament")
        return Share(data, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        x = inputs[0] >> self.shift
        index = first_largest(x)
        if self.gives is Winners.INDEX:
            return index
        if self.gives is Winners.ONE_HOT:
            return one_hot(index, self.shape[-1])
        return torch.stack((index, x.amax(-1)), -1)

    def cost(self) -> Cost:
        return self._tournament.cost()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OneHotMaterial:
    rho: Tensor
    table: Tensor


@dataclass(frozen=True, slots=True)
class OneHot(Gate[OneHotMaterial]):
    """The one-hot vector (..., C) of an index (...), 0 <= index < C.

    Cost: 1 round; m = ceil(log2 C) bits per index. 8 * 2^m bytes of correction each.

    1. Open index + rho mod 2^m; the dealer shares the one-hot vector of rho.
    2. Entry j is the dealt one at (opened - j) mod 2^m. Local.
    """

    shape: Shape
    classes: int

    @property
    def _width(self) -> int:
        return max(1, (self.classes - 1).bit_length())

    def material(self, source: Source, *inputs: object) -> OneHotMaterial:
        rho = source.uniform(self.shape, 16)
        return OneHotMaterial(
            rho,
            source.dealt(
                (*self.shape, 1 << self._width),
                lambda: one_hot(ring.digit(rho, 0, self._width), 1 << self._width),
            ),
        )

    async def run(self, session: Session, material: OneHotMaterial, *inputs: Share) -> Share:
        hidden = frames.residues(inputs[0].data + material.rho, self._width)
        place = (await session.open_together(hidden))[0]
        entries = ring.digit(place[..., None] - torch.arange(self.classes, device=place.device), 0, self._width)
        return Share(material.table.gather(-1, entries), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return one_hot(inputs[0], self.classes)

    def cost(self) -> Cost:
        return Cost(1, self._width * math.prod(self.shape))


def one_hot(index: Tensor, classes: int) -> Tensor:
    """Return the one-hot vectors of public indices."""
    return (index[..., None] == torch.arange(classes, device=index.device)).long()


def first_largest(x: Tensor) -> Tensor:
    """Return the lowest index of the largest public value in the last dimension."""
    is_largest = x == x.amax(-1, keepdim=True)
    return (is_largest * torch.arange(x.shape[-1], 0, -1, device=x.device)).argmax(-1)
