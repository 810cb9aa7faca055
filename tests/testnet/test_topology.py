"""Topologies: what a file may say, and how its mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from finode.config import Role
from finode.errors import ConfigError
from finode.testnet.topology import default_topology, load_topology, parse_topology

NODES = """
[[node]]
name = "north"
organization = "North Hospital"
roles = ["owner", "party"]

[[node]]
name = "south"
organization = "South Bank"
roles = ["querier"]
"""


def test_the_default_has_five_owners_and_committees_that_outlive_one_node() -> None:
    topology = default_topology()

    organizations = [node.organization for node in topology.nodes]
    assert len(organizations) == len(set(organizations)) == 6
    assert len(topology.with_role(Role.OWNER)) == 5
    (querier,) = topology.with_role(Role.QUERIER)
    assert querier.roles == (Role.QUERIER,)
    for lost in topology.nodes:
        dealers = [node for node in topology.with_role(Role.DEALER) if node is not lost]
        assert any(
            len([node for node in topology.with_role(Role.PARTY) if node not in (lost, dealer)]) >= 2
            for dealer in dealers
        )


def test_the_example_in_configs_is_the_default(checkout: Path) -> None:
    assert load_topology(checkout / "configs" / "testnet.toml") == default_topology()


def test_a_nodes_settings_go_over_those_for_every_node() -> None:
    text = """
    federation = "clinics"
    [settings.session]
    round_timeout_s = 5
    deal_timeout_s = 7
    [[node]]
    name = "a"
    organization = "A"
    roles = ["owner"]
    [node.settings.session]
    round_timeout_s = 9
    [node.settings.owner]
    require_party = ["A"]
    [[node]]
    name = "b"
    organization = "B"
    roles = ["party", "dealer"]
    """

    first, second = parse_topology(text, Path("t.toml")).nodes

    assert first.settings == {
        "owner": {"require_party": ["A"]},
        "session": {"round_timeout_s": 9, "deal_timeout_s": 7},
    }
    assert second.settings == {"session": {"round_timeout_s": 5, "deal_timeout_s": 7}}
    assert second.roles == (Role.PARTY, Role.DEALER)


def test_model_files_are_relative_to_the_topology(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(
        NODES.replace(
            'roles = ["owner", "party"]',
            'roles = ["owner"]\n[[node.model]]\npath = "m.onnx"\nservice = "digits"\nlabels = "l.txt"\nprice = 3',
        )
    )

    model = load_topology(path).nodes[0].models[0]

    assert (model.path, model.labels, model.preprocess) == (tmp_path / "m.onnx", tmp_path / "l.txt", None)
    assert (model.service, model.price) == ("digits", 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[node]]", "[[node]", "not valid TOML"),
        ('"party"]', '"boss"]', "node 'north', roles.1: Input should be 'owner'"),
        ('roles = ["querier"]', "", "node 'south', roles: Field required"),
        ('name = "south"', 'name = "NORTH"', "two nodes are called 'north'"),
        ('name = "south"', "", "[[node]] number 2, name: Field required"),
        ('name = "south"', 'name = "../x"', "node '../x', name"),
        ('roles = ["querier"]', 'roles = []\ncolour = "red"', "colour: Extra inputs"),
        ('roles = ["querier"]', 'roles = ["querier"]\n[node.settings.nope]\na = 1', "no section [nope]"),
        (
            'roles = ["querier"]',
            'roles = ["querier"]\n[node.settings.node]\nworkers = 0',
            "node.workers: Input should be",
        ),
        ('roles = ["querier"]', 'roles = ["querier"]\n[node.settings.party]\nprise = 1', "party.prise: Extra inputs"),
        ('roles = ["querier"]', 'roles = ["querier"]\n[node.settings.api]\nbind = "x:1"', "[api] bind is set by"),
        ('roles = ["querier"]', 'roles = ["querier"]\n[[node.model]]\npath = "m"\nservice = "s"', "not the role owner"),
    ],
)
def test_a_mistake_is_named_with_its_node_and_field(old: str, new: str, said: str) -> None:
    assert old in NODES

    with pytest.raises(ConfigError) as caught:
        parse_topology(NODES.replace(old, new), Path("net.toml"))

    assert said in caught.value.message
    assert "net.toml" in caught.value.message


def test_one_node_is_no_network() -> None:
    with pytest.raises(ConfigError, match="2 to 32 nodes"):
        parse_topology(NODES[: NODES.index("[[node]]", 5)], Path("net.toml"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_topology(tmp_path / "none.toml")
