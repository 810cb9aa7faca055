"""`finode testnet up` with real daemons: it says who is what, tells of one that dies, and leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from finode.testnet.network import read_state

pytestmark = [pytest.mark.slow, pytest.mark.trio]

COMMAND = (sys.executable, "-m", "finode.cli", "testnet")
TOPOLOGY = """
[[node]]
name = "east"
organization = "East Clinic"
roles = ["owner", "party"]
[[node]]
name = "west"
organization = "West Clinic"
roles = ["querier"]
"""


class Output:
    """What a process prints, read until something is there."""

    def __init__(self, stream: trio.abc.ReceiveStream | None) -> None:
        assert stream is not None
        self._stream = stream
        self._text = ""

    async def until(self, text: str) -> None:
        with trio.move_on_after(60):
            while text not in self._text and (data := await self._stream.receive_some()):
                self._text += data.decode()
        assert text in self._text


async def test_up_tells_of_a_node_that_dies_and_stops_all_on_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TOPOLOGY)
    options = ("--topology", str(tmp_path / "two.toml"), "--dir", str(tmp_path / "net"))
    up = await trio.lowlevel.open_process(
        [*COMMAND, "up", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        errors = Output(up.stderr)
        await Output(up.stdout).until("Ctrl-C stops them.")
        state = read_state(tmp_path / "net")
        assert state is not None
        east, west = (node.process for node in state.nodes)

        os.kill(west.pid, signal.SIGKILL)
        await errors.until("west (West Clinic) was ended by signal 9")
        assert east.is_running()

        up.send_signal(signal.SIGINT)
        with trio.fail_after(20):
            assert await up.wait() == 0
    finally:
        await end(up)

    assert not east.is_running()
    assert read_state(tmp_path / "net") is None


async def test_ctrl_c_while_it_starts_leaves_no_node_behind(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TOPOLOGY)
    options = ("--topology", str(tmp_path / "two.toml"), "--dir", str(tmp_path / "net"))
    up = await trio.lowlevel.open_process([*COMMAND, "up", *options], stderr=subprocess.PIPE, start_new_session=True)
    try:
        await Output(up.stderr).until("daemons: starting")
        state = read_state(tmp_path / "net")
        assert state is not None

        up.send_signal(signal.SIGINT)
        with trio.fail_after(20):
            await up.wait()
    finally:
        await end(up)

    assert not any(node.process.is_running() for node in state.nodes)


async def end(process: trio.Process) -> None:
    """Leave nothing of a process open, whatever became of the test."""
    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
