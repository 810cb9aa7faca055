"""`finode models` on real ONNX files, with and without a running daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from finode.cli.root import finode
from finode.daemon.home import init_home
from tests.fakes.api import serving_in_thread
from tests.fakes.node import FakeNode


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FINODE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    init_home(tmp_path / "home", "Clinic North")
    return tmp_path / "home"


def write_model(path: Path, *, operator: str = "Relu", seed: int = 0) -> Path:
    """Write a two-layer classifier of 4 values into 3 classes."""
    generator = np.random.default_rng(seed)
    weights = {
        "w1": generator.normal(size=(4, 5)),
        "b1": generator.normal(size=5),
        "w2": generator.normal(size=(5, 3)),
        "b2": generator.normal(size=3),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
            helper.make_node(operator, ["h"], ["r"], name="between"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="last"),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(finode, [str(argument) for argument in arguments])


def found(*arguments: object) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result, *says: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("finode: error: ")
    for text in says:
        assert text in result.stderr


def test_a_model_is_added_listed_shown_and_removed(home: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx")
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    np.save(tmp_path / "typical.npy", np.random.default_rng(1).normal(size=(20, 4)))

    assert "no models" in run("models", "list", "--home", home).stdout
    options = ["--labels", tmp_path / "labels.txt", "--price", 7, "--calibration", tmp_path / "typical.npy"]
    added = run("models", "add", model, "--service", "pets", *options, "--home", home)

    assert added.exit_code == 0, added.output
    assert "when the node starts" in added.stdout
    (entry,) = found("models", "list", "--home", home, "--json")
    assert (entry["service"], entry["price"], entry["classes"]) == ("pets", 7, ["cat", "dog", "bird"])
    assert entry["parameters"] == 4 * 5 + 5 + 5 * 3 + 3
    assert entry["version"] in added.stdout.replace("\n", "").replace(" ", "")
    table = run("models", "list", "--home", home).stdout
    assert entry["version"][:8] in table
    assert max(map(len, table.splitlines())) <= 80

    shown = found("models", "show", entry["version"][:6], "--home", home, "--json")
    assert shown["model"] == entry
    assert [step["operation"] for step in shown["plan"]] == ["linear", "relu", "linear"]
    text = run("models", "show", entry["version"][:6], "--home", home)
    assert text.exit_code == 0
    assert "cat, dog, bird" in text.stdout

    refused(run("models", "show", "zz", "--home", home), "no model matches 'zz'")
    refused(run("models", "add", model, "--service", "pets", "--home", home), "registered already")
    removed = run("models", "rm", entry["version"][:6], "--home", home)
    assert (removed.exit_code, removed.stdout) == (0, f"removed {entry['version'][:8]} of service pets\n")
    assert found("models", "list", "--home", home, "--json") == []
    assert not list((home / "models").glob("*.weights"))


def test_a_running_daemon_is_told(home: Path, tmp_path: Path) -> None:
    node = FakeNode()
    with serving_in_thread(node) as bound:
        (home / "api.json").write_text(json.dumps({"url": f"http://{bound}", "pid": os.getpid()}))
        model = write_model(tmp_path / "model.onnx")
        added = run("models", "add", model, "--service", "pets", "--home", home, "--json")
        assert added.exit_code == 0, added.output
        assert node.reloads == 1
        assert "no calibration inputs" in added.stderr
        version = json.loads(added.stdout)["model"]["version"]
        assert "withdraws" in run("models", "rm", version, "--home", home).stdout
        assert node.reloads == 2


def test_what_is_wrong_with_a_model_is_said(home: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(write_model(tmp_path / "whole.onnx").read_bytes()[:100])
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    strange = write_model(tmp_path / "strange.onnx", operator="Elu")

    def add(model: Path, *options: object) -> Result:
        return run("models", "add", model, "--service", "pets", "--home", home, *options)

    refused(add(tmp_path / "missing.onnx"), "missing.onnx")
    refused(add(tmp_path / "torn.onnx"), "torn.onnx")
    refused(add(strange), "Elu", "between", "Conv")
    refused(add(tmp_path / "whole.onnx", "--labels", tmp_path / "labels.txt"), "3 classes")
    refused(add(tmp_path / "whole.onnx", "--calibration", tmp_path / "nothing.npy"), "nothing.npy")
    assert found("models", "list", "--home", home, "--json") == []


def test_a_directory_that_is_no_home_is_refused(tmp_path: Path) -> None:
    for command in (["list"], ["show", "ab"], ["rm", "ab"]):
        refused(run("models", *command, "--home", tmp_path), "not the home of a node", "finode init")
