"""What lowering an ONNX graph keeps on the way, and what every operator needs: operands, constants, steps, names.

Steps, values and weights are numbered by operation, never named after the ONNX nodes: names say nothing about the
owner's code, and organizations with the same architecture get the same plan, which engines run as one batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from finode.models.graph import Array, Graph
from finode.models.nodes import Node
from finode.smpc.plan import INPUT, Op, Step

MAX_SAMPLE_RANK = 4


class Emitter:
    """Steps in the order of computation, their weights, and which ONNX value is which value of the plan."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._steps: dict[str, Step] = {}  # by the value that the step writes, in order
        self._weights: dict[str, Array] = {}
        self._origins: dict[str, str] = {}
        self._values: dict[str, str] = {graph.input: INPUT}  # ONNX name -> plan name
        self._shapes: dict[str, tuple[int, ...]] = {INPUT: graph.shapes[graph.input]}
        self._readers: dict[str, int] = {INPUT: graph.consumers(graph.input)}

    def _operand(self, node: Node, index: int = 0) -> str:
        """Return the plan's name of a computed input."""
        name = node.input(index)
        if name not in self._values:
            raise self._graph.fail(f"input {index + 1} of {node} is a constant; a computed value is needed")
        return self._values[name]

    def _constant(self, node: Node, index: int, what: str) -> Array:
        """Return a constant input as finite float64."""
        value = self._constant_or_none(node, index)
        if value is None:
            raise self._graph.fail(f"the {what} of {node} is computed, or left out; it must be a constant of the file")
        return value

    def _constant_or_none(self, node: Node, index: int) -> Array | None:
        name = node.input(index)
        if name not in self._graph.constants:
            return None
        value: npt.NDArray[Any] = self._graph.constants[name]
        with np.errstate(over="ignore", invalid="ignore"):
            array: Array = np.asarray(value, dtype=np.float64)
        if not np.isfinite(array).all():
            raise self._graph.fail(f"the weight {name!r} of {node} has NaN or infinite values", "train it again")
        return array

    def _emit(
        self,
        node: Node,
        op: Op,
        *inputs: str,
        weight: Array | None = None,
        bias: Array | None = None,
        output: int = 0,
        numbers: tuple[float, ...] = (),
    ) -> str:
        """Append a step for an output of `node`; return the plan's name of its value.

        Raises `ModelError` for ranks that no engine has.
        """
        shape = self._graph.shapes[node.outputs[output]]
        for sample in (*(self._shapes[name] for name in inputs), shape):
            if op is not Op.RESHAPE and not 0 < len(sample) <= MAX_SAMPLE_RANK:
                raise self._graph.fail(
                    f"{node} works on samples of the shape {sample}",
                    f"a sample has 1 to {MAX_SAMPLE_RANK} dimensions after the batch",
                )
        number = 1 + sum(step.op is op for step in self._steps.values())
        name = f"{op.value}{number}"
        step = Step(op=op, name=name, inputs=inputs, output=name, output_shape=shape, numbers=numbers)
        if weight is not None:
            step = replace(step, weight=f"{name}.weight")
            self._weights[step.weight] = weight
        self._steps[name] = step
        self._shapes[name] = shape
        self._origins[name] = node.name
        self._name_value(node, name, output)
        if bias is not None:
            self._set_bias(name, bias)
        return name

    def _then(self, node: Node, value: str, op: Op, **options: Any) -> str:
        """Append a step that alone reads `value`, which another step of the same node has written."""
        self._readers[value] = 1
        return self._emit(node, op, value, **options)

    def _name_value(self, node: Node, value: str, output: int = 0) -> None:
        """Make `value` what the node's output stands for, and count who will read it."""
        used = [name for name in node.outputs[1:] if name and self._graph.consumers(name)]
        if used and node.op != "Split":
            raise self._graph.fail(f"the second output {used[0]!r} of {node} is used; only the first is supported")
        self._values[node.outputs[output]] = value
        self._readers[value] = self._readers.get(value, 0) + self._graph.consumers(node.outputs[output])

    def _alias(self, node: Node, value: str) -> None:
        """Make the node's output another name of `value`, which the node read."""
        self._readers[value] -= 1
        self._name_value(node, value)

    def _set_bias(self, value: str, bias: Array) -> None:
        step = replace(self._steps[value], bias=f"{value}.bias")
        self._steps[value] = step
        self._weights[step.bias] = bias

    def _foldable(self, value: str, *ops: Op) -> Step | None:
        """Return the step that writes `value` if it is one of `ops` and nobody else reads the value."""
        step = self._steps.get(value)
        return step if step is not None and step.op in ops and self._readers[value] == 1 else None

    def _bias_of(self, step: Step) -> Array:
        if step.bias:
            return self._weights[step.bias]
        channels = step.output_shape[-1] if step.op is Op.LINEAR else step.output_shape[0]
        return np.zeros(channels)
