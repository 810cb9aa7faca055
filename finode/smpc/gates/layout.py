"""Gates that move values or add them up, or multiply them with public numbers. They need no other party.

Values have the shape (models, batch, *sample); `axes` count the sample's dimensions from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import Local
from finode.smpc.material import Shape, Source
from finode.smpc.session import Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights

LEAD = 2
"""Dimensions before a sample's: the models and the batch."""


@dataclass(frozen=True, slots=True)
class Subtract(Local):
    """x * 2^left - y * 2^right: both at one scale."""

    left: int
    right: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return (inputs[0] << self.left) - (inputs[1] << self.right)


@dataclass(frozen=True, slots=True)
class Times(Local):
    """x times a public integer."""

    factor: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor


@dataclass(frozen=True, slots=True)
class Transpose(Local):
    """Sample axis i of the result is axis `axes[i]` of x."""

    axes: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(0, 1, *(LEAD + axis for axis in self.axes)).contiguous()


@dataclass(frozen=True, slots=True)
class Concat(Local):
    """The inputs one after the other along a sample's axis, each raised by its own power of two."""

    axis: int
    raised: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        models = max(x.shape[0] for x in inputs)
        return torch.cat(
            [(x << bits).expand(models, *x.shape[1:]) for x, bits in zip(inputs, self.raised, strict=True)],
            LEAD + self.axis,
        )


@dataclass(frozen=True, slots=True)
class Slice(Local):
    """Along every axis of a sample `counts[i]` values, from `starts[i]` on, `strides[i]` apart (which may be < 0)."""

    starts: tuple[int, ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        for axis, (start, stride, count) in enumerate(zip(self.starts, self.strides, self.counts, strict=True)):
            if (start, stride, count) != (0, 1, x.shape[LEAD + axis]):
                x = x.index_select(LEAD + axis, start + stride * torch.arange(count, device=x.device))
        return x


@dataclass(frozen=True, slots=True)
class Pad(Gate[None]):
    """x with a public `value`, at its scale, around every sample: `pads` are all first sides, then all last ones."""

    pads: tuple[int, ...]
    value: int

    def material(self, source: Source, *inputs: object) -> None:
        return None

    async def run(self, session: Session, material: None, *inputs: Share) -> Share:
        # A public value is party 0's alone; the others pad with zero.
        return Share(self._padded(inputs[0].data, self.value if session.first else 0), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return self._padded(inputs[0], self.value)

    def _padded(self, x: Tensor, value: int) -> Tensor:
        rank = len(self.pads) // 2
        sides = [side for axis in reversed(range(rank)) for side in (self.pads[axis], self.pads[axis + rank])]
        return pad(x, sides, value=value)


def padded_shape(shape: Shape, pads: tuple[int, ...]) -> Shape:
    """Return the shape of a sample with its pads."""
    rank = len(shape)
    return tuple(side + pads[axis] + pads[axis + rank] for axis, side in enumerate(shape))
