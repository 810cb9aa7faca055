"""What exporters spell out in several operators, and the engine does in one.

GELU, before opset 20, comes as its formula: x / 2 * (1 + erf(x / sqrt 2)), or with tanh and a cube. One GELU costs a
third of erf and two products. Whatever is written otherwise is left as it is, and computed operator by operator.

A model may end in the label: an ArgMax or a TopK of 1 over the classes. What a querier learns is for the terms of a
query to say, and a vote needs the scores: so the end is cut off, and the scores are the output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from finode.models.nodes import Node

Constants = Mapping[str, npt.NDArray[Any]]
_CUBIC = 0.044715
_LABEL_WRAPPERS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_TOLERANCE = 1e-4
"""Exporters write the constants of GELU in single precision, some with fewer digits."""


def with_gelus(nodes: Sequence[Node], constants: Constants, output: str) -> tuple[Node, ...]:
    """Return the nodes with every GELU formula as one Gelu node, which writes the formula's value."""
    matcher = _Matcher(nodes, constants, output)
    found = {node.outputs[0]: gelu for node in nodes if (gelu := matcher.gelu(node)) is not None}
    merged = [found.get(node.outputs[0], node) for node in nodes]
    # What only the formula read goes with it.
    while True:
        read = Counter(name for node in merged for name in node.inputs) + Counter([output])
        kept = [node for node in merged if any(read[name] for name in node.outputs)]
        if len(kept) == len(merged):
            return tuple(merged)
        merged = kept


class _Matcher:
    def __init__(self, nodes: Sequence[Node], constants: Constants, output: str) -> None:
        self._makers = {node.outputs[0]: node for node in nodes}
        self._constants = constants
        self._readers = Counter(name for node in nodes for name in node.inputs) + Counter([output])

    def gelu(self, node: Node) -> Node | None:
        """Return the Gelu that `node` ends, if it does: a product of x, 1/2 and 1 + erf(...) or 1 + tanh(...)."""
        number, factors = self._product(node)
        if node.op != "Mul" or len(factors) != 2 or not _near(number, 0.5):
            return None
        for x, other in (factors, reversed(factors)):
            added, terms = self._sum(other)
            if len(terms) == 1 and _near(added, 1.0) and (kind := self._inner(terms[0], x)) is not None:
                return replace(node, op="Gelu", inputs=(x,), attributes={"approximate": kind})
        return None

    def _inner(self, name: str, x: str) -> str | None:
        maker = self._makers.get(name)
        if maker is None or maker.op not in ("Erf", "Tanh"):
            return None
        number, factors = self._product(self._makers.get(maker.inputs[0]))
        if maker.op == "Erf":
            return "none" if factors == [x] and _near(number, math.sqrt(0.5)) else None
        if len(factors) != 1 or not _near(number, math.sqrt(2 / math.pi)):
            return None
        added, terms = self._sum(factors[0])
        if added != 0 or len(terms) != 2 or x not in terms:
            return None
        cubic, cubed = self._product(self._makers.get(terms[1 - terms.index(x)]))
        return "tanh" if _near(cubic, _CUBIC) and self._is_cube(cubed, x) else None

    def _is_cube(self, factors: list[str], x: str) -> bool:
        if factors == [x] * 3:
            return True
        maker = self._makers.get(factors[0]) if len(factors) == 1 else None
        return (
            maker is not None
            and maker.op == "Pow"
            and maker.inputs[0] == x
            and _near(self._number(maker.inputs[1]) or 0.0, 3.0)
        )

    def _number(self, name: str) -> float | None:
        value = self._constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def _product(self, node: Node | None) -> tuple[float, list[str]]:
        """Return the numbers multiplied and the names of the other factors of a tree of Mul and Div."""
        if node is None or node.op not in ("Mul", "Div"):
            return 1.0, [] if node is None else [node.outputs[0]]
        total, factors = 1.0, list[str]()
        for index, name in enumerate(node.inputs):
            number = self._number(name)
            if number is not None and number != 0:
                total *= 1 / number if node.op == "Div" and index else number
                continue
            if node.op == "Div" and index:
                return 1.0, [node.outputs[0]]
            inner = self._makers.get(name)
            # A product that others read as well is a factor of its own.
            if inner is not None and inner.op in ("Mul", "Div") and self._readers[name] == 1:
                number, more = self._product(inner)
                total *= number
                factors += more
            else:
                factors.append(name)
        return total, factors

    def _sum(self, name: str) -> tuple[float, list[str]]:
        maker = self._makers.get(name)
        if maker is None or maker.op != "Add":
            return 0.0, [name]
        numbers = [self._number(term) for term in maker.inputs]
        return (
            sum(number for number in numbers if number is not None),
            [term for term, number in zip(maker.inputs, numbers, strict=True) if number is None],
        )


def _near(value: float, target: float) -> bool:
    return abs(value - target) < _TOLERANCE * target


def without_label(model: onnx.ModelProto) -> None:
    """Make the scores the output of a model that ends in the index of the largest one."""
    graph = model.graph
    if len(graph.output) != 1 or not graph.input:
        return
    makers = {name: node for node in graph.node for name in node.output if name}
    name = graph.output[0].name
    while (node := makers.get(name)) is not None and node.op_type in _LABEL_WRAPPERS:
        name = node.input[0]
    if node is None or not _is_label(node, name, makers, graph):
        return
    kind = graph.input[0].type.tensor_type.elem_type
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], kind, [None, None]))


def _is_label(node: onnx.NodeProto, name: str, makers: Mapping[str, onnx.NodeProto], graph: onnx.GraphProto) -> bool:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "ArgMax":
        # Over the classes of (batch, classes), the first of equal ones.
        return attributes.get("axis", 0) in (1, -1) and not attributes.get("select_last_index", 0)
    if node.op_type != "TopK" or len(node.output) < 2 or name != node.output[1]:
        return False
    counts = [attributes["k"]] if "k" in attributes else list(_integers(node.input[1], makers, graph))
    return counts == [1] and attributes.get("axis", -1) in (1, -1) and bool(attributes.get("largest", 1))


def _integers(name: str, makers: Mapping[str, onnx.NodeProto], graph: onnx.GraphProto) -> Iterator[int]:
    tensors = [tensor for tensor in graph.initializer if tensor.name == name]
    node = makers.get(name)
    if node is not None and node.op_type == "Constant":
        tensors += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    for tensor in tensors:
        yield from (int(entry) for entry in np.asarray(onnx.numpy_helper.to_array(tensor)).reshape(-1))
