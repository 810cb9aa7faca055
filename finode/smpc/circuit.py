"""A circuit: gates and which values they read. The dealer, the parties and the oracle walk the same one.

Gates are in an order in which each comes after what it reads; that is the order of dealing. Parties run all gates as
coroutines that wait for their inputs, so the gates of all models, and of parallel branches of one model, share rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc.devices import CPU
from finode.smpc.gates.base import Gate
from finode.smpc.material import Bundle, CountingSource, DealerSource, gate_stream
from finode.smpc.session import Cell, Session
from finode.smpc.share import Share
from finode.smpc.weights import DealerWeights, PartyWeights, PlainWeights


@dataclass(frozen=True, slots=True)
class Node:
    """A gate in its place. `name` is its tag, and the name of its value."""

    name: str
    gate: Gate[Any]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Circuit:
    """Gates in order, the names of the inputs and the output.

    `kept` are the names of values that are handed out beside the output; `rest` is a circuit that runs after this one,
    on the same bundle, and reads them.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    output: str
    kept: tuple[str, ...] = ()
    rest: Circuit | None = None

    def correction_sizes(self) -> list[tuple[str, int]]:
        """Return the tags of all gates with the bytes of corrections each needs, in the order of dealing."""
        sizes = []
        materials: dict[str, Any] = {}
        for node in self.nodes:
            source = CountingSource()
            materials[node.name] = node.gate.material(source, *(materials.get(name) for name in node.inputs))
            sizes.append((node.name, source.size))
        return sizes

    def material_bytes(self) -> int:
        """Return about the memory that all material of one run takes at a party."""
        source = CountingSource()
        materials: dict[str, Any] = {}
        for node in self.nodes:
            materials[node.name] = node.gate.material(source, *(materials.get(name) for name in node.inputs))
        return source.memory

    def deal(
        self, seeds: Sequence[bytes], weights: DealerWeights | None, device: torch.device = CPU
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the corrections of one bundle, a few chunks per gate. `seeds` are the parties', fresh each time."""
        uses = self._uses()
        materials: dict[str, Any] = {}
        for node in self.nodes:
            source = DealerSource([gate_stream(seed, node.name) for seed in seeds], weights, device)
            material = node.gate.material(source, *(materials.get(name) for name in node.inputs))
            yield from source.written
            _remember(materials, node, material, uses)

    def prepare(self, session: Session, bundle: Bundle, weights: PartyWeights | None) -> dict[str, Any]:
        """Take all material of a bundle and do what does not depend on the query; return it by gate."""
        prepared: dict[str, Any] = {}
        for _ in self.preparing(session, bundle, weights, prepared):
            pass
        return prepared

    def preparing(
        self, session: Session, bundle: Bundle, weights: PartyWeights | None, prepared: dict[str, Any]
    ) -> Iterator[None]:
        """As `prepare`, gate by gate, so that a worker can do it between other work; fills `prepared`."""
        uses = self._uses()
        taken: dict[str, Any] = {}
        for node in self.nodes:
            material = node.gate.material(bundle.take(node.name), *(taken.get(name) for name in node.inputs))
            prepared[node.name] = node.gate.prepare(session, weights, material)
            _remember(taken, node, material, uses)
            yield

    async def run(
        self,
        session: Session,
        prepared: dict[str, Any],
        inputs: Mapping[str, Any],
        kept: dict[str, Any] | None = None,
    ) -> Share:
        """Run this party's side of all gates; return its share of the output, and put the values that are kept into
        `kept`. Empties `prepared` on the way."""
        uses = self._uses()
        cells: dict[str, Cell[Any]] = {name: Cell(uses[name]) for name in (*self.inputs, *(n.name for n in self.nodes))}

        async def run_node(node: Node) -> None:
            values = [await cells[name].get() for name in node.inputs]
            material = prepared.pop(node.name)
            await cells[node.name].provide(await node.gate.run(session.branch(node.name), material, *values))

        for name in self.inputs:
            await cells[name].provide(inputs[name])
        await session.parallel(*(run_node(node) for node in self.nodes))
        output = await cells[self.output].get()
        if not isinstance(output, Share):
            raise LocalError(f"the circuit's output {self.output!r} is no share")
        if kept is not None:
            kept.update({name: await cells[name].get() for name in self.kept})
        return output

    def plain(
        self, weights: PlainWeights, inputs: Mapping[str, Tensor], kept: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the output in the clear; put the values that are kept into `kept`."""
        uses = self._uses()
        values = dict(inputs)
        for node in self.nodes:
            values[node.name] = node.gate.plain(weights, *(values[name] for name in node.inputs))
            for name in node.inputs:
                uses[name] -= 1
                if not uses[name]:
                    values.pop(name, None)
        if kept is not None:
            kept.update({name: values[name] for name in self.kept})
        return values[self.output]

    def _uses(self) -> Counter[str]:
        uses = Counter(name for node in self.nodes for name in node.inputs)
        uses.update((self.output, *self.kept))
        return uses


def _remember(materials: dict[str, Any], node: Node, material: Any, uses: Counter[str]) -> None:
    """Keep the material of a gate for those that read its value, and drop what nothing reads any more."""
    if uses[node.name]:
        materials[node.name] = material
    for name in node.inputs:
        uses[name] -= 1
        if not uses[name]:
            materials.pop(name, None)


@dataclass(slots=True)
class CircuitBuilder:
    """Collects nodes; names are unique."""

    inputs: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def add(self, name: str, gate: Gate[Any], *inputs: str) -> str:
        """Append a gate; return the name of its value. A name that is taken gets a number."""
        unique, number = name, 2
        while unique in self._names or unique in self.inputs:
            unique, number = f"{name}.{number}", number + 1
        self._names.add(unique)
        self.nodes.append(Node(unique, gate, inputs))
        return unique

    def find(self, gate: Gate[Any], *inputs: str) -> str | None:
        """Return the name of a value that is computed by this very gate from these inputs, if there is one."""
        return next((node.name for node in self.nodes if node.inputs == inputs and node.gate == gate), None)

    def build(self, output: str, kept: tuple[str, ...] = (), rest: Circuit | None = None) -> Circuit:
        """Return the circuit without gates whose value nothing reads."""
        needed = {output, *kept}
        gates = []
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
                gates.append(node)
        return Circuit(self.inputs, tuple(reversed(gates)), output, kept, rest)
