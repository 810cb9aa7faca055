"""Activations, products and what moves values: ONNX operators to plans, by hand-made graphs and torch's exporters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finode.errors import ModelError, UnsupportedOperator
from finode.models.float_run import run_float
from finode.models.onnx_import import import_onnx
from finode.models.torch_export import export_module
from finode.smpc.engine import Program
from finode.smpc.simulation import simulate_program
from tests.models.building import BATCH, assert_same_as_reference, imported, model, node, ops, torchscript_export

ROW = (BATCH, 6)
GRID = (BATCH, 2, 3, 4)


def random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def flattened(first: list[Any], constants: dict[str, Any] | None = None, **options: Any) -> Any:
    """A graph on grids that ends in a Flatten of the value "h"."""
    return model([*first, node("Flatten", ["h"], ["y"], name="end")], GRID, constants, **options)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp", "Erf", "LogSoftmax", "Neg"])
def test_functions_of_one_value(op: str) -> None:
    nodes = [node(op, ["x"], ["h"]), node("Gemm", ["h", "W"], ["y"])]
    assert_same_as_reference(model(nodes, ROW, {"W": random(6, 3)}))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    nodes = [node("Gelu", ["x"], ["y"], approximate=approximate)]
    found = assert_same_as_reference(model(nodes, ROW, opset=20))
    assert ops(found) == ["gelu" if approximate == "none" else "gelu_tanh"]


def test_leaky_relu_and_clips() -> None:
    found = assert_same_as_reference(model([node("LeakyRelu", ["x"], ["y"], alpha=0.2)], ROW))
    assert found.plan.steps[0].numbers == pytest.approx((0.2,))
    for inputs, bounds in ((["x", "a", "b"], (-0.5, 0.25)), (["x", "", "b"], (-np.inf, 0.25)), (["x"], None)):
        graph = model([node("Clip", inputs, ["y"])], ROW, {"a": np.float32(-0.5), "b": np.float32(0.25)})
        steps = assert_same_as_reference(graph).plan.steps
        assert steps[0].numbers == (bounds or (-np.inf, np.inf))
    old = imported(model([node("Clip", ["x"], ["y"], min=0.0, max=6.0)], ROW, opset=7))
    assert old.plan.steps[0].numbers == (0.0, 6.0)
    for op, numbers in (("Max", (0.5, np.inf)), ("Min", (-np.inf, 0.5))):
        found = assert_same_as_reference(model([node(op, ["x", "c"], ["y"])], ROW, {"c": np.float32(0.5)}))
        assert found.plan.steps[0].numbers == numbers


def test_a_product_with_a_constant_is_folded_moved_or_a_secret_weight() -> None:
    linear = node("Gemm", ["x", "W"], ["h"], name="first")
    last = node("Relu", ["s"], ["y"])
    for factor, expected in (
        (random(3), ["linear", "relu"]),
        (np.float32(0.3), ["linear", "relu"]),
        (random(1, 3), ["linear", "relu"]),
    ):
        nodes = [linear, node("Mul", ["h", "F"], ["s"]), last]
        assert ops(assert_same_as_reference(model(nodes, ROW, {"W": random(6, 3), "F": factor}))) == expected
    for factor, expected in (
        (np.float32(0.5), ["times"]),
        (np.float32(0.3), ["mul_weight"]),
        (random(6), ["mul_weight"]),
    ):
        found = assert_same_as_reference(model([node("Mul", ["F", "x"], ["y"])], ROW, {"F": factor}))
        assert ops(found) == expected
    found = assert_same_as_reference(model([node("Div", ["x", "F"], ["y"])], ROW, {"F": np.float32(8)}))
    assert found.plan.steps[0].numbers == (0.125,)


def test_differences_and_products_of_values() -> None:
    nodes = [
        node("Sub", ["x", "c"], ["a"], name="1"),
        node("Sub", ["c", "x"], ["b"], name="2"),
        node("Mul", ["a", "b"], ["m"], name="3"),
        node("Sub", ["m", "x"], ["d"], name="4"),
        node("Pow", ["d", "two"], ["p"], name="5"),
        node("Pow", ["x", "three"], ["q"], name="6"),
        node("Add", ["p", "q"], ["y"], name="7"),
    ]
    constants = {"c": random(6), "two": np.float32(2), "three": np.float32(3)}
    found = assert_same_as_reference(model(nodes, ROW, constants))
    assert ops(found) == ["add_weight", "times", "add_weight", "mul", "sub", "mul", "mul", "mul", "add"]


def test_what_moves_values() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Slice", ["t", "s", "e", "a", "d"], ["u"]),
        node("Pad", ["u", "p", "v"], ["w"]),
        node("Concat", ["w", "w"], ["h"], axis=-1),
    ]
    constants = {
        "s": np.asarray([-1, 1]),
        "e": np.asarray([-(2**62), 2**31]),
        "a": np.asarray([1, 2]),
        "d": np.asarray([-2, 1]),
        "p": np.asarray([0, 1, 0, 2, 0, 0, 1, 0]),
        "v": np.float32(-0.5),
    }
    found = assert_same_as_reference(flattened(nodes, constants))
    assert ops(found) == ["transpose", "slice", "pad", "concat", "reshape"]


@pytest.mark.parametrize("opset", [11, 18])
def test_split_is_slices_and_those_that_nobody_reads_are_none(opset: int) -> None:
    attributes: dict[str, Any] = {"split": [1, 2, 1]} if opset == 11 else {}
    inputs = ["x"] if opset == 11 else ["x", "sizes"]
    nodes = [node("Split", inputs, ["a", "b", "c"], axis=3, **attributes), node("Concat", ["c", "a"], ["h"], axis=1)]
    found = assert_same_as_reference(flattened(nodes, {"sizes": np.asarray([1, 2, 1])}, opset=opset))
    assert ops(found) == ["slice", "slice", "concat", "reshape"]


def test_squeeze_and_unsqueeze_are_reshapes() -> None:
    nodes = [
        node("Unsqueeze", ["x", "axis"], ["u"]),
        node("Squeeze", ["u", "axis"], ["s"]),
        node("Gemm", ["s", "W"], ["y"]),
    ]
    assert_same_as_reference(model(nodes, ROW, {"axis": np.asarray([1]), "W": random(6, 3)}))


@pytest.mark.parametrize(
    "end",
    [
        [node("ArgMax", ["h"], ["y"], axis=1, keepdims=0)],
        [node("ArgMax", ["h"], ["i"], axis=-1), node("Squeeze", ["i", "one"], ["y"])],
        [node("TopK", ["h", "one"], ["v", "y"], axis=-1)],
        [node("Softmax", ["h"], ["p"]), node("TopK", ["p", "one"], ["v", "i"]), node("Cast", ["i"], ["y"], to=1)],
    ],
    ids=["argmax", "squeezed", "top1", "after softmax"],
)
def test_a_label_at_the_end_is_cut_off(end: list[Any]) -> None:
    proto = model(
        [node("Gemm", ["x", "W"], ["h"]), *end],
        ROW,
        {"W": random(6, 3), "one": np.asarray([1])},
        output_rank=2 if end[-1].op_type in ("TopK", "Cast") else 1,
    )
    found = imported(proto)
    x = random(4, 6)
    assert ops(found) == ["linear"]
    np.testing.assert_allclose(run_float(found.plan, found.weights, x), x @ found.weights["linear1.weight"].T)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "two best": (
        lambda: model([node("TopK", ["x", "k"], ["v", "y"])], ROW, {"k": np.asarray([2])}),
        "operator TopK",
    ),
    "best value": (
        lambda: model([node("TopK", ["x", "k"], ["y", "i"])], ROW, {"k": np.asarray([1])}),
        "operator TopK",
    ),
    "label over the batch": (lambda: model([node("ArgMax", ["x"], ["y"], axis=0)], ROW), "operator ArgMax"),
    "quotient": (lambda: model([node("Div", ["x", "x"], ["y"])], ROW), "Div .* by a computed value"),
    "reciprocal": (lambda: model([node("Div", ["c", "x"], ["y"])], ROW, {"c": random(6)}), "by a computed value"),
    "zero": (lambda: model([node("Div", ["x", "c"], ["y"])], ROW, {"c": np.zeros(6)}), "divides by zero"),
    "larger of two": (lambda: model([node("Max", ["x", "x"], ["y"])], ROW), "but of a value and a number"),
    "square root": (lambda: model([node("Pow", ["x", "c"], ["y"])], ROW, {"c": np.float32(0.5)}), "exponent 0.5"),
    "wide bound": (lambda: model([node("Max", ["x", "c"], ["y"])], ROW, {"c": random(6)}), "a number is needed"),
    "mirrored pad": (
        lambda: flattened([node("Pad", ["x", "p"], ["h"], mode="reflect")], {"p": np.asarray([0, 0, 1, 1] * 2)}),
        "only constant pads",
    ),
    "negative pad": (
        lambda: flattened([node("Pad", ["x", "p"], ["h"])], {"p": np.asarray([0, 0, -1, 1] * 2)}),
        "less than nothing",
    ),
    "products of ranks": (
        lambda: model(
            [node("Flatten", ["x"], ["f"]), node("Mul", ["f", "x"], ["m"]), node("Flatten", ["m"], ["y"])], (1, 1, 4)
        ),
        "samples of the shapes",
    ),
    "joined batches": (lambda: model([node("Concat", ["x", "x"], ["y"], axis=0)], ROW), "batch"),
    "moved batch": (lambda: model([node("Transpose", ["x"], ["y"], perm=[1, 0])], (BATCH, 6)), "batch"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    make, words = REFUSALS[name]
    with pytest.raises(ModelError, match=words) as caught:
        imported(make())
    assert caught.value.message.startswith("hand-made.onnx")
    if isinstance(caught.value, UnsupportedOperator):
        assert "LeakyRelu, LogSoftmax" in caught.value.hint


# ---- torch's exporters


class Attention(nn.Module):
    """A small transformer block: what Transpose, MatMul of two secrets, softmax in the middle and GELU are for."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8 * 6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(-1, 6, 8)
        q, k, v = (part(x).reshape(-1, 6, 2, 4).transpose(1, 2) for part in self.parts[:3])
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        x = x + self.parts[3](mixed.transpose(1, 2).reshape(-1, 6, 8))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        result: torch.Tensor = self.head(x.flatten(1))
        return result


