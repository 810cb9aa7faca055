"""A network of stand-ins: started, waited for, watched, found again, stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from finode.errors import ConfigError, DaemonUnavailable
from finode.testnet import processes
from finode.testnet.network import Network, NodeState, read_state, start, stop_detached
from finode.testnet.topology import Topology

pytestmark = [pytest.mark.slow, pytest.mark.trio]


def command(*options: str) -> tuple[str, ...]:
    return (sys.executable, str(Path(__file__).with_name("stand_in.py")), *options)


def ignore(_: NodeState) -> None:
    return


def assert_all_ended(network: Network) -> None:
    assert not any(node.process.is_running() for node in network.nodes)


async def test_all_get_ready_are_written_down_and_stop(tmp_path: Path, three_nodes: Topology) -> None:
    network = await start(three_nodes, tmp_path, command=command())
    ready: list[str] = []
    try:
        await network.wait_ready(lambda node: ready.append(node.name))

        assert sorted(ready) == ["east", "middle", "west"]
        state = read_state(tmp_path)
        assert state is not None
        assert state.nodes == network.nodes
        with pytest.raises(ConfigError, match=r"runs in .* already"):
            await start(three_nodes, tmp_path, command=command())
    finally:
        assert await network.stop() == ()

    assert_all_ended(network)
    assert read_state(tmp_path) is None


async def test_a_node_that_ends_before_it_is_ready_is_named_with_its_log(tmp_path: Path, three_nodes: Topology) -> None:
    network = await start(three_nodes, tmp_path, command=command("--crash", "west"))
    try:
        with pytest.raises(DaemonUnavailable) as caught:
            await network.wait_ready(ignore)
    finally:
        await network.stop()

    assert "node 'west' (West Clinic) ended with exit code 3" in caught.value.message
    assert "something is badly wrong" in caught.value.hint
    assert str(tmp_path / "west" / "log.jsonl") in caught.value.hint
    assert_all_ended(network)


async def test_nodes_that_are_not_ready_in_time_are_named(tmp_path: Path, three_nodes: Topology) -> None:
    network = await start(three_nodes, tmp_path, command=command("--unready"))
    try:
        with pytest.raises(DaemonUnavailable, match="3 of 3 nodes are not ready; east: it listens, but its workers"):
            await network.wait_ready(ignore, timeout_s=4)
    finally:
        await network.stop()


async def test_watching_tells_of_each_that_ends(tmp_path: Path, three_nodes: Topology) -> None:
    network = await start(three_nodes, tmp_path, command=command())
    ended: list[tuple[str, int]] = []
    try:
        await network.wait_ready(ignore)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.watch, lambda node, code: ended.append((node.name, code)))
            with trio.fail_after(20):
                running, killed = await stop_detached(tmp_path)
    finally:
        await network.stop()

    assert sorted(ended) == [("east", 0), ("middle", 0), ("west", 0)]
    assert (len(running), killed) == (3, ())


async def test_a_detached_network_is_found_again_and_what_ignores_signals_is_killed(
    tmp_path: Path, three_nodes: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "INTERRUPT_S", 2.0)
    monkeypatch.setattr(processes, "TERMINATE_S", 0.2)
    network = await start(three_nodes, tmp_path, command=command("--deaf", "east"))
    try:
        await network.wait_ready(ignore)
        network.detach()
    finally:
        running, killed = await stop_detached(tmp_path)

    assert [node.name for node in running] == ["east", "west", "middle"]
    assert [node.name for node in killed] == ["east"]
    assert_all_ended(network)
    with pytest.raises(ConfigError, match="no testnet runs in"):
        await stop_detached(tmp_path)


async def test_a_state_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "testnet.json").write_text("{}")

    with pytest.raises(ConfigError, match=r"cannot read .*testnet\.json"):
        await stop_detached(tmp_path)
