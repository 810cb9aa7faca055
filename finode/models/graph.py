"""An ONNX file as a checked graph of plain Python values, with the static shape of everything.

What a later stage need not know is settled here: opsets and their spellings, initializers against Constant nodes, local
functions, optional inputs and outputs, and the batch dimension. `read_graph` goes like this:

1. Parse the file, bring in external data, inline local functions.
2. Walk back from the output. Reshape's second input is not followed: what only computes shapes (Shape, Gather,
   Concat...) disappears, because shape inference already knows the shape. An operator outside `SUPPORTED` among the
   rest is refused by name.
3. Check the file with onnx.checker, set the batch dimension to a number that marks it, and infer all shapes strictly.
4. Compute what is constant (Constant, Identity, Transpose, Add of constants).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnx.numpy_helper
from google.protobuf.message import DecodeError

from finode.errors import ModelError, UnsupportedOperator
from finode.models.nodes import Node
from finode.models.patterns import with_gelus, without_label
from finode.models.shapes import PLACES, evaluate_integers, infer_shapes

SUPPORTED = (
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Dropout",
    "Erf",
    "Exp",
    "Flatten",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "Identity",
    "LeakyRelu",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
)
"""The ONNX operators that may stand between the input and the output (and Constant, which is data). An ArgMax or a
TopK of 1 may stand at the end."""

MAX_MODEL_BYTES = 512 << 20
"""Larger files are refused before they are parsed; protobuf itself ends at 2 GiB."""

MAX_VALUE_NUMEL = 1 << 24
"""Most elements of one sample of a value: an absurd shape is refused rather than computed."""

# Before opset 7 Add and others broadcast by attributes of their own; exporters left it behind in 2018.
OLDEST_OPSET = 7
# Stands for the batch during shape inference: a prime, so that no shape of a model contains it by chance.
_BATCH_MARK = 10007
_CONSTANT_FOLDED = ("Constant", "Identity", "Transpose", "Add")
_DOMAINS = ("", "ai.onnx")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked graph in the order of computation. `shapes` are those of one sample, without the batch."""

    source: str
    opset: int
    nodes: tuple[Node, ...]
    constants: dict[str, npt.NDArray[Any]] = field(repr=False)
    shapes: dict[str, tuple[int, ...]]
    input: str
    output: str

    def fail(self, message: str, hint: str = "") -> ModelError:
        """Return a `ModelError` that names the file."""
        return ModelError(f"{self.source}: {message}", hint=hint)

    def consumers(self, name: str) -> int:
        """Return how often a value is read, the graph's output counting as one reader."""
        return sum(node.inputs.count(name) for node in self.nodes) + (name == self.output)


def read_graph(source: Path | bytes, *, name: str = "", max_bytes: int = MAX_MODEL_BYTES) -> Graph:
    """Return the checked graph of an ONNX file or its bytes; `name` stands for bytes in messages.

    Raises `ModelError` that names the file and what is wrong, `UnsupportedOperator` for an operator outside the list.
    """
    label = str(source) if isinstance(source, Path) else (name or "the ONNX model")
    model = _parse(source, label, max_bytes)
    opset = _opset(model, label)
    graph = model.graph
    without_label(model)
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ModelError(
            f"{label} has {len(inputs)} inputs ({_names(inputs)}) and {len(graph.output)} outputs "
            f"({_names(graph.output)}); a model here has one of each",
            hint="export it with one tensor in and the scores of the classes out",
        )
    if graph.sparse_initializer:
        raise ModelError(f"{label} has sparse weights, which are not supported", hint="store them densely")

    reached = _reached(model, label)
    _refuse_unsupported(reached, label)
    batch = _mark_batch(inputs[0], label)
    shapes = infer_shapes(model, label)
    nodes = [_node(node) for node in reached]
    constants: dict[str, npt.NDArray[Any]] = dict(evaluate_integers(model, shapes))
    constants |= _constants(model, nodes, label)
    rest = with_gelus([node for node in nodes if node.outputs[0] not in constants], constants, graph.output[0].name)
    if graph.output[0].name in constants:
        raise ModelError(f"{label}: the output does not depend on the input")
    return Graph(
        source=label,
        opset=opset,
        nodes=rest,
        constants=constants,
        shapes=_sample_shapes(rest, inputs[0].name, shapes, batch, label),
        input=inputs[0].name,
        output=graph.output[0].name,
    )


