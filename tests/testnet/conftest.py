"""Small topologies for the testnet's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from finode.testnet.topology import Topology, parse_topology


@pytest.fixture
def checkout() -> Path:
    return Path(__file__).parents[2]


@pytest.fixture
def three_nodes() -> Topology:
    text = "".join(
        f'[[node]]\nname = "{name}"\norganization = "{name.title()} Clinic"\nroles = {roles}\n'
        for name, roles in (("east", '["owner", "party"]'), ("west", '["party"]'), ("middle", '["dealer", "querier"]'))
    )
    return parse_topology(text + "[node.settings.session]\nround_timeout_s = 3\n", Path("three.toml"))
