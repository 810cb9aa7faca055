"""What a gate is: a frozen description of one operation on tensors of known shapes.

The same object serves three walks of a circuit: the dealer and the parties call `material`, the parties then
`prepare` (what does not depend on the query) and `run`, and the oracle calls `plain`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from finode.smpc.material import Source
from finode.smpc.session import Cost, Session
from finode.smpc.weights import PartyWeights, PlainWeights

M = TypeVar("M")
FREE = Cost(0, 0)


@dataclass(frozen=True, slots=True)
class Gate(ABC, Generic[M]):
    """One operation. `M` is the type of its material, `None` where it needs none."""

    @abstractmethod
    def material(self, source: Source, *inputs: Any) -> M:
        """Take this gate's correlated randomness. `inputs` is the material of the gates whose values it reads."""

    def prepare(self, session: Session, weights: PartyWeights | None, material: M) -> M:
        """Do at a party what can be done before the query: return the material as `run` wants it."""
        return material

    @abstractmethod
    async def run(self, session: Session, material: M, *inputs: Any) -> Any:
        """Compute this party's share of the value."""

    @abstractmethod
    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        """Compute the value in the clear, in the same fixed point."""

    def cost(self) -> Cost:
        """Return the rounds and the bits that `run` sends to each other party, as its docstring states them."""
        return FREE
