"""The models have the paper's shapes, and the plaintext answer is that of another implementation of ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from finode.daemon.admin import add_model
from finode.daemon.home import init_home
from finode.daemon.plaintext import soft_vote
from finode.errors import ModelError
from finode.models.onnx_import import import_onnx
from finode.smpc.engine import Program
from finode.smpc.native import NativeEngine
from finode.testnet.bench import models

PARAMETERS = {
    # Worked out from the shapes: layer by layer weights and biases, batch normalizations not counted.
    "mlp": 3072 * 512 + 512 + 512 * 10 + 10,
    "small-cnn": 32 * 28 + 64 * 289 + 4096 * 256 + 256 + 2570,
    "medium-cnn": 32 * 28 + 64 * 289 + 128 * 577 + 2048 * 512 + 512 + 5130,
    "large-cnn": 64 * 28 + 64 * 577 + 128 * 577 + 128 * 1153 + 512 * 513 + 256 * 513 + 2570,
    "lenet": 6 * 76 + 16 * 151 + 120 * 401 + 84 * 121 + 850,
    "lenet-avg": 6 * 76 + 16 * 151 + 120 * 401 + 84 * 121 + 850,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_has_the_shape_of_the_paper(name: str, tmp_path: Path) -> None:
    models.write_model(name, 1, tmp_path / "model.onnx")

    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sum(int(np.prod(weight.dims)) for weight in graph.initializer) == PARAMETERS[name]
    pools = [node.op_type for node in graph.node if "Pool" in node.op_type]
    assert set(pools) <= {"AveragePool" if name == "lenet-avg" else "MaxPool"}


@pytest.mark.slow
def test_resnet18_has_twenty_convolutions_and_no_max_pool(tmp_path: Path) -> None:
    models.write_model("resnet18", 1, tmp_path / "model.onnx")

    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    kernels = {weight.name: weight.dims for weight in graph.initializer if len(weight.dims) == 4}
    assert kinds.count("Conv") == kinds.count("BatchNormalization") == 20
    assert kinds.count("Add") == 8
    assert "MaxPool" not in kinds
    assert list(next(iter(kernels.values()))) == [64, 3, 3, 3]
    # The published count for CIFAR is 11,173,962: with two parameters of each normalized channel (4,800 of them) and
    # without the convolutions' biases, which a normalization makes superfluous.
    assert sum(int(np.prod(dims)) for dims in kernels.values()) + 5130 + 2 * 4800 == 11_173_962


@pytest.mark.slow
def test_resnet50_has_the_published_shape_and_the_engine_takes_it(tmp_path: Path) -> None:
    models.write_model("resnet50", 1, tmp_path / "model.onnx")

    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    kernels = [weight.dims for weight in graph.initializer if len(weight.dims) == 4]
    assert (kinds.count("Conv"), kinds.count("Add"), kinds.count("MaxPool")) == (53, 16, 1)
    # The published count for a thousand classes is 25,557,032: two parameters of each of 26,560 normalized channels,
    # no biases of convolutions, and a last layer of 2048 x 1000 + 1000.
    assert sum(int(np.prod(dims)) for dims in kernels) + 2 * 26_560 + 2_049_000 == 25_557_032

    plan = import_onnx(tmp_path / "model.onnx").plan
    program = Program(
        plans=(plan,),
        deployments=(b"d" * 32,),
        parties=2,
        batch=1,
        fractional_bits=16,
        vote="soft",
        reveal="probabilities",
    )
    assert plan.input_shape == (3, 224, 224)
    # What docs/performance.md says; batch normalizations are folded, so a weight is a kernel or the last layer.
    assert NativeEngine().memory_bytes(program) / 2**20 == pytest.approx(2931, abs=1)
    assert NativeEngine().correction_bytes(program) / 1e6 == pytest.approx(787.5, abs=0.1)


@pytest.mark.slow
def test_the_plaintext_answer_is_the_mean_of_what_onnx_itself_computes(tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "two"]
    x = models.inputs(2)
    expected = np.zeros((2, models.CLASSES))
    for seed, home in enumerate(homes):
        path = tmp_path / f"{seed}.onnx"
        models.write_model("lenet", seed, path)
        init_home(home, home.name)
        add_model(home, path, "lenets")
        (logits,) = ReferenceEvaluator(str(path)).run(None, {"x": x.astype(np.float32)})
        powers = np.exp(np.asarray(logits, np.float64))
        expected += powers / powers.sum(axis=1, keepdims=True) / 2

    assert np.abs(soft_vote(homes, "lenets", x) - expected).max() < 1e-5
    with pytest.raises(ModelError, match="no model of the service 'others'"):
        soft_vote(homes, "others", x)


def test_equal_seeds_give_equal_models_and_inputs(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        models.write_model("tiny", seed, tmp_path / name)

    a, b, c = ([w.raw_data for w in onnx.load(tmp_path / name).graph.initializer] for name in "abc")
    assert a == b != c
    assert np.array_equal(models.inputs(3), models.inputs(3))
