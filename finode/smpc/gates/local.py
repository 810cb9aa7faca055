"""Gates that need no other party: sums, averages and reshapes, which are linear with public coefficients.

A value carries its scale, and a division by a power of two only raises it; any other divisor is a product with its
fixed-point reciprocal. Nothing is truncated before a nonlinear gate or another product demands it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finode.smpc import ring
from finode.smpc.gates.base import Gate
from finode.smpc.gates.pool import Window
from finode.smpc.material import Shape, Source
from finode.smpc.session import Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights


@dataclass(frozen=True, slots=True)
class Local(Gate[None]):
    """A linear map of shares; subclasses say which in `linear`. Costs nothing."""

    def linear(self, *inputs: Tensor) -> Tensor:
        """Apply the map to tensors."""
        raise NotImplementedError(type(self).__name__)

    def material(self, source: Source, *inputs: object) -> None:
        return None

    async def run(self, session: Session, material: None, *inputs: Share) -> Share:
        return Share(self.linear(*(share.data for share in inputs)), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return self.linear(*inputs)


@dataclass(frozen=True, slots=True)
class Add(Local):
    """x * 2^left + y * 2^right: both at one scale."""

    left: int
    right: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return (inputs[0] << self.left) + (inputs[1] << self.right)


@dataclass(frozen=True, slots=True)
class Reshape(Local):
    """Samples of another shape."""

    shape: Shape

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(*inputs[0].shape[:2], *self.shape)


@dataclass(frozen=True, slots=True)
class Subsample(Local):
    """Every stride-th value of the last two dimensions."""

    strides: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0][..., :: self.strides[0], :: self.strides[1]]


@dataclass(frozen=True, slots=True)
class Repeat(Local):
    """The value of one model as that of `models`, for a lane whose plan has no weights that tell them apart."""

    models: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].expand(self.models, *inputs[0].shape[1:])


@dataclass(frozen=True, slots=True)
class SumModels(Local):
    """The sum over all models of all lanes: inputs (models, batch, C) at one scale, output (batch, C)."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return torch.stack([lane.sum(0) for lane in inputs]).sum(0)


@dataclass(frozen=True, slots=True)
class AveragePool(Local):
    """The mean of every window, at the scale of the input raised by `raised_bits`.

    Windows of 2^k values each are summed and raise the scale by k. Otherwise the scale is raised by `precision_bits`
    and more: each sum is multiplied with the rounded 2^raised_bits / count, which is exact to 2^-precision_bits.
    Pads count as values if `count_include_pad`.
    """

    window: Window
    height: int
    width: int
    count_include_pad: bool
    precision_bits: int

    def _counts(self) -> Tensor:
        ones = torch.ones((1, 1, self.height, self.width), dtype=torch.int64)
        fill = 1 if self.count_include_pad else 0
        return self.window.candidates(ones, fill).sum(0)[0, 0]

    def _even(self) -> bool:
        counts = self._counts()
        count = int(counts.max())
        return bool((counts == count).all()) and count & (count - 1) == 0

    @property
    def raised_bits(self) -> int:
        """How much the scale of the output exceeds that of the input."""
        count = int(self._counts().max())
        return count.bit_length() - 1 if self._even() else self.precision_bits + count.bit_length()

    def linear(self, *inputs: Tensor) -> Tensor:
        view = ring.windows(inputs[0], self.window.kernel, self.window.strides, self.window.pads)
        total = view.sum((-2, -1))
        if self._even():
            return total
        counts = self._counts()
        return total * (((1 << (self.raised_bits + 1)) // counts + 1) >> 1).to(total.device)
