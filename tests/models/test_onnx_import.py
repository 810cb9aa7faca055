"""Hand-made graphs: every operator's variants against onnx's own evaluator, and every refusal by its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from finode.errors import InputError, ModelError, RangeExceeded, UnsupportedOperator
from finode.models.float_run import run_float
from finode.models.onnx_import import SUPPORTED, import_onnx
from tests.models.building import BATCH, assert_same_as_reference, imported, model, node, ops, reference

IMAGE = (BATCH, 2, 6, 5)
RANDOM = np.random.default_rng(7)


def random(*shape: int) -> npt.NDArray[np.float64]:
    return RANDOM.standard_normal(shape)


def flat(width: int, classes: int = 3) -> tuple[list[Any], dict[str, npt.NDArray[np.float64]]]:
    """Return the end of an image model: h -> y."""
    nodes = [node("Flatten", ["h"], ["flat"]), node("MatMul", ["flat", "W"], ["y"], name="head")]
    return nodes, {"W": random(width, classes)}


def with_head(first: Sequence[Any], width: int, constants: Mapping[str, npt.ArrayLike], **options: Any) -> Any:
    nodes, head = flat(width)
    return model([*first, *nodes], IMAGE, {**constants, **head}, **options)


# ---- operators


@pytest.mark.parametrize(
    ("attributes", "width"),
    [
        ({}, 4 * 4 * 3),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 4 * 3 * 3),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, 4 * 3 * 3),
        ({"auto_pad": "VALID"}, 4 * 4 * 3),
        ({"pads": [0, 1, 2, 3], "strides": [2, 1]}, 4 * 3 * 7),
        ({"dilations": [2, 1], "pads": [1, 0, 1, 0]}, 4 * 4 * 3),
    ],
)
def test_conv_windows(attributes: dict[str, Any], width: int) -> None:
    conv = node("Conv", ["x", "K", "B"], ["h"], **attributes)
    assert_same_as_reference(with_head([conv], width, {"K": random(4, 2, 3, 3), "B": random(4)}))


@pytest.mark.parametrize(
    ("attributes", "width"),
    [
        ({"kernel_shape": [2, 2]}, 2 * 5 * 4),
        ({"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 2 * 3 * 3),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 2 * 3 * 3),
        ({"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, 2 * 3 * 3),
    ],
)
def test_max_pool_windows(attributes: dict[str, Any], width: int) -> None:
    assert_same_as_reference(with_head([node("MaxPool", ["x"], ["h"], **attributes)], width, {}))


@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pool_pads(count_include_pad: int) -> None:
    pool = node(
        "AveragePool",
        ["x"],
        ["h"],
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        count_include_pad=count_include_pad,
    )
    found = assert_same_as_reference(with_head([pool], 2 * 3 * 3, {}))
    assert found.plan.steps[0].count_include_pad is bool(count_include_pad)


def test_average_pool_in_ceil_mode_leaves_out_what_lies_beyond_the_edge() -> None:
    # By hand: torch's answer, which onnx's evaluator of some versions does not give.
    pool = node("AveragePool", ["x"], ["h"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    found = imported(model([pool, node("Flatten", ["h"], ["y"])], IMAGE))
    x = random(1, 2, 6, 5)
    pooled = run_float(found.plan, found.weights, x).reshape(2, 3, 3)
    np.testing.assert_allclose(pooled[:, :, 2], x[0, :, :, 4].reshape(2, 3, 2).mean(axis=2))


def test_gemm_transposed_and_scaled() -> None:
    gemm = node("Gemm", ["x", "W", "C"], ["y"], transB=1, alpha=0.5, beta=-2.0)
    found = assert_same_as_reference(model([gemm], (BATCH, 4), {"W": random(3, 4), "C": random(1, 3)}))
    assert found.plan.weights[0].shape == (3, 4)


@pytest.mark.parametrize("addend", [(), (1,), (3,), (1, 3)])
def test_addend_after_matmul_is_folded_into_its_bias(addend: tuple[int, ...]) -> None:
    nodes = [node("MatMul", ["x", "W"], ["h"]), node("Add", ["B", "h"], ["y"])]
    found = assert_same_as_reference(model(nodes, (BATCH, 4), {"W": random(4, 3), "B": random(*addend)}))
    assert ops(found) == ["linear"]


def test_addend_after_conv_is_folded_only_if_it_is_per_channel() -> None:
    conv, head = node("Conv", ["x", "K"], ["c"]), 4 * 4 * 3
    per_channel = with_head(
        [conv, node("Add", ["c", "B"], ["h"])], head, {"K": random(4, 2, 3, 3), "B": random(4, 1, 1)}
    )
    per_pixel = with_head([conv, node("Add", ["c", "B"], ["h"])], head, {"K": random(4, 2, 3, 3), "B": random(1, 4, 3)})
    assert ops(assert_same_as_reference(per_channel)) == ["conv", "reshape", "linear"]
    assert ops(assert_same_as_reference(per_pixel)) == ["conv", "add_weight", "reshape", "linear"]


def test_nothing_is_folded_into_a_value_that_others_read() -> None:
    nodes = [
        node("MatMul", ["x", "W"], ["h"]),
        node("Add", ["h", "B"], ["a"], name="first"),
        node("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"]),
        node("Add", ["a", "n"], ["y"], name="last"),
    ]
    statistics = {"s": random(3), "b": random(3), "m": random(3), "v": random(3) ** 2 + 0.1}
    found = assert_same_as_reference(model(nodes, (BATCH, 4), {"W": random(4, 3), "B": random(3), **statistics}))
    assert ops(found) == ["linear", "add_weight", "scale", "add"]


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 17, 20])
def test_batch_normalization_in_all_opsets(opset: int) -> None:
    nodes = [
        node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"], epsilon=1e-3),
        node("Conv", ["n", "K"], ["c"]),
        node("BatchNormalization", ["c", "s", "b", "m", "v"], ["h"], name="second"),
    ]
    constants = {"s": random(2), "b": random(2), "m": random(2), "v": random(2) ** 2 + 0.1, "K": random(2, 2, 3, 3)}
    # The reference evaluator has no batch-norm of the oldest opsets, where it means the same in evaluation.
    found = imported(with_head(nodes, 24, constants, opset=opset))
    x = random(2, 2, 6, 5)
    newest = with_head(nodes, 24, constants, opset=20)
    newest.graph.initializer[-1].CopyFrom(
        numpy_helper.from_array(found.weights["linear1.weight"].T.astype(np.float32), "W")
    )
    expected = reference(newest, x)
    assert ops(found) == ["scale", "conv", "reshape", "linear"]
    np.testing.assert_allclose(run_float(found.plan, found.weights, x), expected, atol=1e-4)


def test_dropout_and_identity_leave_no_step() -> None:
    nodes = [
        node("Identity", ["x"], ["i"]),
        node("Dropout", ["i", "ratio", "training"], ["d"]),
        node("Identity", ["K"], ["K2"], name="shared"),
        node("Gemm", ["d", "K2"], ["y"]),
    ]
    constants: dict[str, npt.ArrayLike] = {"ratio": 0.5, "training": np.asarray(False), "K": random(4, 3)}
    assert ops(assert_same_as_reference(model(nodes, (BATCH, 4), constants))) == ["linear"]


def test_old_dropout_has_a_ratio_attribute() -> None:
    nodes = [node("Dropout", ["x"], ["d"], ratio=0.5), node("MatMul", ["d", "K"], ["y"])]
    assert ops(imported(model(nodes, (BATCH, 4), {"K": random(4, 3)}, opset=10))) == ["linear"]


def test_constant_nodes_and_transposed_weights_are_data() -> None:
    value = numpy_helper.from_array(random(3, 4).astype(np.float32))
    nodes = [
        node("Constant", [], ["K"], value=value),
        node("Transpose", ["K"], ["KT"], perm=[1, 0]),
        node("MatMul", ["x", "KT"], ["y"]),
    ]
    assert ops(assert_same_as_reference(model(nodes, (BATCH, 4)))) == ["linear"]


@pytest.mark.parametrize("target", [[-1, 60], [0, -1], [0, 60]])
def test_reshape_targets(target: list[int]) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["h"]), node("Gemm", ["h", "W"], ["y"])]
    assert_same_as_reference(model(nodes, IMAGE, {"shape": np.asarray(target), "W": random(60, 3)}))


def test_reshapes_in_a_row_are_one() -> None:
    nodes = [
        node("Reshape", ["x", "shape"], ["r"]),
        node("Flatten", ["r"], ["h"]),
        node("Gemm", ["h", "W"], ["y"]),
    ]
    found = assert_same_as_reference(model(nodes, IMAGE, {"shape": np.asarray([0, 12, 5]), "W": random(60, 3)}))
    assert ops(found) == ["reshape", "linear"]


def test_fixed_batch_of_one_becomes_any_batch() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["h"]), node("Gemm", ["h", "W"], ["y"])]
    found = imported(model(nodes, (1, 2, 6, 5), {"shape": np.asarray([1, 60]), "W": random(60, 3)}))
    x = random(4, 2, 6, 5)
    expected = x.reshape(4, 60) @ found.weights["linear1.weight"].T
    np.testing.assert_allclose(run_float(found.plan, found.weights, x), expected)


def test_input_of_two_dimensions_that_is_flattened() -> None:
    nodes = [node("Flatten", ["x"], ["h"]), node("Gemm", ["h", "W"], ["y"])]
    assert assert_same_as_reference(model(nodes, (BATCH, 3, 4), {"W": random(12, 3)})).input_shape == (3, 4)


@pytest.mark.parametrize("axis", [[2, 3], [-1, -2]])
def test_mean_over_height_and_width_is_global_average_pool(axis: list[int]) -> None:
    mean = node("ReduceMean", ["x", "axes"], ["h"], keepdims=1)
    found = assert_same_as_reference(with_head([mean], 2, {"axes": np.asarray(axis)}, opset=18))
    assert ops(found)[0] == "global_average_pool"
    assert found.operators == ("Flatten", "GlobalAveragePool", "MatMul")


def test_global_average_pool() -> None:
    assert_same_as_reference(with_head([node("GlobalAveragePool", ["x"], ["h"])], 2, {}))


@pytest.mark.parametrize(("opset", "axis"), [(11, None), (11, 1), (13, -1), (13, 1), (17, None)])
def test_softmax_at_the_end_is_recognised(opset: int, axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        node("Gemm", ["x", "W"], ["h"]),
        node("Softmax", ["h"], ["p"], **attributes),
        node("Identity", ["p"], ["y"]),
    ]
    found = assert_same_as_reference(model(nodes, (BATCH, 4), {"W": random(4, 3)}, opset=opset))
    assert found.softmax_at_end
    assert ops(found) == ["linear"]


def test_softmax_inside_is_a_step() -> None:
    nodes = [
        node("Gemm", ["x", "W"], ["h"], name="a"),
        node("Softmax", ["h"], ["p"]),
        node("Gemm", ["p", "W2"], ["y"], name="b"),
    ]
    found = assert_same_as_reference(model(nodes, (BATCH, 4), {"W": random(4, 3), "W2": random(3, 3)}))
    assert not found.softmax_at_end
    assert ops(found) == ["linear", "softmax", "linear"]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_other_widths(kind: type[np.floating[Any]]) -> None:
    proto = model(
        [node("Gemm", ["x", "W"], ["y"])], (BATCH, 4), element=helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    )
    weight = random(4, 3).astype(kind)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    np.testing.assert_array_equal(imported(proto).weights["linear1.weight"], weight.T.astype(np.float64))


def test_names_of_the_file_do_not_reach_the_plan() -> None:
    found = imported(model([node("Gemm", ["x", "W"], ["y"], name="secret-project")], (BATCH, 4), {"W": random(4, 3)}))
    assert b"secret" not in found.plan.encode()
    assert found.origins == {"linear1": "secret-project"}


def test_weights_beside_the_file(tmp_path: Path) -> None:
    proto = model([node("Gemm", ["x", "W"], ["y"])], (BATCH, 4), {"W": random(4, 3)})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert import_onnx(path).parameters == 12
    with pytest.raises(ModelError, match="which bytes alone cannot name"):
        import_onnx(path.read_bytes())
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="weights' file cannot be read"):
        import_onnx(path)


# ---- refusals


def test_unsupported_operator_is_named_with_its_node_and_the_list() -> None:
    proto = model([node("Elu", ["x"], ["y"], name="gate-3")], (BATCH, 4))
    with pytest.raises(UnsupportedOperator) as caught:
        import_onnx(proto.SerializeToString(), name="m.onnx")
    assert "m.onnx" in caught.value.message
    assert "Elu" in caught.value.message
    assert "'gate-3'" in caught.value.message
    assert all(operator in caught.value.hint for operator in SUPPORTED)


def test_operator_of_another_domain_is_unsupported() -> None:
    proto = model([node("Gemm", ["x", "W"], ["y"], domain="com.acme")], (BATCH, 4), {"W": random(4, 3)})
    with pytest.raises(UnsupportedOperator, match=r"com\.acme\.Gemm"):
        imported(proto)


def test_mean_over_channels_is_unsupported() -> None:
    proto = with_head([node("ReduceMean", ["x"], ["h"], axes=[1])], 30, {})
    with pytest.raises(UnsupportedOperator, match="ReduceMean"):
        imported(proto)


GEMM = node("Gemm", ["x", "W"], ["y"])
W = {"W": np.ones((4, 3))}
K = {"K": np.ones((4, 2, 3, 3))}
STATISTICS = {name: np.ones(2) for name in ("s", "b", "m", "v")}


def dilated_pool() -> Any:
    return with_head([node("MaxPool", ["x"], ["h"], kernel_shape=[2, 2], dilations=[2, 2])], 24, {})


def ceiled_average() -> Any:
    pool = node("AveragePool", ["x"], ["h"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1)
    return with_head([pool], 18, {}, opset=19)


def two_inputs() -> Any:
    proto = model([node("Add", ["x", "x2"], ["y"])], (BATCH, 4))
    proto.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, [BATCH, 4]))
    return proto


def two_outputs() -> Any:
    proto = model([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["z"], name="other")], (BATCH, 4))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [BATCH, 4]))
    return proto


def volume() -> Any:
    nodes = [node("Conv", ["x", "K"], ["c"]), node("Flatten", ["c"], ["y"])]
    return model(nodes, (BATCH, 1, 4, 4, 4), {"K": np.ones((1, 1, 3, 3, 3))})


def signal() -> Any:
    nodes = [node("Conv", ["x", "K"], ["c"]), node("Flatten", ["c"], ["y"])]
    return model(nodes, (BATCH, 1, 9), {"K": np.ones((1, 1, 3))})


def trained_norm() -> Any:
    norm = node("BatchNormalization", ["x", "s", "b", "m", "v"], ["h", "mean", "variance"], training_mode=1)
    return with_head([norm], 60, STATISTICS)


def training_dropout() -> Any:
    nodes = [node("Dropout", ["x", "", "training"], ["d"]), node("Gemm", ["d", "W"], ["y"])]
    return model(nodes, (BATCH, 4), {**W, "training": np.asarray(True)})


def channel_softmax() -> Any:
    return with_head([node("Softmax", ["x"], ["h"], axis=1)], 60, {})


def image_out() -> Any:
    return model([node("Conv", ["x", "K"], ["y"])], IMAGE, K, output_rank=4)


REFUSALS = {
    "two inputs": (two_inputs, "2 inputs"),
    "two outputs": (two_outputs, "2 outputs"),
    "fixed batch": (lambda: model([GEMM], (8, 4), W), "fixed batch of 8"),
    "integer input": (lambda: model([GEMM], (BATCH, 4), W, element=TensorProto.INT64), "must be floating-point"),
    "no batch": (lambda: model([GEMM], (4,), W), "no batch dimension"),
    "old opset": (lambda: model([GEMM], (BATCH, 4), W, opset=6), "opset 6"),
    "volume": (volume, "convolution over 3 dimensions"),
    "signal": (signal, "convolution over 1 dimensions"),
    "infinite weight": (lambda: model([GEMM], (BATCH, 4), {"W": np.full((4, 3), np.inf)}), "NaN or infinite"),
    "nan weight": (lambda: model([GEMM], (BATCH, 4), {"W": np.full((4, 3), np.nan)}), "NaN or infinite"),
    "training norm": (trained_norm, "training mode"),
    "training dropout": (training_dropout, "training mode"),
    "channel softmax": (channel_softmax, "over the last dimension"),
    "image out": (image_out, "must be \\(batch, classes\\)"),
    "dilated pool": (dilated_pool, "a pool here has none"),
    "ceiled average": (ceiled_average, "ceil_mode"),
    "one class": (lambda: model([GEMM], (BATCH, 4), {"W": np.ones((4, 1))}), "at least 2 classes"),
    "transposed batch": (
        lambda: model([node("Gemm", ["x", "W"], ["y"], transA=1)], (1, 1), {"W": np.ones((1, 3))}),
        "transA",
    ),
    "left constant": (
        lambda: model([node("MatMul", ["W", "x"], ["h"]), node("Flatten", ["h"], ["y"])], (BATCH, 3, 5), W),
        "constant on the left",
    ),
    "computed kernel": (
        lambda: model([node("Relu", ["x"], ["r"]), node("Gemm", ["x", "r"], ["y"])], (1, 1)),
        "must be a constant",
    ),
    "addend per sample": (
        lambda: model([node("Add", ["x", "W"], ["y"])], (1, 4), {"W": np.ones((3, 4))}),
        "the batch must stay",
    ),
    "wider addend": (
        lambda: with_head([node("Add", ["x", "B"], ["h"])], 60, {"B": np.ones((2, 1, 6, 5))}),
        "not a valid ONNX model|the batch must stay",
    ),
    "batch moved": (
        lambda: model([node("Flatten", ["x"], ["h"], axis=2), node("Gemm", ["h", "W"], ["y"])], (BATCH, 3, 4), W),
        "batch must stay the first",
    ),
    "constant output": (
        lambda: model([node("Add", ["W", "W"], ["y"])], (BATCH, 4), W),
        "does not depend on the input",
    ),
    "nothing to do": (lambda: model([node("Identity", ["x"], ["y"])], (BATCH, 4)), "a plan has 1 to"),
    "used mask": (
        lambda: model([node("MaxPool", ["x"], ["p", "i"], kernel_shape=[2, 2]), node("Flatten", ["i"], ["y"])], IMAGE),
        "not a valid ONNX model|second output|is a constant|shape",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_says_what_and_where(name: str) -> None:
    make, words = REFUSALS[name]
    with pytest.raises(ModelError, match=words) as caught:
        imported(make())
    assert caught.value.message.startswith("hand-made.onnx")


def test_weights_beyond_any_engine_are_refused_by_their_node() -> None:
    with pytest.raises(RangeExceeded, match=r"a weight of node 'the-Gemm' reaches 2e\+06"):
        imported(model([GEMM], (BATCH, 4), {"W": np.full((4, 3), 2e6)}))


def test_dynamic_height_is_refused_by_its_dimension() -> None:
    nodes, head = flat(60)
    with pytest.raises(ModelError, match=r"dimension 2 of the input 'x' is not fixed \(height\)"):
        imported(model([node("Relu", ["x"], ["h"]), *nodes], (BATCH, 2, "height", 5), head))


@pytest.mark.parametrize(
    "data", [b"", b"not an onnx file", b"\x00" * 100, b"\x08\x08", bytes(range(256)), b"\x3a\xff\xff\xff\xff\x07"]
)
def test_a_corrupt_file_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        import_onnx(path)


def test_every_truncation_and_many_flips_of_a_file_are_refused_or_harmless() -> None:
    nodes, head = flat(48)
    whole = model(
        [node("Conv", ["x", "K"], ["h"]), *nodes], IMAGE, {"K": random(4, 2, 3, 3), **head}
    ).SerializeToString()
    for length in range(0, len(whole), 17):
        with pytest.raises(ModelError):
            import_onnx(whole[:length])
    for position in RANDOM.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[position] ^= int(RANDOM.integers(1, 256))
        try:
            found = import_onnx(bytes(flipped))
        except InputError:
            continue
        # A flip inside a weight's number is no damage that a reader could see: it is another, whole model.
        assert {spec.name: spec.shape for spec in found.plan.weights} == {k: v.shape for k, v in found.weights.items()}


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        import_onnx(tmp_path / "none.onnx")
    path = tmp_path / "big.onnx"
    path.write_bytes(model([GEMM], (BATCH, 4), W).SerializeToString())
    with pytest.raises(ModelError, match="over the limit of 50"):
        import_onnx(path, max_bytes=50)
