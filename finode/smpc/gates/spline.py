"""Smooth functions of large tensors: GELU, sigmoid, tanh, erf, exp by a cubic spline with a small one-hot table.

`lookup.Table` deals three rotated tables of 8 bytes a node: right for a few rows, too heavy for a layer. Here the
dealer shares one table alone, the one-hot vector of its mask's node, and the coefficients are public:

    nodes h = 2^-step_bits apart, x = node_i + d, |d| < h:         f(x) = a_i0 + a_i1 d + a_i2 d^2 + a_i3 d^3

From the opening k = x + r' (truncate.py) index and distance are public minus known to the dealer, as in lookup.py:

    i = (k >> s) - (r' >> s) mod 2^t         d = kappa - rho,   kappa = k mod 2^s,   rho = r' mod 2^s

So [a_ij] is a public linear combination of the shared one-hot vector: local. Write the cubic by powers of rho:

    f = sum_m rho^m B_m      B_m = (-1)^m sum_(j >= m) binomial(j, m) a_ij kappa^(j - m)

The [B_m] are local; rho^m is known to the dealer, so each product needs B_m - b_m open under a mask b_m, and of the
dealer [rho^m] and [sum_m rho^m b_m]. Outside of the table two straight pieces take over, by two comparisons out of the
opening of x, whose signs are on their way while the cubic is.

Coefficients interpolate f at Chebyshev points of (node - h, node + h): |error| <= max |f''''| h^4 / 192, and the
rounding of the coefficients is below 2^-15.

Source: one-hot tables at an opened place [Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky 2013]; splines on
shares as in [Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar, Rathee 2021], here for any number of parties and with a
dealer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cache

import torch
from torch import Tensor

from finode.smpc import frames, ring
from finode.smpc.gates.base import Gate
from finode.smpc.gates.compare import SignMaterial, sign_of
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
from finode.smpc.material import Shape, Source, width_for
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights

DEGREE = 3
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")


@dataclass(frozen=True, slots=True)
class Curve:
    """A smooth function on [start, end) with 2^index_bits nodes; `left` below and `right` (or x, if `follows`) beyond.

    `input_bits` are the digits after the point that the cubic looks at, `output_bits` those of its value, before it is
    truncated: what keeps the cubic's coefficient exact enough and the value below 2^61.
    """

    name: str
    at: Callable[[Decimal], Decimal]
    start: float
    step_bits: int
    index_bits: int
    left: float
    right: float
    follows: bool = False
    input_bits: int = 16
    output_bits: int = 57

    @property
    def end(self) -> float:
        """One node before the last: a borrow moves the index to the next one."""
        return self.start + ((1 << self.index_bits) - 1) * 2.0**-self.step_bits


def _sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def _tanh(x: Decimal) -> Decimal:
    return 2 * _sigmoid(2 * x) - 1


def _erf(x: Decimal) -> Decimal:
    """2 / sqrt(pi) times the series of sum (-1)^n x^(2n+1) / (n! (2n+1)); its terms grow to 10^8 at 4, of 60 digits."""
    term = total = x
    n = 0
    while abs(term) > Decimal("1e-40"):
        n += 1
        term = -term * x * x / n
        total += term / (2 * n + 1)
    return 2 * total / _PI.sqrt()


def _gelu(x: Decimal) -> Decimal:
    return x * (1 + _erf(x / Decimal(2).sqrt())) / 2


def _gelu_tanh(x: Decimal) -> Decimal:
    return x * (1 + _tanh((2 / _PI).sqrt() * (x + Decimal("0.044715") * x**3))) / 2


SIGMOID = Curve("sigmoid", _sigmoid, -15.75, 1, 6, 0.0, 1.0, input_bits=15, output_bits=58)
TANH = Curve("tanh", _tanh, -7.875, 2, 6, -1.0, 1.0)
ERF = Curve("erf", _erf, -3.875, 2, 5, -1.0, 1.0)
GELU = Curve("gelu", _gelu, -3.875, 2, 5, 0.0, 0.0, follows=True, output_bits=56)
GELU_TANH = Curve("gelu_tanh", _gelu_tanh, -3.875, 2, 5, 0.0, 0.0, follows=True, output_bits=56)
EXP = Curve("exp", Decimal.exp, -8.0, 2, 6, 0.0, 2.0**11, input_bits=14, output_bits=49)
"""Below 2^11 everywhere: what is larger would leave the engine's range, and an import says so."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SplineMaterial:
    """Masks of x and of the cubic's value, the signs of x against the ends, the one-hot vector of r' >> s, what the
    products with powers of rho need, and what selects the value (and x) by either sign."""

    mask: MaskMaterial
    sign: SignMaterial
    one_hot: Tensor
    powers: Tensor
    masks: Tensor
    product: Tensor
    value: MaskMaterial
    selection: SelectionMaterial
    following: tuple[Tensor, Tensor | None] | None
    """Products of r' and r63 of x with the bit that masks the second sign."""


