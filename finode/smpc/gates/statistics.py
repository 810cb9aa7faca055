"""What the statistics of a session are made of (contribution.py puts them together): products of one-hot votes.

Every model's votes, (K, batch, C), are masked and opened once, D = x - a (`linear.Mask`), and so are the one-hot
vectors of the vote's labels, (batch, C). Whatever is bilinear in them is local then, with what the dealer shares of the
masks. The inputs beyond the true ones of a batch are taken out before, as `Present` says: their rows are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finode.smpc import frames, ring
from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import Local
from finode.smpc.gates.maximum import one_hot
from finode.smpc.material import Shape, Source
from finode.smpc.ring_products import matmul
from finode.smpc.session import Session
from finode.smpc.share import Share
from finode.smpc.statistics_layout import equal_part, model_pairs
from finode.smpc.weights import PlainWeights


@dataclass(frozen=True, slots=True)
class Present(Gate[None]):
    """x (K, batch, n) without the inputs that are padding: their rows become zero. Costs nothing.

    The second input is public, (batch,): 1 for a true input, 0 for padding. A zero row opens to nothing but its mask.
    """

    def material(self, source: Source, *inputs: object) -> None:
        return None

    async def run(self, session: Session, material: None, *inputs: Any) -> Share:
        votes: Share = inputs[0]
        return votes.scale(inputs[1][:, None])

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1][:, None]


@dataclass(frozen=True, slots=True)
class Arranged(Local):
    """The models of all lanes, joined and put in the order of the program: `order[i]` is the model in place i."""

    order: tuple[int, ...]

    def linear(self, *inputs: Tensor) -> Tensor:
        joined = torch.cat(inputs)
        places = torch.tensor([self.order.index(model) for model in range(len(self.order))])
        return joined[places.to(joined.device)]


@dataclass(frozen=True, slots=True)
class Column(Local):
    """The value in place `index` of the last dimension."""

    index: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0][..., self.index]


@dataclass(frozen=True, slots=True)
class SumInputs(Local):
    """The sum over the batch of (K, batch, C): (K, C)."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].sum(1)


@dataclass(frozen=True, slots=True)
class Flat(Local):
    """All elements of all inputs, one after the other."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return torch.cat([x.reshape(-1) for x in inputs])


@dataclass(frozen=True, slots=True)
class Rows(Local):
    """(K, batch, 1) as a (K, batch) matrix."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0][..., 0]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class JointMaterial:
    """Shares of the masks of all votes, and of a_k^T a_l for every pair."""

    mask: Tensor
    products: Tensor


