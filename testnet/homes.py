"""The homes of a testnet's nodes: DIR/NAME with identity, settings and roster, made so that they find each other.

Every node listens on a port of 127.0.0.1 that was free a moment ago, because the others' settings must name it; the
API takes any free port and says which in `api.json`. Every roster lists all nodes. A home that is there already keeps
its identity and models, and gets new settings.
"""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finode.config import CONFIG_NAME, IDENTITY_NAME
from finode.daemon.admin import add_model, trust_peer
from finode.daemon.home import init_home, is_fresh, render_config
from finode.errors import ConfigError
from finode.identity import Identity, PeerId
from finode.testnet.topology import ModelFile, NodeSpec, Topology

HOST = "127.0.0.1"
PORTS = range(15_000, 32_000)
BOOTSTRAP_NODES = 2
"""Two, so that the federation still forms when one of them is slow or dies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHome:
    """One node's home, and where others reach it."""

    spec: NodeSpec
    path: Path
    peer: PeerId
    port: int

    @property
    def address(self) -> str:
        """The multiaddress with the peer's id."""
        return f"{_listen(self.port)}/p2p/{self.peer}"


def make_homes(topology: Topology, directory: Path) -> tuple[NodeHome, ...]:
    """Make or refresh the homes of all nodes under `directory`, with their models.

    Raises a `FinodeError` that names the file; homes that were new are removed again then.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror}", hint="choose another --dir") from None
    ports = _free_ports(len(topology.nodes))
    with ExitStack() as on_failure:
        homes: list[NodeHome] = []
        for spec, port in zip(topology.nodes, ports, strict=True):
            path = directory / spec.name
            if is_fresh(path):
                on_failure.callback(shutil.rmtree, path, ignore_errors=True)
                peer = init_home(path, spec.organization).peer_id
                for model in spec.models:
                    register_model(path, model)
            else:
                peer = Identity.load(path / IDENTITY_NAME).peer_id
            homes.append(NodeHome(spec=spec, path=path, peer=peer, port=port))
        for home in homes:
            _write_settings(home, homes[:BOOTSTRAP_NODES], topology.federation)
            for other in homes:
                trust_peer(home.path, other.peer, other.spec.organization)
        on_failure.pop_all()
    return tuple(homes)


def route_through(homes: Sequence[NodeHome], ports: Mapping[str, Mapping[str, int]], federation: str) -> None:
    """Have the nodes dial each other through other ports: `ports` by the name of who dials and of who is dialed."""
    by_name = {home.spec.name: home for home in homes}
    for home in homes:
        through = tuple(f"{_listen(port)}/p2p/{by_name[target].peer}" for target, port in ports[home.spec.name].items())
        _write_settings(home, homes[:BOOTSTRAP_NODES], federation, through)


def register_model(home: Path, model: ModelFile) -> None:
    """Do what `finode models add` does, for the daemon of `home`."""
    add_model(
        home,
        model.path,
        model.service,
        labels_path=model.labels,
        price=model.price,
        calibration_path=model.calibration,
        preprocess_path=model.preprocess,
        counts_path=model.counts,
    )


def _write_settings(
    home: NodeHome, bootstrap: Sequence[NodeHome], federation: str, through: tuple[str, ...] = ()
) -> None:
    values: dict[str, dict[str, Any]] = {section: dict(given) for section, given in home.spec.settings.items()}
    ours: dict[str, dict[str, Any]] = {
        "node": {"organization": home.spec.organization, "roles": home.spec.roles},
        "network": {
            "listen": (_listen(home.port),),
            "bootstrap": tuple(other.address for other in bootstrap if other is not home),
            **({"dial_through": through} if through else {}),
        },
        "federation": {"name": federation},
        "api": {"bind": f"{HOST}:0"},
    }
    for section, given in ours.items():
        values.setdefault(section, {}).update(given)
    path = home.path / CONFIG_NAME
    try:
        path.write_text(render_config(values), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _listen(port: int) -> str:
    return f"/ip4/{HOST}/tcp/{port}"


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, out of a range that the kernel gives to no outgoing connection."""
    found: list[int] = []
    with ExitStack() as stack:  # all open at once, so that they differ
        for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
            each = stack.enter_context(socket.socket())
            try:
                each.bind((HOST, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise ConfigError(f"fewer than {count} ports from {PORTS.start} to {PORTS.stop} are free")
