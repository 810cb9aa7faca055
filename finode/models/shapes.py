"""The static shape of every value of an ONNX model, once its batch dimension is a number.

onnx's own inference does nearly all of it. What it gives up on is a Reshape whose target is computed from another
value's shape (`x.view(x.size(0), -1)`, as torch's older exporter writes it), or a Slice or Pad at a computed place: so
whatever computes shapes is evaluated here, value by value, with onnx's reference evaluator; the Reshape gets a constant
target, and the inference goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from finode.errors import ModelError

# What exporters make shapes from. All of it is evaluated on a handful of integers.
_SHAPE_OPERATORS = (
    "Add",
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Gather",
    "Identity",
    "Mod",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
)
_MAX_SHAPE_NUMEL = 64
PLACES = {"Pad": (1, 3), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,)}
"""The inputs that are no values, but integers that say where."""

Shapes = dict[str, tuple[int, ...]]
Integers = npt.NDArray[np.int64]


def infer_shapes(model: onnx.ModelProto, label: str) -> Shapes:
    """Return the shapes, with the batch, of all values whose shape is known; `model` is changed on the way.

    Raises `ModelError` when the model is not valid ONNX.
    """
    graph = model.graph
    try:
        onnx.checker.check_model(model)
        # Shapes that the exporter wrote down were for its own batch; only the input's counts.
        del graph.value_info[:]
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        while True:
            inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
            shapes = dict(_known(inferred))
            if not _settle_places(model, shapes):
                return shapes
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{label} is not a valid ONNX model: {first}") from None


def _known(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in tensor.shape.dim)


def _settle_places(model: onnx.ModelProto, shapes: Shapes) -> bool:
    """Give a constant for every computed integer that decides a shape and can be computed."""
    graph = model.graph
    waiting = [node for node in graph.node if node.op_type in PLACES and node.output[0] not in shapes]
    if not waiting:
        return False
    values = evaluate_integers(model, shapes)
    known = {tensor.name for tensor in graph.initializer}
    settled = False
    for node in waiting:
        for index in PLACES[node.op_type]:
            name = node.input[index] if index < len(node.input) else ""
            if name in values and name not in known:
                constant = f"finode-place-{len(graph.initializer)}"
                graph.initializer.append(onnx.numpy_helper.from_array(values[name].astype(np.int64), constant))
                node.input[index] = constant
                settled = True
    return settled


def evaluate_integers(model: onnx.ModelProto, shapes: Shapes) -> dict[str, Integers]:
    """Return every small integer value that follows from constants and known shapes."""
    values: dict[str, Integers] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            _keep(values, tensor.name, onnx.numpy_helper.to_array(tensor))
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes:
            start, end = (_attribute(node, name) for name in ("start", "end"))
            _keep(values, node.output[0], np.asarray(shapes[node.input[0]], dtype=np.int64)[start:end])
        elif node.op_type in _SHAPE_OPERATORS and all(name in values for name in node.input if name):
            inputs = {name: values[name] for name in node.input if name}
            try:
                _keep(values, node.output[0], _run(node, inputs, model))
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
                continue  # not a shape after all; what needs it is reported as of unknown shape
    return values


def _run(node: onnx.NodeProto, inputs: dict[str, Integers], model: onnx.ModelProto) -> Any:
    from onnx.reference import ReferenceEvaluator

    # As a model of its own, because the evaluator gives a bare node the newest opset, whatever it is told.
    one = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_empty_tensor_value_info(name) for name in inputs],
        [onnx.helper.make_empty_tensor_value_info(node.output[0])],
    )
    return ReferenceEvaluator(onnx.helper.make_model(one, opset_imports=model.opset_import)).run(None, inputs)[0]


def _attribute(node: onnx.NodeProto, name: str) -> int | None:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), None)


def _keep(values: dict[str, Integers], name: str, value: Any) -> None:
    array = np.asarray(value)
    if array.dtype.kind == "i" and array.size <= _MAX_SHAPE_NUMEL:
        values[name] = array
