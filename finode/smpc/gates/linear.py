"""Products with secret weights: one opening of the input, and one ring product online.

Once per deployment the parties opened W^ = W - A, where the dealer knows A. Per run the dealer knows a mask a of the
input and shares a * A for every weight that the input meets. For any bilinear form, with E = x - a,

    x * W = (E + a) * (W^ + A) = E * (W^ + A) + a * W^ + a * A

    [y]_i = E * (W^ * (i == 0) + [A]_i)  +  ([a]_i * W^ + [a * A]_i)

The bracket on the left is a constant of the deployment, the one on the right does not depend on the query: both are
made in `prepare`. A tensor that several layers or several models read is masked and opened once: `Mask` is a gate of
its own, and the query's input has one for all models.

Source: Beaver's multiplication [Beaver 1991] with an operand that is masked once, as in SecureML [Mohassel, Zhang
2017].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc import ring, ring_products
from finode.smpc.gates.base import Gate
from finode.smpc.material import Shape, Source
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PartyWeights, PlainWeights, WeightRef


class Form(Protocol):
    """A bilinear form of x (models or 1, batch, *sample) and w (models, *weight)."""

    def __call__(self, x: Tensor, w: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Convolution:
    """2-d convolution of (channels, height, width) samples with (out, in / groups, kh, kw) weights."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        return ring.convolve(x, w, self.strides, self.pads, self.dilations, self.groups)


@dataclass(frozen=True, slots=True)
class Matmul:
    """x @ w^T over the last dimension, w (out, in)."""

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        product = ring_products.matmul(rows, w.transpose(1, 2))
        return product.reshape(product.shape[0], *x.shape[1:-1], w.shape[1])


@dataclass(frozen=True, slots=True)
class PerChannel:
    """x * w with w (channels,), dimension 0 of a sample."""

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        return x * _along_channels(w, x.dim())


def _along_channels(w: Tensor, dimensions: int) -> Tensor:
    return w.reshape(w.shape[0], 1, w.shape[1], *[1] * (dimensions - 3))


@dataclass(frozen=True, slots=True)
class Mask(Gate[Tensor]):
    """E = x - a, public, for the products that follow.

    Cost: 1 round; 64 bits per element.

    1. Open E = x - a for the uniform mask a of this run.
    """

    shape: Shape

    def material(self, source: Source, *inputs: object) -> Tensor:
        return source.uniform(self.shape)

    async def run(self, session: Session, material: Tensor, *inputs: Share) -> Tensor:
        return await session.open(inputs[0].data - material)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def cost(self) -> Cost:
        return Cost(1, 64 * math.prod(self.shape))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ProductMaterial:
    """Shares of a and a * A; `prepare` puts the left bracket in `weight` and turns a * A into the right one, `rest`."""

    mask: Tensor
    weight: Tensor | None
    rest: Tensor


@dataclass(frozen=True, slots=True)
class Product(Gate[ProductMaterial]):
    """form(x, W) + bias for a masked x and secret weights; the scale of the result is the sum of the two scales.

    Cost: nothing online beyond the `Mask` of x; 8 bytes of correction per output element.

    1. Local: E * (W^ * (i == 0) + [A]_i) + ([a]_i * W^ + [a * A]_i) (module docstring).
    2. The bias, an unmasked share at scale 2^f, is lifted by a public 2^bias_shift and added.
    """

    shape: Shape
    form: Form
    weight: WeightRef
    bias: WeightRef | None = None
    bias_shift: int = 0

    def material(self, source: Source, *inputs: Tensor) -> ProductMaterial:
        a = inputs[0]
        return ProductMaterial(a, None, source.dealt(self.shape, lambda: self.form(a, source.mask(self.weight))))

    def prepare(self, session: Session, weights: PartyWeights | None, material: ProductMaterial) -> ProductMaterial:
        if weights is None:
            raise LocalError("a product needs weights")
        rest = material.rest + self.form(material.mask, weights.opened(self.weight))
        if self.bias is not None:
            rest += self._lifted(weights.share(self.bias))
        return ProductMaterial(material.mask.new_empty(0), weights.factor(self.weight), rest)

    async def run(self, session: Session, material: ProductMaterial, *inputs: Tensor) -> Share:
        if material.weight is None:
            raise LocalError("a product runs on prepared material")
        return Share(self.form(inputs[0], material.weight) + material.rest, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        product = self.form(inputs[0], weights.value(self.weight))
        return product if self.bias is None else product + self._lifted(weights.value(self.bias))

    def _lifted(self, bias: Tensor) -> Tensor:
        lifted = bias << self.bias_shift
        if isinstance(self.form, Matmul):
            return lifted.reshape(lifted.shape[0], *[1] * (len(self.shape) - 2), lifted.shape[1])
        return _along_channels(lifted, len(self.shape))


@dataclass(frozen=True, slots=True)
class AddWeight(Gate[Tensor]):
    """x + W for a secret weight that broadcasts against one sample; local. W at scale 2^f is lifted by 2^shift."""

    weight: WeightRef
    dimensions: int
    """Of a sample."""
    shift: int = 0

    def material(self, source: Source, *inputs: object) -> Tensor:
        return torch.empty(0, dtype=torch.int64)  # nothing is dealt: `prepare` puts the weight's share here

    def prepare(self, session: Session, weights: PartyWeights | None, material: Tensor) -> Tensor:
        if weights is None:
            raise LocalError("an addition of a weight needs weights")
        return self._lifted(weights.share(self.weight))

    async def run(self, session: Session, material: Tensor, *inputs: Share) -> Share:
        return Share(inputs[0].data + material, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return inputs[0] + self._lifted(weights.value(self.weight))

    def _lifted(self, weight: Tensor) -> Tensor:
        shape = weight.shape[1:]
        return (weight << self.shift).reshape(weight.shape[0], 1, *[1] * (self.dimensions - len(shape)), *shape)
