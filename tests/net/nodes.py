"""What the tests of the real network share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from finode.config import Config
from finode.identity import Identity, PeerId
from finode.net.host import Libp2pNetwork

OpenNode = Callable[..., AbstractAsyncContextManager[Libp2pNetwork]]
MakeHome = Callable[..., Config]


def bootstrap(network: Libp2pNetwork) -> str:
    """Return the address to join a node's federation through."""
    return f"{network.addresses[0]}/p2p/{network.peer_id}"


async def until(condition: Callable[[], bool], *, within_s: float) -> None:
    """Wait for something that other nodes bring about; fail when it takes too long."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - it comes about in another node
            await trio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A running `process_node.py`."""

    peer: PeerId
    address: str
    process: trio.Process


@asynccontextmanager
async def node_process(config: Config, identity: Identity, *bootstrap: str) -> AsyncIterator[NodeProcess]:
    """Run a node in a process of its own; it is killed at the end, also when it is stopped."""
    script = Path(__file__).with_name("process_node.py")
    command = [sys.executable, str(script), str(config.home), identity.seed().hex(), *bootstrap]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = b""
        with trio.fail_after(15):
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some(4096)
        said = json.loads(line)
        yield NodeProcess(PeerId(said["peer"]), said["address"], process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
