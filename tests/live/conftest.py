"""A real federation for the tests of this folder: ten daemons on loopback, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import trio
from onnx import TensorProto, helper, numpy_helper

from finode.config import Role
from finode.testnet.network import Network, start
from finode.testnet.topology import ModelFile, NodeSpec, Topology

LAYOUT: dict[str, tuple[Role, ...]] = {
    "owner-a": (Role.OWNER,),
    "owner-b": (Role.OWNER,),
    "party-1": (Role.PARTY,),
    "party-2": (Role.PARTY,),
    "party-3": (Role.PARTY,),
    "party-4": (Role.PARTY,),
    "party-5": (Role.PARTY,),
    "dealer-1": (Role.DEALER,),
    "dealer-2": (Role.DEALER,),
    "querier": (Role.QUERIER,),
}


def small_cnn(path: Path, seed: int) -> Path:
    """Write an ONNX model: 1x8x8, a convolution of 16 channels, ReLU, 10 classes."""
    generator = np.random.default_rng(seed)
    weights = {
        "cw": generator.normal(size=(16, 1, 3, 3)) / 3,
        "cb": generator.normal(size=16) / 10,
        "w": generator.normal(size=(10, 16 * 64)) / 32,
        "b": generator.normal(size=10) / 10,
    }
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1, name="gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return path


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    root = tmp_path_factory.mktemp("live")
    nodes = []
    for seed, (name, roles) in enumerate(LAYOUT.items()):
        models: tuple[ModelFile, ...] = ()
        if Role.OWNER in roles:
            models = (ModelFile(path=small_cnn(root / f"{name}.onnx", seed), service="small"),)
        nodes.append(NodeSpec(name=name, organization=f"org {name}", roles=roles, models=models))
    running = trio.run(start, Topology(federation="live", nodes=tuple(nodes)), root / "net")
    try:
        trio.run(running.wait_ready, lambda node: None)
        yield running
    finally:
        trio.run(running.stop)
