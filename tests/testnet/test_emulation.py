"""A testnet with links: its nodes dial through the relay, which is written down and stopped with them."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from finode.errors import ConfigError
from finode.testnet.links import KINDS, LinkTable
from finode.testnet.network import read_state, start, stop_detached
from finode.testnet.topology import Topology, parse_topology

LINKS = LinkTable("lan", KINDS["lan"])
STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))


@pytest.mark.slow
@pytest.mark.trio
async def test_each_node_dials_each_other_at_a_port_of_its_own(tmp_path: Path, three_nodes: Topology) -> None:
    network = await start(three_nodes, tmp_path, command=STAND_IN, links=LINKS)
    try:
        assert network.emulation is not None
        settings = {
            node.name: tomllib.loads((node.home / "finode.toml").read_text())["network"] for node in network.nodes
        }
        through = {name: found["dial_through"] for name, found in settings.items()}
        dialed = [address for addresses in through.values() for address in addresses]
        assert len(set(dialed)) == len(dialed) == 6
        for node in network.nodes:
            others = [other.peer for other in network.nodes if other is not node]
            assert [address.rpartition("/")[2] for address in through[node.name]] == others
        assert not set(dialed) & {address for found in settings.values() for address in found["listen"]}
        assert set((await network.emulation.traffic()).values()) == {0}
        state = read_state(tmp_path)
        assert state is not None
        assert state.relay == network.emulation.process
        assert network.emulation.process.is_running()
    finally:
        assert await network.stop() == ()
    assert not network.emulation.process.is_running()


@pytest.mark.slow
@pytest.mark.trio
async def test_a_detached_one_is_stopped_with_its_relay(tmp_path: Path, three_nodes: Topology) -> None:
    network = await start(three_nodes, tmp_path, command=STAND_IN, links=LINKS)
    assert network.emulation is not None
    try:
        network.detach()
    finally:
        await stop_detached(tmp_path)

    assert not network.emulation.process.is_running()


def test_a_topology_cannot_set_what_the_testnet_dials_through() -> None:
    node = '[[node]]\nname = "a"\norganization = "A"\nroles = ["party"]\n'
    with pytest.raises(ConfigError, match=r"\[network\] dial_through is set by the testnet itself"):
        parse_topology(node + "[node.settings.network]\ndial_through = []\n", Path("t.toml"))
