"""A testnet as a whole: its daemons started, waited for, watched and stopped.

`testnet.json` in its directory says which processes belong to it, from their start until they are stopped, so that
`finode testnet down` finds them, whether they were detached or their starter was killed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import trio

from finode.client import Client
from finode.config import Role
from finode.daemon.home import read_api_address
from finode.errors import ConfigError, DaemonUnavailable, FinodeError
from finode.testnet import processes
from finode.testnet.emulation import Emulation, start_emulation
from finode.testnet.homes import NodeHome, make_homes
from finode.testnet.links import LinkTable
from finode.testnet.processes import ProcessId
from finode.testnet.topology import Topology

STATE_NAME = "testnet.json"
LOG_NAME = "log.jsonl"
READY_TIMEOUT_S = 90.0  # six daemons that warm their workers on two busy cores
POLL_S = 0.2
START_COMMAND = (sys.executable, "-P", "-m", "finode.cli", "start")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One daemon of a testnet, as `testnet.json` has it."""

    name: str
    organization: str
    roles: tuple[Role, ...]
    home: Path
    peer: str
    address: str
    process: ProcessId

    @property
    def log_path(self) -> Path:
        return self.home / LOG_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkState:
    """The daemons of a testnet, and the relay that emulates its links if there is one."""

    nodes: tuple[NodeState, ...]
    relay: ProcessId | None = None

    def processes(self) -> tuple[ProcessId, ...]:
        """Return all processes; the relay is last, so that the nodes can say goodbye."""
        return (*(node.process for node in self.nodes), *((self.relay,) if self.relay else ()))


@dataclass(frozen=True, slots=True)
class _Child:
    state: NodeState
    popen: subprocess.Popen[bytes]


