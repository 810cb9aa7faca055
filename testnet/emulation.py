"""A testnet's links, seen from outside the relay: its process started, its links changed, its count read.

The nodes listen where they would without it and announce that; only whom they dial differs. Each home's
`[network] dial_through` names for every other node the relay's port for this pair, so a node needs to know nothing of
emulation, and a pair's connection crosses the link whoever of the two dialed it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from finode.errors import ConfigError, DaemonUnavailable
from finode.testnet import processes
from finode.testnet.homes import HOST, NodeHome, route_through
from finode.testnet.links import LinkTable
from finode.testnet.processes import ProcessId

START_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 5.0
POLL_S = 0.02
PLAN_NAME = "links.json"
STATE_NAME = "relay.json"
LOG_NAME = "relay.log"


@dataclass(frozen=True, slots=True)
class Emulation:
    """The running relay of a testnet."""

    process: ProcessId
    control: int
    nodes: tuple[str, ...]
    log_path: Path

    async def set_links(self, links: LinkTable) -> None:
        """Give every pair another link, from now on."""
        await self._ask({"do": "link", "routes": _routes(self.nodes, links)})

    async def traffic(self) -> Mapping[tuple[str, str], int]:
        """Return the bytes that went from each node to each other one, since the start."""
        found = (await self._ask({"do": "traffic"}))["traffic"]
        return {(entry["source"], entry["target"]): int(entry["bytes"]) for entry in found}

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = bytearray()
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                async with await trio.open_tcp_stream(HOST, self.control) as stream:
                    await stream.send_all(json.dumps(request).encode() + b"\n")
                    async for data in stream:
                        answer += data
            found: dict[str, Any] = json.loads(answer)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, ValueError):
            raise DaemonUnavailable("the relay of the testnet does not answer", hint=f"see {self.log_path}") from None
        return found


async def start_emulation(homes: Sequence[NodeHome], links: LinkTable, directory: Path, federation: str) -> Emulation:
    """Start the relay of these homes, and have their nodes dial through it; they must not run yet.

    Raises `DaemonUnavailable`, with the end of its log, if it does not start.
    """
    plan, state, log = directory / PLAN_NAME, directory / STATE_NAME, directory / LOG_NAME
    names = tuple(home.spec.name for home in homes)
    ports = {home.spec.name: home.port for home in homes}
    routes = [route | {"port": ports[route["target"]]} for route in _routes(names, links)]
    try:
        plan.write_text(json.dumps({"routes": routes}), encoding="utf-8")
        state.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {plan}: {error.strerror}") from None
    popen = processes.start([sys.executable, "-P", "-m", "finode.testnet.relay", str(plan), str(state)], log_path=log)
    process = ProcessId.of(popen.pid)
    popen.returncode = 0  # it is stopped by its id, like daemons that were detached; Popen would warn of it
    try:
        with trio.move_on_after(START_TIMEOUT_S):
            while process.is_running() and not state.exists():  # noqa: ASYNC110 - another process writes it
                await trio.sleep(POLL_S)
        if not (process.is_running() and state.exists()):
            raise DaemonUnavailable(
                "the relay that emulates the links did not start", hint=f"{log}: {processes.log_tail(log)}"
            )
        found = json.loads(state.read_bytes())
        through: dict[str, dict[str, int]] = {name: {} for name in names}
        for route, port in zip(routes, found["ports"], strict=True):
            through[route["source"]][route["target"]] = port
        route_through(homes, through, federation)
    except BaseException:
        with trio.CancelScope(shield=True):
            await processes.stop([process])
        raise
    return Emulation(process=process, control=int(found["control"]), nodes=names, log_path=log)


def _routes(nodes: Sequence[str], links: LinkTable) -> list[dict[str, Any]]:
    return [
        {"source": one, "target": other, "rtt_ms": link.rtt_ms, "mbit": link.mbit}
        for one in nodes
        for other in nodes
        if one != other
        for link in [links.between(one, other)]
    ]