@dataclass(frozen=True, slots=True)
class Spline(Gate[SplineMaterial]):
    """curve(z / 2^shift) at scale 2^input_bits, that of z / 2^shift, for |z| < 2^62 and |z / 2^shift| < 2^(bits - 1).

    Start and end must lie within 2^(bits - 1) units as well, so that x - start and x - end are in range.

    Cost: 3 rounds; 64 + (3 * 64 + 2 * 2 (D - 1)) + (64 + 2) bits per element, where D = ceil(bits / 6): 338 bits for
    bits = 28. Correction: 8 * 2^t + about 190 bytes per element: 446 for GELU (t = 5), 692 for sigmoid and tanh
    (t = 6).

    1. Open c = z + r + 2^62: x, k and wrap are local (truncate.py).
    2. Local: the coefficients from the one-hot vector, then the B_m (module docstring). Open B_m - b_m for m = 1..3,
       and the masked digit bits of the signs of x - start and x - end (compare.py).
    3. Local: the cubic's value e = sum_m rho^m B_m. Open e + r_e + 2^62, which truncates e, and both signs xor beta.
       Then f = R + sign_end (e - R) + sign_start (L - e) is local, with L = left and R = right, or x if it follows.
    """

    shape: Shape
    shift: int
    input_bits: int
    bits: int
    curve: Curve

    @property
    def _nodes(self) -> int:
        return 1 << self.curve.index_bits

    @property
    def _step(self) -> int:
        """The bits of x below a node's."""
        return self.input_bits - self.curve.step_bits

    @property
    def _dropped(self) -> int:
        """The digits of x below those that the cubic looks at."""
        return max(0, self.input_bits - self.curve.input_bits)

    @property
    def _truncated(self) -> int:
        return self.curve.output_bits - self.input_bits

    def _units(self, x: float) -> int:
        return round(x * 2.0**self.input_bits)

    def _ends(self, device: torch.device) -> Tensor:
        ends = torch.tensor([self._units(self.curve.start), self._units(self.curve.end)]).to(device)
        return ends.reshape(2, *[1] * len(self.shape))

    def _coefficients(self, device: torch.device) -> Tensor:
        return _coefficients_on(self.curve, self.input_bits - self._dropped, device)

    def _places(self, k: Tensor) -> tuple[Tensor, Tensor]:
        return ring.digit(k, self._step, self.curve.index_bits), ring.digit(k, 0, self._step) >> self._dropped

    def material(self, source: Source, *inputs: object) -> SplineMaterial:
        shape, pair = self.shape, (2, *self.shape)
        mask = mask_material(source, shape, self.shift)
        sign = sign_of(self.bits).material(source, pair, lambda: mask.high.expand(pair))

        def one_hot() -> Tensor:
            place = self._places(mask.high)[0]
            return (place[..., None] == torch.arange(self._nodes, device=place.device)).long()

        def powers() -> Tensor:
            rho = self._places(mask.high)[1]
            return torch.stack([rho**m for m in range(1, DEGREE + 1)])

        tables = source.dealt((*shape, self._nodes), one_hot)
        shared = source.dealt((DEGREE, *shape), powers)
        masks = source.uniform((DEGREE, *shape))
        product = source.dealt(shape, lambda: (shared * masks).sum(0))
        value = mask_material(source, shape, self._truncated)
        selection = selection_material(
            source, pair, lambda: value.high.expand(pair), lambda: value.top.expand(pair), self._truncated
        )
        return SplineMaterial(
            mask, sign, tables, shared, masks, product, value, selection, self._following(source, mask, selection)
        )

    def _following(
        self, source: Source, mask: MaskMaterial, selection: SelectionMaterial
    ) -> tuple[Tensor, Tensor | None] | None:
        if not self.curve.follows:
            return None
        high = source.dealt(self.shape, lambda: selection.bit[1] * mask.high)
        if not self.shift:
            return high, None
        return high, source.dealt(self.shape, lambda: selection.bit[1] * mask.top, width_for(self.shift))

    async def run(self, session: Session, material: SplineMaterial, *inputs: Share) -> Share:
        comparison, first = sign_of(self.bits), session.first
        x = unmask(await session.open(masked(inputs[0], material.mask)), material.mask, first)

        place, kappa = self._places(x.k - self._units(self.curve.start))
        constant, *factors = self._by_powers(self._selected(place, material.one_hot), kappa)
        digits, linear = comparison.masked_bits(x.k - self._ends(x.k.device), material.sign, first)
        digits, opened = await session.open_together(
            frames.bits(digits), frames.elements(torch.stack(factors) - material.masks)
        )
        signs = comparison.sign(digits, linear, material.sign, first)
        e = Share(constant + (opened * material.powers).sum(0) + material.product, first)

        c, flags = await session.open_together(
            frames.elements(masked(e, material.value)), frames.bits(signs ^ material.selection.bit)
        )
        return Share(self._pieces(x, unmask(c, material.value, first), flags, material, first), first)

    def _selected(self, place: Tensor, one_hot: Tensor) -> list[Tensor]:
        """Return the shares of the coefficients of the node at place - (the one-hot vector's): public, rotated."""
        order = (place[..., None] - torch.arange(self._nodes, device=place.device)) & (self._nodes - 1)
        return [(one_hot * column[order]).sum(-1) for column in self._coefficients(place.device)]

    def _by_powers(self, a: list[Tensor], kappa: Tensor) -> list[Tensor]:
        """Return B_0 to B_3 (module docstring)."""
        factors = []
        for m in range(DEGREE + 1):
            # Horner's rule for sum_j binomial(j, m) a_j kappa^(j - m).
            total = a[DEGREE] * math.comb(DEGREE, m)
            for j in reversed(range(m, DEGREE)):
                total = total * kappa + a[j] * math.comb(j, m)
            factors.append(-total if m % 2 else total)
        return factors

    def _pieces(self, x: Opened, e: Opened, flags: Tensor, material: SplineMaterial, first: bool) -> Tensor:
        left, right = self._units(self.curve.left), self._units(self.curve.right)
        pair = Opened(e.x.expand(2, *self.shape), e.k, e.wrap)
        below_start, below_end = select(flags, pair, material.selection)  # sign * e
        chosen = flags.long()
        signs = material.selection.beta * (1 - 2 * chosen) + (chosen if first else 0)
        value: Tensor = below_end - below_start + signs[0] * left - signs[1] * right
        if material.following is not None:
            # x by the second sign, under the same bit as e.
            bit = SelectionMaterial(material.selection.bit[1], material.selection.beta[1], *material.following)
            value = value + x.x - select(flags[1], x, bit)
        return value + right if first else value

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        x = inputs[0] >> self.shift
        start, end = self._ends(x.device)
        place, d = self._places(x.clamp(start, end - 1) - start)
        a = [column[place] for column in self._coefficients(x.device)]
        value: Tensor = (a[0] + d * (a[1] + d * (a[2] + d * a[3]))) >> self._truncated
        beyond = x if self.curve.follows else torch.full_like(x, self._units(self.curve.right))
        return torch.where(x < start, self._units(self.curve.left), torch.where(x < end, value, beyond))

    def cost(self) -> Cost:
        count = math.prod(self.shape)
        digits = sign_of(self.bits).cost(2 * count)
        return Cost(3, (64 + DEGREE * 64 + 64 + 2) * count + digits.bits)