class Network:
    """The daemons of one testnet, children of this process. `start` makes it, `stop` or `detach` ends it."""

    def __init__(
        self,
        directory: Path,
        children: Sequence[_Child],
        emulation: Emulation | None = None,
        later: Mapping[str, Callable[[], _Child]] | None = None,
    ) -> None:
        self.directory = directory
        self.emulation = emulation
        self._children = tuple(children)
        self._later = dict(later or {})

    @property
    def nodes(self) -> tuple[NodeState, ...]:
        return tuple(child.state for child in self._children)

    def with_role(self, role: Role) -> tuple[NodeState, ...]:
        """Return the nodes that have `role`, in the topology's order."""
        return tuple(node for node in self.nodes if role in node.roles)

    def start_later(self, name: str) -> NodeState:
        """Start a node that `start` left out; raise `ConfigError` if there is none of that name."""
        if (begin := self._later.pop(name, None)) is None:
            raise ConfigError(f"no node of this testnet waits to be started as {name!r}")
        child = begin()
        self._children = (*self._children, child)
        relay = self.emulation.process if self.emulation else None
        _write_state(self.directory, NetworkState(nodes=self.nodes, relay=relay))
        return child.state

    async def wait_ready(self, on_ready: Callable[[NodeState], None], *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every daemon is ready and has every other's record; `on_ready` is told of each.

        Raises `DaemonUnavailable`, with the end of the log, for one that ends or is not ready in time.
        """
        waiting = {node.name: "it has not started its API" for node in self.nodes}

        async def wait(child: _Child) -> None:
            await self._wait_one(child, waiting)
            del waiting[child.state.name]
            on_ready(child.state)

        with trio.move_on_after(timeout_s) as scope:
            async with first_error(), trio.open_nursery() as nursery:
                for child in self._children:
                    nursery.start_soon(wait, child)
        if scope.cancelled_caught:
            name, why = next(iter(waiting.items()))
            node = next(node for node in self.nodes if node.name == name)
            raise DaemonUnavailable(
                f"after {timeout_s:.0f} s {len(waiting)} of {len(self.nodes)} nodes are not ready; {name}: {why}",
                hint=log_hint(node),
            )

    async def watch(self, on_exit: Callable[[NodeState, int], None]) -> None:
        """Tell of every daemon that ends, with its exit code; return when all have."""
        left = list(self._children)
        while left:
            for child in [child for child in left if child.popen.poll() is not None]:
                left.remove(child)
                on_exit(child.state, child.popen.wait())
            await trio.sleep(POLL_S)

    async def stop(self) -> tuple[NodeState, ...]:
        """Stop all daemons, cancelled or not; return those that had to be killed."""
        with trio.CancelScope(shield=True):
            killed = await processes.stop(node.process for node in self.nodes)
            if self.emulation is not None:
                await processes.stop([self.emulation.process])
            for child in self._children:
                child.popen.wait()
        _state_path(self.directory).unlink(missing_ok=True)
        return tuple(node for node in self.nodes if node.process in killed)

    def detach(self) -> None:
        """Let the daemons outlive this process; `finode testnet down` stops them."""
        for child in self._children:
            child.popen.returncode = 0  # or Popen warns of a process that nobody waits for, which is meant here

    async def _wait_one(self, child: _Child, waiting: dict[str, str]) -> None:
        node = child.state
        others = {other.peer: other.name for other in self.nodes if other is not node}
        while True:
            if (code := child.popen.poll()) is not None:
                raise DaemonUnavailable(
                    f"node {node.name!r} ({node.organization}) {describe_exit(code)} before it was ready",
                    hint=log_hint(node),
                )
            address = read_api_address(node.home)
            if address is not None and address.pid == node.process.pid:
                async with Client(address.url) as client:
                    waiting[node.name] = await _what_lacks(client, others)
                if not waiting[node.name]:
                    return
            await trio.sleep(POLL_S)


async def start(
    topology: Topology,
    directory: Path,
    *,
    command: Sequence[str] = START_COMMAND,
    links: LinkTable | None = None,
    later: frozenset[str] = frozenset(),
) -> Network:
    """Make the homes, register the topology's models and start a daemon on each home; `command` gets `--home HOME`.

    With `links` the nodes reach each other over emulated ones (`emulation`). The nodes named in `later` have homes and
    are on all rosters, and are started by `Network.start_later`.

    Raises `ConfigError` if a testnet runs in `directory` already or a file is wrong; none of the daemons is left then.
    """
    state = read_state(directory)
    if state is not None and any(process.is_running() for process in state.processes()):
        raise ConfigError(
            f"a testnet runs in {directory} already",
            hint=f"stop it with `finode testnet down --dir {directory}`, or choose another --dir",
        )
    homes = make_homes(topology, directory)
    children: list[_Child] = []
    emulation: Emulation | None = None
    try:
        if links is not None:
            emulation = await start_emulation(homes, links, directory, topology.federation)
            _write_state(directory, NetworkState(nodes=(), relay=emulation.process))
        for home in homes:
            if home.spec.name in later:
                continue
            children.append(_begin(home, command))
            # After each, so that none is lost if this process is killed now.
            nodes = tuple(child.state for child in children)
            _write_state(directory, NetworkState(nodes=nodes, relay=emulation.process if emulation else None))
    except BaseException:
        await Network(directory, children, emulation).stop()
        raise
    waiting = {home.spec.name: partial(_begin, home, command) for home in homes if home.spec.name in later}
    return Network(directory, children, emulation, waiting)


def _begin(home: NodeHome, command: Sequence[str]) -> _Child:
    popen = processes.start([*command, "--home", str(home.path)], log_path=home.path / LOG_NAME)
    return _Child(_state(home, popen.pid), popen)


async def stop_detached(directory: Path) -> tuple[tuple[NodeState, ...], tuple[NodeState, ...]]:
    """Stop the testnet of `directory`; return (the nodes that ran, those of them that had to be killed).

    Raises `ConfigError` if there is none.
    """
    state = read_state(directory)
    if state is None:
        raise ConfigError(f"no testnet runs in {directory}", hint="name its directory with --dir")
    running = tuple(node for node in state.nodes if node.process.is_running())
    killed = await processes.stop(node.process for node in running)
    if state.relay is not None:
        await processes.stop([state.relay])
    _state_path(directory).unlink(missing_ok=True)
    return running, tuple(node for node in running if node.process in killed)


def read_state(directory: Path) -> NetworkState | None:
    """Return what `testnet.json` says, None if there is none; raise `ConfigError` if it cannot be read."""
    path = _state_path(directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=NetworkState, dec_hook=lambda kind, value: kind(value))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="see which of its processes still run, stop them, and remove the file"
        ) from None


def describe_exit(code: int) -> str:
    """Return what an exit code says, as the end of a sentence: a negative one is a signal's number."""
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


async def _what_lacks(client: Client, others: dict[str, str]) -> str:
    """Return why a node is not ready, "" if it is."""
    try:
        if not await client.ready():
            return "it listens, but its workers are not warm"
        known = {peer.peer for peer in await client.peers() if peer.roles}
    except DaemonUnavailable as error:
        return error.message
    missing = sorted(name for peer, name in others.items() if peer not in known)
    return f"it has no record of {', '.join(missing)}" if missing else ""


def _state(home: NodeHome, pid: int) -> NodeState:
    return NodeState(
        name=home.spec.name,
        organization=home.spec.organization,
        roles=home.spec.roles,
        home=home.path,
        peer=home.peer,
        address=home.address,
        process=ProcessId.of(pid),
    )


def _state_path(directory: Path) -> Path:
    return directory / STATE_NAME


def _write_state(directory: Path, state: NetworkState) -> None:
    path = _state_path(directory)
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(state, enc_hook=str)))
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def log_hint(node: NodeState) -> str:
    tail = processes.log_tail(node.log_path)
    return f"its log is {node.log_path}" + (f" and ends with:\n{tail}\n" if tail else ", and empty")


@asynccontextmanager
async def first_error() -> AsyncIterator[None]:
    """Raise the first `FinodeError` of an exception group alone, where one suffices to say why all was ended."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(FinodeError)
        error: BaseException | None = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None or others is not None:
            raise
        raise error from None
