"""Signs of masked values: a comparison in one round after the masked value is open.

Someone has opened k = x + r', where only the dealer knows r' (truncate.py; the difference of two such openings will
do as well). The sign of x is bit L of k - r', as long as |x| < 2^L. Cut the low L bits of k and of r' into digits,
lowest first, at most six bits each. The bit of the borrow is

    [k < r'] = lt_3 xor eq_3 * (lt_2 xor eq_2 * (lt_1 xor eq_1 * lt_0))       lt_j = [k_j < r_j], eq_j = [k_j = r_j]

For every digit the dealer XOR-shares one machine word whose bit i is [i <= r_j] (a thermometer). Then lt_j is bit
k_j + 1 of it, or 0 where there is none, and eq_j the xor of lt_j and bit k_j: both *local*, by one shift. The products
are `Conjunctions`, one round for all.

Source: digit decomposition as in Rabbit [Makri, Rotaru, Vercauteren, Wagh 2021] and one-hot lookup by a public index
as in one-time truth tables [Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky 2013], here with a dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from finode.smpc import ring
from finode.smpc.material import Shape, Source, Value, width_for
from finode.smpc.session import Cost

MAX_DIGIT_BITS = 6
"""2^6 thermometer bits are one machine word."""


@dataclass(frozen=True, slots=True)
class Literal:
    """The bit `index` of a conjunction's inputs, or its complement."""

    index: int
    negated: bool = False


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ConjunctionMaterial:
    """XOR shares of the inputs' masks mu, and of the products of masks that the terms need."""

    masks: Tensor
    products: Tensor


class Conjunctions:
    """Conjunctions of XOR-shared bits, all in one round.

    Cost: 1 round; 1 bit per input.

    1. Open m_i = b_i xor mu_i for every input; the dealer shares mu_i and the products of mu over each subset, of two
       and more, of each term's literals.
    2. A term is the product over its literals of (m_i xor mu_i): expand it and sum, local. A complemented literal
       takes the complement of m_i.
    """

    def __init__(self, inputs: int, terms: Sequence[Sequence[Literal]]) -> None:
        self.inputs = inputs
        self.terms = terms
        subsets = {
            frozenset(literal.index for literal in chosen)
            for term in terms
            for size in range(2, len(term) + 1)
            for chosen in combinations(term, size)
        }
        self._products = sorted(subsets, key=lambda subset: (len(subset), sorted(subset)))
        rows = {frozenset[int](): 0} | {frozenset((i,)): 1 + i for i in range(inputs)}
        rows |= {subset: 1 + inputs + i for i, subset in enumerate(self._products)}
        self._rows = [
            torch.tensor(
                [
                    rows[frozenset(literal.index for bit, literal in enumerate(term) if chosen >> bit & 1)]
                    for chosen in range(1 << len(term))
                ]
            )
            for term in terms
        ]
        self._rows_on: dict[torch.device, list[Tensor]] = {}

    def material(self, source: Source, shape: Shape) -> ConjunctionMaterial:
        """Take masks for bits of `shape`; of the products, `len(products)` bits of correction each."""
        masks = source.bits((self.inputs, *shape))

        def products() -> Tensor:
            known = {frozenset((i,)): masks[i] for i in range(self.inputs)}
            for subset in self._products:
                largest = max(subset)
                known[subset] = known[subset - {largest}] & masks[largest]
            return torch.stack([known[subset] for subset in self._products]) if self._products else masks[:0]

        return ConjunctionMaterial(masks, source.dealt_bits((len(self._products), *shape), products))

    def evaluate(self, opened: Tensor, material: ConjunctionMaterial, first: bool) -> list[Tensor]:
        """Return the XOR share of each term from the opened m (inputs first). Local."""
        # Eight bits of a row are one byte here: 2^|term| rows of a term are read, and folded.
        inputs = _packed(opened)
        ones = _packed(torch.ones_like(opened[:1]))
        stack = torch.cat((ones if first else ones ^ ones, _packed(material.masks), _packed(material.products)))
        results = []
        for term, rows in zip(self.terms, self._rows_at(stack.device), strict=True):
            # Row s holds the share of the product of mu over the literals in s. Each literal in turn, from the last,
            # folds the rows with it onto those without: (m xor mu) * rest = m * rest xor (mu * rest).
            folded = stack[rows]
            for literal in reversed(term):
                half = len(folded) // 2
                public = inputs[literal.index]
                folded = (folded[:half] & (public ^ ones[0] if literal.negated else public)) ^ folded[half:]
            results.append(_unpacked(folded[0], opened[0]))
        return results

    def _rows_at(self, device: torch.device) -> list[Tensor]:
        if device not in self._rows_on:
            self._rows_on[device] = [rows.to(device) for rows in self._rows]
        return self._rows_on[device]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SignMaterial:
    """XOR shares of the digits' words, of bit L of r', and what the products need."""

    thermometers: list[Tensor]
    top: Tensor
    conjunctions: ConjunctionMaterial


