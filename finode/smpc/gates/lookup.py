"""A univariate function in one round: a table of its local expansions, read at an opened place.

The nodes of the table lie 2^s units of the input apart. From the opening c of x + r (truncate.py: k and r', so x may be
taken with its last digits dropped) the distance from the table's start splits into two parts, both public minus known
to the dealer,

    node index = (k >> s) - (r' >> s) mod 2^t            remainder d = (k mod 2^s) - (r' mod 2^s)

A borrow moves the index to the next node and makes d negative; the two still fit together, so |d| < 2^s and the table
has one node beyond the largest input. Expand around the node, f(node + d) = T + T' d + T'' d^2 / 2. With kappa = k mod
2^s public and rho = r' mod 2^s known to the dealer, that is a polynomial in kappa:

    U + V kappa + W kappa^2      U = T - T' rho + T'' rho^2 / 2,   V = T' - T'' rho,   W = T'' / 2

The dealer shares U, V and W for every place of the rotated table; the value is local after the opening. All of it is
in integers, so the only errors are the rounding of the three tables and the third-order term |f'''| h^3 / 6 at nodes h
apart: three times 2^8 nodes do for exp what straight lines need twice 2^11 nodes for.

Source: one-time truth tables [Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky 2013]; interpolation inside
of the table as in SIRNN's and Pika's lookups, here to second order and with the interpolation folded into the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from finode.smpc import ring
from finode.smpc.gates.truncate import MaskMaterial
from finode.smpc.material import Shape, Source


@dataclass(frozen=True, slots=True)
class Expansion:
    """A function on real tensors (float64) with half its second derivative: `(f, f', f'' / 2)` at the nodes."""

    name: str
    at: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _exp(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = x.exp()
    return y, y, y / 2


def _reciprocal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = 1 / x
    return y, -(y**2), y**3


EXP = Expansion("exp", _exp)
RECIPROCAL = Expansion("reciprocal", _reciprocal)


@dataclass(frozen=True, slots=True)
class Table:
    """2^index_bits nodes from `start` on, 2^-step_bits apart. The input has `input_bits` after the point, the value
    `output_bits`.

    Online it costs nothing beyond the opening of the input; 3 * 8 * 2^index_bits bytes of correction per element.
    """

    function: Expansion
    start: float
    step_bits: int
    index_bits: int
    input_bits: int
    output_bits: int

    @property
    def _shift(self) -> int:
        return self.input_bits - self.step_bits

    @property
    def start_units(self) -> int:
        """The start at the input's scale."""
        return round(self.start * 2.0**self.input_bits)

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return ring.digit(x, self._shift, self.index_bits), ring.digit(x, 0, self._shift)

    def material(self, source: Source, shape: Shape, mask: MaskMaterial) -> Tensor:
        """Take the rotated tables of U, V and W for inputs of `shape`: (3, *shape, 2^index_bits)."""
        nodes = 1 << self.index_bits

        def rotated() -> Tensor:
            start, rho = self._places(mask.high)
            order = (torch.arange(nodes, device=start.device) - start[..., None]) & (nodes - 1)
            value, slope, curve = (part[order] for part in _nodes(self, order.device))
            rho = rho[..., None]
            return torch.stack((value - slope * rho + curve * rho * rho, slope - 2 * curve * rho, curve))

        return source.dealt((3, *shape, nodes), rotated)

    def read(self, k: Tensor, tables: Tensor) -> Tensor:
        """Return the share of the function's value from the public k. Local."""
        index, kappa = self._places(k - self.start_units)
        u, v, w = tables.gather(-1, index[..., None].expand(*tables.shape[:-1], 1))[..., 0]
        result: Tensor = u + v * kappa + w * (kappa * kappa)
        return result

    def plain(self, x: Tensor) -> Tensor:
        """Return the value for public inputs inside of the table."""
        index, d = self._places(x - self.start_units)
        value, slope, curve = (part[index] for part in _nodes(self, index.device))
        return value + slope * d + curve * (d * d)


@cache
def _nodes(table: Table, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return T, T' and T'' / 2 as integers, so scaled that each product with a power of d has the output's scale.

    They are made on the processor wherever they are used: a GPU rounds exp otherwise, and all must hold the same table.
    """
    nodes = table.start + torch.arange(1 << table.index_bits, dtype=torch.float64) / 2**table.step_bits
    value, slope, curve = table.function.at(nodes)
    scales = [table.output_bits - order * table.input_bits for order in range(3)]
    parts = [(part * 2.0**scale).round().long() for part, scale in zip((value, slope, curve), scales, strict=True)]
    return parts[0].to(device), parts[1].to(device), parts[2].to(device)