class Gated(nn.Module):
    """Products of computed values, chunks, pads and joins."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(48, 24), nn.Linear(27, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.first(x).chunk(2, 1)
        value = value * torch.sigmoid(gate) - 0.3 * value
        joined = torch.cat([nn.functional.pad(value, (1, 2)), 1 - gate.flip(1)], 1)
        return nn.functional.log_softmax(self.head(joined), -1)


class Residue(nn.Module):
    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.first, self.function, self.head = nn.Linear(48, 20), function, nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.function(self.first(x)))
        return result


MODULES: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "gated": Gated,
    "gelu": lambda: Residue(nn.GELU()),
    "gelu-tanh": lambda: Residue(nn.GELU(approximate="tanh")),
    "silu": lambda: Residue(nn.SiLU()),
    "relu6": lambda: Residue(nn.ReLU6()),
    "leaky-relu": lambda: Residue(nn.LeakyReLU(0.1)),
    "hardtanh": lambda: Residue(nn.Hardtanh(-1.0, 2.0)),
    "tanh": lambda: Residue(nn.Tanh()),
}


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_answers_as_in_torch_in_the_clear_and_on_shares(name: str, older: bool) -> None:
    torch.manual_seed(5)
    module, x = MODULES[name]().eval(), torch.randn(3, 48)
    data = torchscript_export(module, x, 17) if older else export_module(module, x)

    found = import_onnx(data)

    with torch.no_grad():
        real = module(x).softmax(-1).double().numpy()
    logits = torch.from_numpy(run_float(found.plan, found.weights, x.double().numpy()))
    np.testing.assert_allclose(logits.softmax(-1).numpy(), real, atol=1e-5)
    assert not {"erf", "mul"} & set(ops(found)) or name in ("gated", "silu")
    program = Program(
        plans=(found.plan,),
        deployments=(bytes(32),),
        parties=2,
        batch=3,
        fractional_bits=16,
        vote="soft",
        reveal="probabilities",
    )
    done = simulate_program(program, [found.weights], x.double().numpy())
    assert done.output.probabilities is not None
    assert np.abs(done.output.probabilities - real).max() < 0.002