class Sign:
    """The sign (1 where negative) of x = k - r' for public k and dealt r', |x| < 2^bits.

    Cost: with D = ceil(bits / 6) digits: 1 round and 2 (D - 1) bits per value; for D = 1, nothing.

    1. Local: eq_j and lt_j of every digit (module docstring).
    2. Open them under masks, but for the top lt, which enters linearly (`Conjunctions`).
    3. sign = k_L xor r'_L xor lt_D-1 xor eq_D-1 * lt_D-2 xor eq_D-1 * eq_D-2 * lt_D-3 xor ...
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        digits = -(-bits // MAX_DIGIT_BITS)
        short, longer = divmod(bits, digits)
        self.widths = [short + 1] * longer + [short] * (digits - longer)
        self.positions = [sum(self.widths[:j]) for j in range(digits)]
        # Inputs: eq of the digits from the top down to 1, then lt from the one below the top down to 0.
        chain = digits - 1
        self._conjunctions = Conjunctions(
            2 * chain, [[*(Literal(i) for i in range(t + 1)), Literal(chain + t)] for t in range(chain)]
        )

    @property
    def opened_bits(self) -> int:
        """Bits per value that are opened."""
        return self._conjunctions.inputs

    def cost(self, count: int) -> Cost:
        """Return the cost of `count` comparisons."""
        return Cost(1 if self.opened_bits else 0, self.opened_bits * count)

    def material(self, source: Source, shape: Shape, mask: Value) -> SignMaterial:
        """Take what values of `shape` need, masked by r' = `mask` (called at the dealer alone)."""
        r = cache(mask)

        def thermometer(position: int, width: int) -> Tensor:
            return (2 << ring.digit(r(), position, width)) - 1  # all ones for 63: 2^64 wraps to zero

        return SignMaterial(
            [
                source.dealt_words(shape, lambda p=p, w=w: thermometer(p, w), width_for(1 << w))  # type: ignore[misc]
                for p, w in zip(self.positions, self.widths, strict=True)
            ],
            source.dealt_bits(shape, lambda: ring.digit(r(), self.bits, 1).to(torch.uint8)),
            self._conjunctions.material(source, shape),
        )

    def masked_bits(self, k: Tensor, material: SignMaterial, first: bool) -> tuple[Tensor, Tensor]:
        """Return step 1: the bits to open, under their masks, and the share of what is linear in the sign."""
        less, equal = [], []
        for position, width, word in zip(self.positions, self.widths, material.thermometers, strict=True):
            index = ring.digit(k, position, width)
            bits = (word >> index.to(word.dtype)).to(torch.uint8)  # narrow at once: most of the time goes into words
            # Past the end of a word the shift gives copies of its top bit.
            less.append((bits >> 1) & (index < (1 << width) - 1))
            if position:
                equal.append((bits & 1) ^ less[-1])
        linear = less[-1] ^ material.top
        if first:
            linear = linear ^ ring.digit(k, self.bits, 1).to(torch.uint8)
        if not equal:
            return torch.empty((0, *k.shape), dtype=torch.uint8, device=k.device), linear
        return torch.stack([*reversed(equal), *reversed(less[:-1])]) ^ material.conjunctions.masks, linear

    def sign(self, opened: Tensor, linear: Tensor, material: SignMaterial, first: bool) -> Tensor:
        """Return step 3: the XOR share of the sign."""
        sign = linear
        for term in self._conjunctions.evaluate(opened, material.conjunctions, first) if len(opened) else ():
            sign = sign ^ term
        return sign


@cache
def sign_of(bits: int) -> Sign:
    """Return the comparison of values |x| < 2^bits; its tables of terms are made once."""
    return Sign(bits)


def _packed(rows: Tensor) -> Tensor:
    """Return rows of bits with eight bits to a byte; those of another device than the processor as they are."""
    if not rows.is_cpu:
        return rows
    return torch.from_numpy(np.packbits(rows.flatten(1).numpy(), axis=1, bitorder="little"))


def _unpacked(row: Tensor, like: Tensor) -> Tensor:
    """Return the bits of a row of `_packed`, in the shape of `like`."""
    if not row.is_cpu:
        return row
    return torch.from_numpy(np.unpackbits(row.numpy(), count=like.numel(), bitorder="little")).view(like.shape)
