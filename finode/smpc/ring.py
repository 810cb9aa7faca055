"""Arithmetic in Z_2^64 on torch int64 tensors, which wrap around, and the layouts that linear layers need.

torch's int64 `@` runs at 10 to 25 G multiply-adds a second on two cores; its int64 `conv2d` is several times slower.
So a convolution is an unfolding and a matmul, on a GPU as well (ring_products.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from finode.smpc.engine import Buffer
from finode.smpc.ring_products import matmul

OFFSET_BITS = 62
"""Openings for truncation add 2^62, so that a value in (-2^62, 2^62) becomes one in [0, 2^63)."""


def from_bytes(data: Buffer, shape: tuple[int, ...]) -> Tensor:
    """Return the little-endian int64 elements in `data` as a tensor; copies only what cannot be written to."""
    array = np.frombuffer(data, dtype="<i8").reshape(shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def to_bytes(x: Tensor) -> bytes:
    """Return the elements of `x` as little-endian int64 in C order."""
    return x.contiguous().numpy().astype("<i8", copy=False).tobytes()


def high_part(x: Tensor, shift: int) -> Tensor:
    """Return x >> shift of the *unsigned* elements."""
    return x if shift == 0 else (x >> shift) & ((1 << (64 - shift)) - 1)


def top_bit(x: Tensor) -> Tensor:
    """Return bit 63 as 0 or 1."""
    return (x >> 63) & 1


def digit(x: Tensor, position: int, width: int) -> Tensor:
    """Return the `width` bits of `x` from bit `position` on."""
    return (x >> position) & ((1 << width) - 1)


def windows(
    x: Tensor,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...] = (1, 1),
    fill: int = 0,
) -> Tensor:
    """Return a view of all windows of the last two dimensions: (..., height, width, *kernel).

    `pads` are top, left, bottom, right, and are filled with `fill`.
    """
    top, left, bottom, right = pads
    padded = pad(x, (left, right, top, bottom), value=fill) if any(pads) else x
    padded = padded.contiguous()
    size, step = padded.shape[-2:], padded.stride()
    counts = [(size[d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in (0, 1)]
    return padded.as_strided(
        (*padded.shape[:-2], *counts, *kernel),
        (
            *step[:-2],
            *(step[d - 2] * strides[d] for d in (0, 1)),
            *(step[d - 2] * dilations[d] for d in (0, 1)),
        ),
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolve x (models or 1, batch, channels, height, width) with weight (models, out, in / groups, kh, kw)."""
    view = windows(x, tuple(weight.shape[-2:]), strides, pads, dilations)
    models, batch, channels, height, width, kh, kw = view.shape
    columns = view.permute(0, 1, 2, 5, 6, 3, 4).reshape(
        models, batch, groups, channels // groups * kh * kw, height * width
    )
    count, out = weight.shape[0], weight.shape[1] // groups
    rows = weight.reshape(count, 1, groups, out, -1)
    if models == 1 < count:
        # All models read one input: their channels side by side, or the product would copy its columns for each.
        rows = rows.permute(1, 2, 0, 3, 4).reshape(1, 1, groups, count * out, -1)
        side_by_side = matmul(rows, columns).reshape(batch, groups, count, out, height, width)
        return side_by_side.permute(2, 0, 1, 3, 4, 5).reshape(count, batch, groups * out, height, width).contiguous()
    return matmul(rows, columns).reshape(models, batch, groups * out, height, width)