@dataclass(frozen=True, slots=True)
class JointVotes(Gate[JointMaterial]):
    """For every pair k < l of models the C x C matrix x_k^T x_l, from masked votes (K, batch, C); exact integers.

    Cost: nothing online beyond the `Mask` of the votes; 8 bytes of correction per entry.

    1. Local: [x_k^T x_l] = D_k^T D_l + D_k^T [a_l] + [a_k]^T D_l + [a_k^T a_l]; only party 0 adds the public term.

    Source: matrix triples [Beaver 1991; Mohassel, Zhang 2017], every operand masked once for all of its products.
    """

    shape: Shape

    def _pairs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        first, second = torch.tensor(model_pairs(self.shape[0])).T.to(device)
        return first, second

    def material(self, source: Source, *inputs: Tensor) -> JointMaterial:
        a, (first, second) = inputs[0], self._pairs(inputs[0].device)
        shape = (len(first), self.shape[-1], self.shape[-1])
        return JointMaterial(a, source.dealt(shape, lambda: matmul(a[first].mT, a[second])))

    async def run(self, session: Session, material: JointMaterial, *inputs: Tensor) -> Share:
        d, a, (first, second) = inputs[0], material.mask, self._pairs(inputs[0].device)
        # Party 0's public term goes into its first product: D_k^T (a_l + D_l).
        right = a + d if session.first else a
        total = matmul(d[first].mT, right[second]) + matmul(a[first].mT, d[second])
        return Share(total + material.products, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        first, second = self._pairs(inputs[0].device)
        return matmul(inputs[0][first].mT, inputs[0][second])


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AgreementMaterial:
    """Shares of both masks and of their inner products."""

    votes: Tensor
    label: Tensor
    products: Tensor


@dataclass(frozen=True, slots=True)
class Agreement(Gate[AgreementMaterial]):
    """Whether each model voted for the label, (K, batch), from masked votes (K, batch, C) and masked labels (batch, C).

    Cost: nothing online beyond the two `Mask`s; 8 bytes of correction per model and input.

    1. Local: with E = y - b, [sum_c x_c y_c] = sum_c (D [b] + E [a] + D E) + [sum_c a b]; party 0 adds the public term.

    Source: [Beaver 1991], summed before it is shared.
    """

    shape: Shape

    def material(self, source: Source, *inputs: Tensor) -> AgreementMaterial:
        a, b = inputs
        return AgreementMaterial(a, b, source.dealt(self.shape[:-1], lambda: (a * b).sum(-1)))

    async def run(self, session: Session, material: AgreementMaterial, *inputs: Tensor) -> Share:
        d, e = inputs
        right = material.label + e if session.first else material.label
        return Share((d * right + e * material.votes).sum(-1) + material.products, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return (inputs[0] * inputs[1]).sum(-1)


@dataclass(frozen=True, slots=True)
class EqualParts(Local):
    """1 / n at scale 2^16 for n models that agree, 0 for none, from n's one-hot vector (batch, K + 1): (batch, 1)."""

    models: int

    def linear(self, *inputs: Tensor) -> Tensor:
        parts = torch.tensor([equal_part(n) for n in range(self.models + 1)])
        return (inputs[0] * parts.to(inputs[0].device)).sum(-1, keepdim=True)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BallotMaterial:
    """Shares of rho, of its one-hot vector, and of the masks of all votes turned by rho."""

    rho: Tensor
    one_hot: Tensor
    turned: Tensor


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BallotShares:
    """Shares of every model's votes turned by rho, (K, batch, 2^m): entry d is the vote for class d + rho mod 2^m, zero
    where that is no class. And of rho mod 2^m, (batch,)."""

    turned: Tensor
    rho: Tensor


@dataclass(frozen=True, slots=True)
class Ballots(Gate[BallotMaterial]):
    """The votes, kept so that a label which comes later counts them in one round (feedback.py), 2^m > C.

    Cost: nothing online beyond the `Mask` of the votes; 8 * 2^m (K + 1) bytes of correction per input.

    1. The dealer shares a uniform rho mod 2^m per input, its one-hot vector w, and the masks turned by it,
       q_d = a_(d + rho), zero where d + rho mod 2^m is no class.
    2. Local: entry d of the turned votes is x_(d + rho) = sum_c D_c [w_(c - d)] + [q_d].

    The votes' mask serves this product and those of the statistics; it is opened once for all of them.
    """

    shape: Shape
    places: int

    @property
    def _width(self) -> int:
        return (self.places - 1).bit_length()

    def material(self, source: Source, *inputs: Tensor) -> BallotMaterial:
        a, (models, batch, classes) = inputs[0], self.shape
        rho = source.uniform((batch,), 16)

        def turned() -> Tensor:
            padded = torch.nn.functional.pad(a, (0, self.places - classes))
            order = ring.digit(rho[:, None] + torch.arange(self.places, device=rho.device), 0, self._width)
            return padded.gather(-1, order.expand(models, -1, -1))

        return BallotMaterial(
            ring.digit(rho, 0, self._width),
            source.dealt((batch, self.places), lambda: one_hot(ring.digit(rho, 0, self._width), self.places)),
            source.dealt((models, batch, self.places), turned),
        )

    async def run(self, session: Session, material: BallotMaterial, *inputs: Tensor) -> BallotShares:
        places, classes = (torch.arange(n, device=inputs[0].device) for n in (self.places, self.shape[-1]))
        entries = ring.digit(classes[:, None] - places, 0, self._width)
        turned = material.turned.clone()
        # One input at a time: a matrix of C x 2^m for each would be large where there are many classes.
        for index, row in enumerate(material.one_hot):
            turned[:, index] += matmul(inputs[0][:, index], row[entries])
        return BallotShares(turned, material.rho)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return torch.nn.functional.pad(inputs[0], (0, self.places - self.shape[-1]))


async def count_votes(session: Session, ballots: BallotShares, labels: Tensor) -> Share:
    """Return how often each model voted for the label, (K,), from ballots of n inputs and shares of n labels mod 2^m.

    Cost: 1 round; m bits per input. No correction.

    1. Open y - rho mod 2^m.
    2. Local: the entry of the turned votes at that place is the vote for class y; sum it over the inputs.
    """
    models, count, places = ballots.turned.shape
    width = (places - 1).bit_length()
    place = (await session.open_together(frames.residues(labels - ballots.rho, width)))[0]
    votes = ballots.turned.gather(-1, place.expand(models, count)[..., None])
    return Share(votes.sum((1, 2)), session.first)
