"""Products of two secrets: matrices here; elementwise ones are `softmax.Multiply`.

Attention multiplies what it computed from the query with what it computed from the query, so no operand can be masked
ahead as a weight is (linear.py): both are opened, under masks of this run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from finode.smpc import frames
from finode.smpc.gates.base import Gate
from finode.smpc.gates.linear import Form
from finode.smpc.gates.softmax import TripleMaterial
from finode.smpc.material import Shape, Source
from finode.smpc.ring_products import matmul
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights


@dataclass(frozen=True, slots=True)
class Elementwise:
    """x * w with w (models, *weight) that broadcasts against one sample; a `linear.Form`."""

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        missing = x.dim() - 2 - (w.dim() - 1)
        return x * w.reshape(w.shape[0], 1, *[1] * missing, *w.shape[1:])


ELEMENTWISE: Form = Elementwise()


@dataclass(frozen=True, slots=True)
class MatrixProduct(Gate[TripleMaterial]):
    """x @ y over the last two dimensions, the others broadcast; the scale is the sum of theirs.

    Cost: 1 round; 64 bits per element of x and of y. 8 bytes of correction per element of the product.

    1. Open d = x - a and e = y - b, where the dealer shares a, b and c = a @ b.
    2. [x @ y] = [c] + d @ [b] + [a] @ e + d @ e; only party 0 adds the public term. Local.

    Source: matrix triples [Beaver 1991; Mohassel, Zhang 2017].
    """

    left: Shape
    right: Shape

    @property
    def shape(self) -> Shape:
        """The shape of the product."""
        lead = tuple(np.broadcast_shapes(self.left[:-2], self.right[:-2]))
        return (*lead, self.left[-2], self.right[-1])

    def material(self, source: Source, *inputs: object) -> TripleMaterial:
        a, b = source.uniform(self.left), source.uniform(self.right)
        return TripleMaterial(a, b, source.dealt(self.shape, lambda: matmul(a, b)))

    async def run(self, session: Session, material: TripleMaterial, *inputs: Share) -> Share:
        d, e = await session.open_together(
            frames.elements(inputs[0].data - material.a), frames.elements(inputs[1].data - material.b)
        )
        # Party 0's public term goes into its first product: d @ (b + e).
        right = material.b + e if session.first else material.b
        return Share(material.c + matmul(d, right) + matmul(material.a, e), session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return matmul(inputs[0], inputs[1])

    def cost(self) -> Cost:
        return Cost(1, 64 * (math.prod(self.left) + math.prod(self.right)))
