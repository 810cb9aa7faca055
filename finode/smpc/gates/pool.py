"""Max-pool, alone or with the ReLU that comes before or after it, as one gate.

All candidates of a window (and zero, for the ReLU) are compared pairwise from one opening of the tensor; the winner is
a conjunction of its comparisons, and the selection is that of truncate.py. With n candidates a window has n (n - 1) / 2
comparisons (n more with zero), so windows of more than four values are pooled along the rows first and along the
columns then (`stages`), which needs fewer of them and twice the rounds. The throughput profile always does that.

Ties go to the lowest index; zero wins over no positive value. Both leave the maximum unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from finode.smpc import ring
from finode.smpc.gates.base import Gate
from finode.smpc.gates.compare import ConjunctionMaterial, Conjunctions, Literal, SignMaterial, sign_of
from finode.smpc.gates.truncate import (
    MaskMaterial,
    Opened,
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

MAX_CANDIDATES = 4
"""Of one stage. With five, a window would have 15 comparisons, and 31 products for each candidate's conjunction."""


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel, strides, pads (top, left, bottom, right) and dilations of a pooling."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...] = (1, 1)

    def output(self, shape: Shape) -> Shape:
        """Return the shape (..., height, width) after pooling."""
        height, width = (
            (shape[d - 2] + self.pads[d] + self.pads[d + 2] - self.dilations[d] * (self.kernel[d] - 1) - 1)
            // self.strides[d]
            + 1
            for d in (0, 1)
        )
        return (*shape[:-2], height, width)

    def candidates(self, x: Tensor, fill: int = 0) -> Tensor:
        """Return the values of every window, candidates first: (kh * kw, ..., height, width)."""
        view = ring.windows(x, self.kernel, self.strides, self.pads, self.dilations, fill)
        return view.flatten(-2).movedim(-1, 0).contiguous()


def stages(window: Window, profile: str) -> list[Window]:
    """Return the poolings, one after the other, that make up `window`: each of at most `MAX_CANDIDATES` values.

    An axis longer than that is pooled in steps as well. The kernel must be longer than 1 where its stride is.
    """
    (kh, kw), (sh, sw), (top, left, bottom, right) = window.kernel, window.strides, window.pads
    if kh * kw <= MAX_CANDIDATES and (profile == "latency" or 1 in (kh, kw)):
        return [window]
    rows = [Window((1, n), (1, s), (0, p, 0, q), (1, d)) for n, s, p, q, d in _axis(kw, sw, left, right)]
    return rows + [Window((n, 1), (s, 1), (p, 0, q, 0), (d, 1)) for n, s, p, q, d in _axis(kh, sh, top, bottom)]


