"""The wheel: what is in it, and that it answers queries far from the checkout."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from packaging.requirements import Requirement

import finode

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("finode", "cli", "testnet", "pyproject.toml", "README.md", "LICENSE")
CLASSES = 3
FEATURES = 4


def run(*command: str | Path, cwd: Path, timeout_s: float = 120) -> str:
    """Run a command as someone would who has no checkout; return what it printed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FINODE_", "PYTHON", "PIP_", "PYTEST_", "COVERAGE_"))
    }
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built without build isolation from a copy of the sources, so that nothing stale gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    command = ("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist")
    run(sys.executable, *command, cwd=source)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path line, after the wheel on sys.path; the .pth files over there, an editable finode's too, have no effect.
    (site / "dependencies.pth").write_text(
        "\n".join(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))
    )
    return folder


def test_the_wheel_holds_one_import_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata_name))
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        command = archive.read(entry_points).decode()

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"finode"}
    assert {"finode/py.typed", "finode/cli/__main__.py", "finode/testnet/commands.py"} <= names
    assert "finode/testnet/testnet.toml" in names
    assert not [name for name in names if "test_" in name]
    assert metadata["Name"] == "finode"
    assert metadata["Version"] == finode.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"torch<2.14,>=2.13", "libp2p==0.8.1"} <= set(metadata.get_all("Requires-Dist", []))
    assert "finode = finode.cli.__main__:main" in command


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    folders = {"finode": "finode", "cli": "finode/cli", "testnet": "finode/testnet"}
    expected = {
        f"{package}/{path.relative_to(CHECKOUT / folder).as_posix()}"
        for folder, package in folders.items()
        for path in (CHECKOUT / folder).rglob("*.py")
    }

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}

    assert packed == expected


def test_the_installed_command_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    python, command = installed / "bin" / "python", installed / "bin" / "finode"
    code = "import finode, finode.cli, finode.testnet as t; print(finode.__file__, finode.cli.__file__, t.__file__)"

    files = run(python, "-c", code, cwd=tmp_path).split()

    assert all(Path(file).is_relative_to(installed) for file in files)
    assert finode.__version__ in run(command, "--version", cwd=tmp_path)
    help_text = run(command, "--help", cwd=tmp_path)
    assert all(name in help_text for name in ("init", "start", "query", "models", "testnet"))
    for top in ("cli", "testnet"):
        assert "None" in run(python, "-c", f"import importlib.util as u; print(u.find_spec({top!r}))", cwd=tmp_path)


def test_a_federation_from_the_wheel_answers(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "finode"
    weight = np.array([[1.0, -1.0, 0.5, 0.0], [0.25, 1.0, -1.0, 0.5], [-0.5, 0.0, 1.0, 1.0]])
    inputs = np.array([[1.0, 2.0, -1.0, 0.5], [0.0, -1.0, 1.5, 1.0]])
    _write_linear_model(tmp_path / "model.onnx", weight)
    np.save(tmp_path / "inputs.npy", inputs)
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "topology.toml").write_text(TOPOLOGY)
    net = tmp_path / "net"

    run(command, "testnet", "up", "--topology", "topology.toml", "--dir", net, "--detach", cwd=tmp_path)
    try:
        query = ("query", "colors", "inputs.npy", "--json", "--home", net / "asker")
        answer = json.loads(run(command, *query, cwd=tmp_path))
    finally:
        run(command, "testnet", "down", "--dir", net, cwd=tmp_path)

    logits = inputs @ weight.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert answer["classes"] == ["red", "green", "blue"]
    assert answer["labels"] == [answer["classes"][index] for index in expected.argmax(axis=1)]
    assert np.abs(np.array(answer["probabilities"]) - expected).max() < 0.002
    assert len(answer["committee"]["parties"]) == 2


def test_the_constraints_fit_the_dependencies() -> None:
    pins = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    canonical = {name.lower().replace("_", "-"): version for name, version in pins.items()}

    for text in requirements:
        requirement = Requirement(text)
        assert canonical[requirement.name] in requirement.specifier, f"{text} is not met by constraints.txt"


TOPOLOGY = """
[[node]]
name = "owner"
organization = "Owner"
roles = ["owner", "party"]
[[node.model]]
path = "model.onnx"
service = "colors"
labels = "labels.txt"

[[node]]
name = "party"
organization = "Party"
roles = ["party"]

[[node]]
name = "dealer"
organization = "Dealer"
roles = ["dealer"]

[[node]]
name = "asker"
organization = "Asker"
roles = ["querier"]
"""


def _write_linear_model(path: Path, weight: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight"], ["logits"], name="linear", transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