def _parse(source: Path | bytes, label: str, max_bytes: int) -> onnx.ModelProto:
    try:
        data = source if isinstance(source, bytes) else _read(source, max_bytes)
        if len(data) > max_bytes:
            raise ModelError(f"{label} has {len(data)} bytes, over the limit of {max_bytes}")
        model = onnx.ModelProto.FromString(data)
    except OSError as error:
        raise ModelError(f"cannot read {label}: {error.strerror or error}") from None
    except DecodeError:
        raise ModelError(f"{label} is not an ONNX file, or it is damaged", hint="export or copy it again") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{label} is not an ONNX model: it has no graph", hint="export or copy it again")
    _load_external(model, source, label, max_bytes)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    return model


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(max_bytes + 1)


def _load_external(model: onnx.ModelProto, source: Path | bytes, label: str, max_bytes: int) -> None:
    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if not outside:
        return
    if isinstance(source, bytes):
        raise ModelError(f"{label} keeps weights in other files, which bytes alone cannot name", hint="give its path")
    size = 0
    for tensor in outside:
        if min(tensor.dims, default=0) < 0:
            raise ModelError(f"{label}: weight {tensor.name!r} has a negative dimension")
        size += 8 * math.prod(tensor.dims)
    if size > max_bytes:
        raise ModelError(f"{label} has about {size} bytes of weights in other files, over the limit of {max_bytes}")
    try:
        # onnx refuses a location outside the model's folder.
        onnx.load_external_data_for_model(model, str(source.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{label}: its weights' file cannot be read: {_first_line(error)}") from None


def _opset(model: onnx.ModelProto, label: str) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not versions or not OLDEST_OPSET <= versions[0] <= newest:
        found = str(versions[0]) if versions else "none"
        raise ModelError(
            f"{label} uses ONNX opset {found}; supported are {OLDEST_OPSET} to {newest}",
            hint="export it again with one of these, or convert it with onnx.version_converter",
        )
    return int(versions[0])


def _names(values: Any) -> str:
    return ", ".join(value.name for value in values) or "none"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reached(model: onnx.ModelProto, label: str) -> list[onnx.NodeProto]:
    """Return the nodes on the way from the input to the output, in file order."""
    makers = {output: index for index, node in enumerate(model.graph.node) for output in node.output if output}
    wanted = [model.graph.output[0].name]
    reached: set[int] = set()
    while wanted:
        index = makers.get(wanted.pop())
        if index is None or index in reached:
            continue
        reached.add(index)
        node = model.graph.node[index]
        # Where a Reshape or a Slice leads is known from shapes and constants.
        places = PLACES.get(node.op_type, ())
        wanted.extend(name for index, name in enumerate(node.input) if index not in places)
    if not reached:
        raise ModelError(f"{label}: nothing computes the output {model.graph.output[0].name!r}")
    return [model.graph.node[index] for index in sorted(reached)]


def _refuse_unsupported(nodes: list[onnx.NodeProto], label: str) -> None:
    # ReduceMean over height and width is a spelling of GlobalAveragePool: settled later, and refused there where it is
    # anything else.
    known = {*SUPPORTED, "Constant", "ReduceMean"}
    for node in nodes:
        if node.op_type not in known or node.domain not in _DOMAINS:
            raise unsupported(label, node.op_type, _node_name(node), node.domain)


def unsupported(label: str, op: str, node_name: str, domain: str = "", detail: str = "") -> UnsupportedOperator:
    """Return the error that names an operator, its node and what is supported."""
    full = op if domain in _DOMAINS else f"{domain}.{op}"
    return UnsupportedOperator(
        f"{label}: the operator {full} of node {node_name!r} is not supported{detail}",
        hint=f"supported are {', '.join(SUPPORTED)}",
    )


def _mark_batch(value: onnx.ValueInfoProto, label: str) -> int:
    """Set the input's batch dimension for shape inference; return what marks the batch from now on."""
    tensor = value.type.tensor_type
    kinds = onnx.TensorProto.DataType
    if tensor.elem_type not in (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16):
        # A damaged file may hold a number that is no type at all.
        found = kinds.Name(tensor.elem_type).lower() if tensor.elem_type in kinds.values() else "unknown"
        raise ModelError(f"{label}: the input {value.name!r} is of type {found}; it must be floating-point")
    dims = tensor.shape.dim
    if len(dims) < 2:
        raise ModelError(f"{label}: the input {value.name!r} has no batch dimension, or no other one")
    for index, dim in enumerate(dims):
        if index and dim.dim_value <= 0:
            raise ModelError(
                f"{label}: dimension {index} of the input {value.name!r} is not fixed ({dim.dim_param or 'unknown'})",
                hint="only the batch may be dynamic: export it for one input size",
            )
    batch = dims[0]
    if batch.dim_value > 1:
        raise ModelError(
            f"{label}: the input {value.name!r} has a fixed batch of {batch.dim_value}",
            hint="export it with a dynamic batch dimension, or with a batch of 1",
        )
    # With a batch fixed at 1 the model may rely on it (a Reshape to (1, 64)), so shapes are inferred at 1.
    mark = 1 if batch.dim_value == 1 else _BATCH_MARK
    batch.dim_value = mark
    return mark


def _node_name(node: onnx.NodeProto) -> str:
    return node.name or (node.output[0] if node.output else "") or node.op_type


def _node(node: onnx.NodeProto) -> Node:
    attributes = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return Node(node.op_type, _node_name(node), tuple(node.input), tuple(node.output), attributes)


def _constants(model: onnx.ModelProto, nodes: list[Node], label: str) -> dict[str, npt.NDArray[Any]]:
    values: dict[str, npt.NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        values[tensor.name] = _array(tensor, label)
    for node in nodes:
        if node.op in _CONSTANT_FOLDED and all(name in values for name in node.inputs if name):
            values[node.outputs[0]] = _fold(node, [values[name] for name in node.inputs if name], label)
    return values


def _array(tensor: onnx.TensorProto, label: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"{label}: the weight {tensor.name!r} is damaged: {_first_line(error)}") from None
    # bfloat16 and its kin are not numpy's own kinds.
    return array if array.dtype.kind in "fiub" else array.astype(np.float64)


def _fold(node: Node, values: list[npt.NDArray[Any]], label: str) -> npt.NDArray[Any]:
    if node.op == "Identity":
        return values[0]
    if node.op == "Transpose":
        return np.transpose(values[0], node.attributes.get("perm"))
    if node.op == "Add":
        return np.asarray(values[0] + values[1])
    (kind, value), *others = node.attributes.items() or [("nothing", None)]
    if others or kind not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise ModelError(f"{label}: {node} holds {kind}, not numbers")
    return _array(value, label) if kind == "value" else np.asarray(value)


def _sample_shapes(
    nodes: tuple[Node, ...], input_name: str, shapes: dict[str, tuple[int, ...]], batch: int, label: str
) -> dict[str, tuple[int, ...]]:
    samples = {input_name: shapes[input_name][1:]}
    outputs = [(node, name) for node in nodes for name in node.outputs[: None if node.op == "Split" else 1]]
    for node, name in outputs:
        shape = shapes.get(name)
        if shape is None:
            raise ModelError(f"{label}: the shape of {name!r} ({node}) depends on more than the batch")
        if not shape or shape[0] != batch:
            found = ", ".join("batch" if side == batch and batch > 1 else str(side) for side in shape)
            raise ModelError(f"{label}: {node} gives ({found}): the batch must stay the first dimension")
        samples[name] = shape[1:]
    for name, shape in samples.items():
        if any(side <= 0 or side == _BATCH_MARK for side in shape) or math.prod(shape) > MAX_VALUE_NUMEL:
            raise ModelError(f"{label}: {name!r} has the impossible or oversized shape {shape}")
    return samples
