"""Matrix products in Z_2^64 on any device, bit for bit those of int64 that wraps around.

torch multiplies int64 matrices on a processor alone; on a GPU there are products of floating-point numbers. So there a
product is put together from exact float64 products of limbs. With x = x_0 + x_1 2^22 + x_2 2^44 mod 2^64 and limbs
in [-2^21, 2^21],

    x y = sum over i + j <= 2 of x_i y_j 2^(22 (i + j))   mod 2^64          six float64 products

(i + j = 3 stands at 2^66 and vanishes). A product of two limbs is at most 2^42, a sum of 2^11 of them at most 2^53, up
to which float64 holds every integer: so each multiplication and each addition is exact, in whatever order and with
whatever fusing a library does them, as long as it multiplies and adds the numbers themselves. The inner dimension is
cut into pieces of 2^11; what comes of a piece is added up as int64.

Convolutions are unfolded (ring.py) and come here. They must not be left to a library's convolution, which may use
transforms (Winograd, FFT) whose intermediate values are no integers.

float64 rather than narrower types: TF32 or reduced-precision accumulation, which are switched on per process, cannot
touch it; four 16-bit limbs would take ten products, eight 8-bit limbs 36.

Source: limbs in float64 as in CrypTen [Knott et al. 2021, section 4.3], here three signed ones instead of four.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

LIMB_BITS: Final = 22
LONGEST_SUM: Final = 1 << (53 - 2 * (LIMB_BITS - 1))
"""Products of two limbs that add up to 2^53 at most."""
_LIMBS: Final = 3
_ELEMENT_BITS: Final = 64
LARGEST: Final = (1 << 63) - (1 << (2 * LIMB_BITS - 1)) - (1 << (LIMB_BITS - 1))
"""The element whose limbs are as large as they get: -2^21, -2^21 and -2^19."""


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of int64 tensors (..., n, k) and (..., k, m), wrapped around, on the device where they are."""
    return a @ b if a.device.type == "cpu" else by_limbs(a, b)


def by_limbs(a: Tensor, b: Tensor) -> Tensor:
    """Return what `matmul` returns, by float64 products alone."""
    products = _products(a, b)
    total = next(products)
    for product in products:
        total += product
    return total


def _products(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield the int64 products of all limbs of all pieces, at their places; one at least."""
    inner = a.shape[-1]
    for start in range(0, max(inner, 1), LONGEST_SUM):
        stop = min(start + LONGEST_SUM, inner)
        left, right = limbs(a[..., start:stop]), limbs(b[..., start:stop, :])
        for i, x in enumerate(left):
            for j, y in enumerate(right[: _LIMBS - i]):
                yield (x @ y).long() << (LIMB_BITS * (i + j))


def limbs(x: Tensor) -> list[Tensor]:
    """Return the signed limbs of int64 elements as float64, the lowest first: in [-2^21, 2^21), the last [-2^19, 2^19).

    Each takes the lowest bits of what is left as a signed number; the subtraction carries into the next one.
    """
    parts = []
    for index in range(_LIMBS):
        width = min(LIMB_BITS, _ELEMENT_BITS - LIMB_BITS * index)
        low = (x << (_ELEMENT_BITS - width)) >> (_ELEMENT_BITS - width)
        parts.append(low.to(torch.float64))
        x = (x - low) >> width
    return parts