def _axis(kernel: int, stride: int, before: int, after: int) -> list[tuple[int, int, int, int, int]]:
    """Return (kernel, stride, pad before, pad after, dilation) of the steps along one axis."""
    if kernel == 1:
        return []
    if kernel <= MAX_CANDIDATES:
        return [(kernel, stride, before, after, 1)]
    for part in range(MAX_CANDIDATES, 1, -1):
        # Neither windows nor steps overlap: a step halves, thirds or quarters the axis.
        if kernel % part == 0 and stride % part == 0:
            return [(part, part, before, after, 1), *_axis(kernel // part, stride // part, 0, 0)]
    # Maxima of `covered` neighbours at every position; the next step takes some of them at a distance.
    steps, covered = [(MAX_CANDIDATES, 1, before, after, 1)], MAX_CANDIDATES
    while covered < kernel:
        last = [n for n in (2, 3, 4) if n * covered >= kernel and (kernel - covered) % (n - 1) == 0]
        count = last[0] if last else 2
        distance = (kernel - covered) // (count - 1) if last else covered
        steps.append((count, stride if last else 1, 0, 0, distance))
        covered += distance * (count - 1)
    return steps


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PoolMaterial:
    mask: MaskMaterial
    sign: SignMaterial
    winner: ConjunctionMaterial | None
    selection: SelectionMaterial


@dataclass(frozen=True, slots=True)
class MaxPool(Gate[PoolMaterial]):
    """The largest value of each window of z / 2^shift, and zero if `relu`; n = kh * kw candidates, P comparisons.

    For |z| < 2^62 and |z / 2^shift| < 2^(bits - 1) - 1.

    Cost: 4 rounds; 64 bits per element, and per window (2 (D - 1) + 1) P + n bits, where D = ceil(bits / 6) and
    P = n (n - 1) / 2, + n with ReLU. A 2x2 window with ReLU at bits = 28: 94 bits.
    The third round and P bits fall away when every candidate has one comparison (n = 2, or n = 1 with ReLU); the
    second one for D = 1.

    1. Open c = z + r + 2^62 for every element: x, k and wrap are local (truncate.py). Pads are public candidates:
       zero under ReLU, else -2^(bits - 1).
    2. For every pair (u, v) of a window, u < v: k_u - k_v is masked by r'_u - r'_v. With ReLU, each k_u as well. Open
       the masked digit bits of the signs (compare.py).
    3. Candidate j wins when no sign says that an earlier one is as large, or a later one larger, or (ReLU) that it is
       negative: open the masked signs, which gives these conjunctions (`Conjunctions`).
    4. Open winner xor beta per candidate; then sum_j x_j * winner_j is local.
    """

    shape: Shape
    window: Window
    shift: int
    bits: int
    relu: bool

    @property
    def _count(self) -> int:
        return math.prod(self.window.kernel)

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return [(u, v) for u in range(self._count) for v in range(u + 1, self._count)]

    @property
    def _fill(self) -> int:
        return 0 if self.relu else -(1 << (self.bits - 1))

    @property
    def _winners(self) -> Conjunctions:
        return winners(self._count, self.relu)

    @property
    def _needs_winners(self) -> bool:
        return any(len(term) > 1 for term in self._winners.terms)

    def _compared(self, candidates: Tensor) -> Tensor:
        differences = [candidates[u] - candidates[v] for u, v in self._pairs]
        return torch.stack([*differences, *candidates] if self.relu else differences)

    def material(self, source: Source, *inputs: object) -> PoolMaterial:
        mask = mask_material(source, self.shape, self.shift)
        output = self.window.output(self.shape)
        pairs = (self._winners.inputs, *output)
        return PoolMaterial(
            mask,
            sign_of(self.bits).material(source, pairs, lambda: self._compared(self.window.candidates(mask.high))),
            self._winners.material(source, output) if self._needs_winners else None,
            selection_material(
                source,
                (self._count, *output),
                lambda: self.window.candidates(mask.high),
                lambda: self.window.candidates(mask.top),
                self.shift,
            ),
        )

    async def run(self, session: Session, material: PoolMaterial, *inputs: Share) -> Share:
        comparison, first = sign_of(self.bits), session.first
        opened = unmask(await session.open(masked(inputs[0], material.mask)), material.mask, first)
        value = Opened(
            self.window.candidates(opened.x, self._fill if first else 0),
            self.window.candidates(opened.k, self._fill),
            None if opened.wrap is None else self.window.candidates(opened.wrap),
        )

        digits, linear = comparison.masked_bits(self._compared(value.k), material.sign, first)
        digits = await session.open_bits(digits) if len(digits) else digits
        signs = comparison.sign(digits, linear, material.sign, first)

        if material.winner is not None:
            opened_signs = await session.open_bits(signs ^ material.winner.masks)
            winner = torch.stack(self._winners.evaluate(opened_signs, material.winner, first))
        else:
            literals = [term[0] for term in self._winners.terms]
            flips = [1 if first and literal.negated else 0 for literal in literals]
            winner = torch.stack([signs[literal.index] ^ flip for literal, flip in zip(literals, flips, strict=True)])

        flags = await session.open_bits(winner ^ material.selection.bit)
        return Share(select(flags, value, material.selection).sum(0), first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        largest = self.window.candidates(inputs[0] >> self.shift, self._fill).amax(0)
        return largest.clamp(min=0) if self.relu else largest

    def cost(self) -> Cost:
        windows = math.prod(self.window.output(self.shape))
        comparisons = self._winners.inputs * windows
        cost = Cost(1, 64 * math.prod(self.shape)).then(sign_of(self.bits).cost(comparisons))
        if self._needs_winners:
            cost = cost.then(Cost(1, comparisons))
        return cost.then(Cost(1, self._count * windows))


@cache
def winners(count: int, relu: bool) -> Conjunctions:
    """Return who wins among `count` candidates: inputs are the signs of all pairs, then (ReLU) of all candidates."""
    pairs = [(u, v) for u in range(count) for v in range(u + 1, count)]
    terms = []
    for j in range(count):
        term = [Literal(p, negated=u == j) for p, (u, v) in enumerate(pairs) if j in (u, v)]
        terms.append([*term, Literal(len(pairs) + j, negated=True)] if relu else term)
    return Conjunctions(len(pairs) + (count if relu else 0), terms)
