"""Hand-made ONNX models, and what the reference evaluator says of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import torch
from onnx import TensorProto, helper, numpy_helper

from finode.models.float_run import run_float, softmax
from finode.models.onnx_import import ImportedModel, import_onnx

Floats = npt.NDArray[np.float64]
BATCH = "batch"


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=attributes.pop("name", f"the-{op}"), **attributes)


def model(
    nodes: Sequence[Any],
    input_shape: Sequence[int | str],
    constants: Mapping[str, npt.ArrayLike] | None = None,
    *,
    output: str = "y",
    output_rank: int = 2,
    opset: int = 17,
    element: int = TensorProto.FLOAT,
) -> Any:
    """Return a model with the input "x", the output `output` and initializers; floats become float32."""
    initializers = []
    for name, value in (constants or {}).items():
        array = np.asarray(value)
        initializers.append(
            numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        )
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", element, list(input_shape))],
        [helper.make_tensor_value_info(output, element, [None] * output_rank)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def imported(proto: Any) -> ImportedModel:
    return import_onnx(proto.SerializeToString(), name="hand-made.onnx")


def answer(model_: ImportedModel, x: Floats) -> Floats:
    """Return what the original model answers: probabilities if it ends in a softmax, the logits otherwise."""
    logits = run_float(model_.plan, model_.weights, x)
    return softmax(logits) if model_.softmax_at_end else logits


def reference(proto: Any, x: Floats) -> Floats:
    """Return what onnx's own evaluator answers."""
    (result,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x.astype(np.float32)})
    return np.asarray(result, dtype=np.float64)


def assert_same_as_reference(proto: Any, batch: int = 2) -> ImportedModel:
    """Import `proto` and hold the plan against onnx's own evaluator on random inputs."""
    model_ = imported(proto)
    x = np.random.default_rng(1).standard_normal((batch, *model_.input_shape))
    np.testing.assert_allclose(answer(model_, x), reference(proto, x), atol=1e-5, rtol=1e-5)
    return model_


def torchscript_export(module: torch.nn.Module, x: torch.Tensor, opset: int, *, fold: bool = True) -> bytes:
    """Export with torch's older exporter, whose graphs look different and which reaches old opsets."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x,),
            file,  # type: ignore[arg-type]  # a file object is what the older exporter writes to
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            dynamic_axes={"x": {0: BATCH}},
            do_constant_folding=fold,
            # In evaluation mode the exporter folds batch-norms itself; these tests want to see them.
            training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
        )
    return file.getvalue()


def ops(model_: ImportedModel) -> list[str]:
    return [step.op.value for step in model_.plan.steps]


def small_model(first: float = 1.0) -> bytes:
    """Return a file of (1, 2, 2) images and 3 classes: four pixels and one linear layer."""
    nodes = [node("Flatten", ["x"], ["h"]), node("Gemm", ["h", "W"], ["y"], transB=1, name="head")]
    weight = [[first, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, -1.0]]
    data: bytes = model(nodes, (BATCH, 1, 2, 2), {"W": weight}).SerializeToString()
    return data


def small_import(first: float = 1.0) -> ImportedModel:
    return import_onnx(small_model(first))
