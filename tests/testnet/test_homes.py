"""The homes of a testnet: identities, rosters and settings that make the nodes find each other."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from finode.config import Role, load
from finode.errors import FinodeError
from finode.identity import Identity
from finode.testnet.homes import make_homes
from finode.testnet.topology import ModelFile, Topology


def test_each_home_is_a_nodes_and_knows_all(tmp_path: Path, three_nodes: Topology) -> None:
    homes = make_homes(three_nodes, tmp_path / "net")

    east, west, middle = homes
    assert len({home.port for home in homes}) == 3
    for home in homes:
        assert Identity.load(home.path / "identity.key").peer_id == home.peer
        roster = tomllib.loads((home.path / "roster.toml").read_text())["peer"]
        assert {(entry["id"], entry["organization"]) for entry in roster} == {
            (other.peer, other.spec.organization) for other in homes
        }
        config = load(home.path)
        assert config.node.organization == home.spec.organization
        assert config.network.listen == (f"/ip4/127.0.0.1/tcp/{home.port}",)
        assert config.api.bind == "127.0.0.1:0"
    assert load(east.path).network.bootstrap == (west.address,)
    assert load(middle.path).network.bootstrap == (east.address, west.address)
    assert load(middle.path).node.roles == (Role.DEALER, Role.QUERIER)
    assert load(middle.path).session.round_timeout_s == 3


def test_a_home_keeps_its_identity(tmp_path: Path, three_nodes: Topology) -> None:
    before = make_homes(three_nodes, tmp_path)
    after = make_homes(three_nodes, tmp_path)

    assert [home.peer for home in before] == [home.peer for home in after]
    assert load(after[0].path).network.bootstrap == (after[1].address,)


def test_new_homes_are_removed_when_a_model_is_not_one(tmp_path: Path, three_nodes: Topology) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    east, *others = three_nodes.nodes
    topology = replace(three_nodes, nodes=(replace(east, models=(ModelFile(path=broken, service="digits"),)), *others))

    with pytest.raises(FinodeError, match=r"broken\.onnx"):
        make_homes(topology, tmp_path / "net")

    assert list((tmp_path / "net").iterdir()) == []