@cache
def coefficients(curve: Curve, input_bits: int) -> Tensor:
    """Return a_0 to a_3 of every node (4, nodes), so scaled that a_j d^j has the scale 2^output_bits, d in units.

    All parties must come to the very same integers, on whatever machine they run: so this is decimal arithmetic of 60
    digits in software, not the processor's.
    """
    with localcontext(Context(prec=60)):
        width = Decimal(2) ** -curve.step_bits
        # The Chebyshev points of (-1, 1) are -p, -q, q and p: the even and the odd part are lines in u^2.
        p, q = ((2 + Decimal(2).sqrt()).sqrt() / 2, (2 - Decimal(2).sqrt()).sqrt() / 2)
        rows = []
        for index in range(1 << curve.index_bits):
            node = Decimal(curve.start) + width * index
            pairs = [(curve.at(node + width * u), curve.at(node - width * u), u) for u in (p, q)]
            even = [(plus + minus) / 2 for plus, minus, _ in pairs]
            odd = [(plus - minus) / (2 * u) for plus, minus, u in pairs]
            two, three = ((part[0] - part[1]) / (p * p - q * q) for part in (even, odd))
            powers = (even[1] - two * q * q, odd[1] - three * q * q, two, three)
            rows.append(
                [
                    int((a / width**j * Decimal(2) ** (curve.output_bits - j * input_bits)).to_integral_value())
                    for j, a in enumerate(powers)
                ]
            )
    return torch.tensor(rows).T.contiguous()


@cache
def _coefficients_on(curve: Curve, input_bits: int, device: torch.device) -> Tensor:
    return coefficients(curve, input_bits).to(device)
