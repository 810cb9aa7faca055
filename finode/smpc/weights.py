"""Weights as each role knows them: a party its shares and the opened W^, the dealer the masks, the oracle all.

A lane is a group of models of equal plan, computed as one batch: a weight of a lane is the stack of its models'
weights, the model first. Weights that a secret is multiplied with are *masked* (opened once per deployment as
W^ = W - A); those that are only added stay shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc import ring
from finode.smpc.devices import CPU
from finode.smpc.engine import Buffer
from finode.smpc.plan import PRODUCTS, Plan, WeightSpec
from finode.smpc.randomness import Stream, subkey


@dataclass(frozen=True, slots=True)
class WeightRef:
    """One weight of a lane. `models` are indices into the program's plans."""

    models: tuple[int, ...]
    name: str


def masked_weights(plan: Plan) -> list[WeightSpec]:
    """Return the weights of a plan that are multiplied with secrets, in the order of `plan.weights`."""
    names = {step.weight for step in plan.steps if step.op in PRODUCTS}
    return [spec for spec in plan.weights if spec.name in names]


def mask_stream(seed: bytes, name: str) -> Stream:
    """Return the stream of one weight's mask under a deployment's mask seed."""
    return Stream(subkey(seed, "mask", name))


def expand_mask(seed: bytes, spec: WeightSpec) -> Tensor:
    """Return one party's share of the mask A of a weight."""
    return torch.from_numpy(mask_stream(seed, spec.name).integers(spec.numel)).view(spec.shape)


def split(data: Buffer, specs: Sequence[WeightSpec], what: str) -> dict[str, Tensor]:
    """Cut concatenated elements into the weights of `specs`; raise `LocalError` if their size is another."""
    view = memoryview(data).cast("B")
    expected = 8 * sum(spec.numel for spec in specs)
    if len(view) != expected:
        raise LocalError(f"{what} have {len(view)} bytes instead of {expected}")
    parts, offset = {}, 0
    for spec in specs:
        parts[spec.name] = ring.from_bytes(view[offset : offset + 8 * spec.numel], spec.shape)
        offset += 8 * spec.numel
    return parts


def _stack(ref: WeightRef, of_model: Callable[[int], Tensor]) -> Tensor:
    if len(ref.models) == 1:
        return of_model(ref.models[0])[None]  # no copy of a large model's weight
    return torch.stack([of_model(model) for model in ref.models])


class DealerWeights:
    """The masks A, from every party's mask seeds; the dealer knows nothing else about weights."""

    def __init__(
        self, plans: Sequence[Plan], mask_seeds: Sequence[Sequence[bytes]], device: torch.device = CPU
    ) -> None:
        """`mask_seeds[model][party]`, as `NativeEngine.mask_seed` gives them."""
        self._specs = [{spec.name: spec for spec in plan.weights} for plan in plans]
        self._seeds = mask_seeds
        self._device = device

    def mask(self, ref: WeightRef) -> Tensor:
        """Return A."""

        def of_model(model: int) -> Tensor:
            spec = self._specs[model][ref.name]
            total = torch.zeros(spec.shape, dtype=torch.int64)
            for seed in self._seeds[model]:
                total += expand_mask(seed, spec)
            return total

        return _stack(ref, of_model).to(self._device)


class PartyWeights:
    """What one party holds: its shares of all weights, its shares of the masks, and the opened W^.

    It is kept between runs. What products need is made at its first use and replaces what it was made from: of a
    weight that secrets are multiplied with, W^ and the factor stay, and its share of W goes at once.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        constants: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        shares: Sequence[Buffer],
        first: bool = False,
        device: torch.device = CPU,
    ) -> None:
        """`first` says whether this is party 0, the one that adds public terms; what gates get is on `device`."""
        self._specs = [{spec.name: spec for spec in plan.weights} for plan in plans]
        self._seeds = mask_seeds
        self._first = first
        self._device = device
        self._single = [
            split(data, masked_weights(plan), f"the constants of model {model}")
            for model, (plan, data) in enumerate(zip(plans, constants, strict=True))
        ]
        self._opened: dict[WeightRef, Tensor] = {}
        self._factors: dict[WeightRef, Tensor] = {}
        self._shares = []
        for model, (plan, data) in enumerate(zip(plans, shares, strict=True)):
            parts = split(data, plan.weights, f"the weight share of model {model}")
            # Copies, so that the buffer of all weights need not be kept for the few that are only added.
            added = {name: part for name, part in parts.items() if name not in self._single[model]}
            self._shares.append({name: part.to(device, copy=True) for name, part in added.items()})

    @property
    def size_bytes(self) -> int:
        """The memory that all of it takes once every weight was used."""
        kept = sum(16 * self._specs[model][name].numel for model, parts in enumerate(self._single) for name in parts)
        added = sum(8 * part.numel() for parts in self._shares for part in parts.values())
        return kept + added

    def mask(self, ref: WeightRef) -> Tensor:
        """Return this party's share of A."""
        mask = _stack(ref, lambda model: expand_mask(self._seeds[model], self._specs[model][ref.name]))
        return mask.to(self._device)

    def opened(self, ref: WeightRef) -> Tensor:
        """Return W^ = W - A, which all parties know."""
        if ref not in self._opened:
            self._opened[ref] = _stack(ref, lambda model: self._single[model][ref.name].to(self._device))
            for model in ref.models:
                self._single[model][ref.name] = self._opened[ref][ref.models.index(model)]
        return self._opened[ref]

    def factor(self, ref: WeightRef) -> Tensor:
        """Return [A]_i + W^ * (i == 0): what a masked value is multiplied with online, a constant of the party."""
        if ref not in self._factors:
            mask = self.mask(ref)
            self._factors[ref] = mask.add_(self.opened(ref)) if self._first else mask
        return self._factors[ref]

    def share(self, ref: WeightRef) -> Tensor:
        """Return this party's share of W, a weight that is only added."""
        return _stack(ref, lambda model: self._shares[model][ref.name])


class PlainWeights:
    """The weights themselves, for the oracle."""

    def __init__(self, values: Sequence[dict[str, Tensor]]) -> None:
        self._values = values

    def value(self, ref: WeightRef) -> Tensor:
        """Return W."""
        return _stack(ref, lambda model: self._values[model][ref.name])
