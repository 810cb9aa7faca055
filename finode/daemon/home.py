"""A node's home: the directory that holds all it must remember, and the lock that keeps a second daemon out.

    identity.key    the Ed25519 seed, mode 0600; losing it loses the node's name in the federation
    finode.toml     the settings, every one present and commented; generated from `finode.config`
    roster.toml     the peers this node accepts, itself first
    node.secret     32 random bytes, mode 0600, from which a dealer derives its masks and an owner its sharings
    lock            held with flock while a daemon runs, and its process id
    api.json        where the running daemon's API listens; removed at exit

The home is private: mode 0700.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from finode.client.address import API_ADDRESS_NAME, ApiAddress, read_api_address, url_of
from finode.config import CONFIG_NAME, IDENTITY_NAME, Config
from finode.errors import ConfigError, HomeInUse
from finode.identity import Identity, PeerId
from finode.net.roster import start_roster

__all__ = [
    "ApiAddress",
    "default_organization",
    "init_home",
    "is_fresh",
    "lock_home",
    "node_secret",
    "read_api_address",
    "remove_api_address",
    "render_config",
    "write_api_address",
]

ROSTER_NAME = "roster.toml"
NODE_SECRET_NAME = "node.secret"  # noqa: S105 - a file's name
NODE_SECRET_BYTES = 32
LOCK_NAME = "lock"

_HEADER = """\
# The settings of a finode node. Each stands here with its default; remove the "# " to change it.
# Flags of `finode start` come first, then the environment (FINODE_<SECTION>__<NAME>), then this file.
"""


def is_fresh(home: Path) -> bool:
    """Whether `home` has no identity yet, so that `finode start` makes one."""
    return not (home / IDENTITY_NAME).exists()


def init_home(home: Path, org: str, *, keep_config: bool = False) -> Identity:
    """Make a home: directory, identity, commented settings, roster and dealer's secret.

    Refuses to overwrite anything, with a `ConfigError` that names the file. With `keep_config` a `finode.toml` that
    was put there beforehand (one of `configs/`, say) is left as it is.
    """
    names = (IDENTITY_NAME, NODE_SECRET_NAME, ROSTER_NAME, *(() if keep_config else (CONFIG_NAME,)))
    for name in names:
        if (home / name).exists():
            raise ConfigError(
                f"{home / name} exists already", hint="`finode init` never overwrites: choose another --home"
            )
    if any(not character.isprintable() for character in org) or len(org) > 64:
        raise ConfigError(f"{org!r} is not an organization's name", hint="it has 1 to 64 printable characters")
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        home.chmod(0o700)
        identity = Identity.create(home / IDENTITY_NAME)
        org = org or default_organization(identity.peer_id)
        node_secret(home)
        start_roster(home / ROSTER_NAME, identity.peer_id, org)
        if not (home / CONFIG_NAME).exists():
            _write_private(home / CONFIG_NAME, render_config({"node": {"organization": org}}).encode())
    except OSError as error:
        raise ConfigError(f"cannot make the home {home}: {error.strerror} ({error.filename})") from None
    return identity


def default_organization(peer: PeerId) -> str:
    """Return the name of an organization that gave none; unlike an empty one it differs from every other's."""
    return f"org-{peer[-8:]}"


def node_secret(home: Path) -> bytes:
    """Return the secret of `home`; make it, mode 0600, if there is none yet.

    Raises `ConfigError` if it can be read by others, or is not 32 bytes.
    """
    path = home / NODE_SECRET_NAME
    try:
        if not path.exists():
            _write_private(path, os.urandom(NODE_SECRET_BYTES))
        mode = path.stat().st_mode & 0o777
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
    if len(secret) != NODE_SECRET_BYTES:
        raise ConfigError(
            f"{path} is not a node's secret: {len(secret)} bytes instead of {NODE_SECRET_BYTES}",
            hint="restore your backup, or remove it: deployments are then made again with a new one",
        )
    return secret


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold the home's lock; raise `HomeInUse`, naming the home and the other's process id, if another holds it.

    The kernel drops the lock with the process, so a killed daemon leaves none behind.
    """
    path = home / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise HomeInUse(
                f"another daemon (process {pid}) runs on the home {home}", hint="stop it, or choose another --home"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def write_api_address(home: Path, bound: str) -> ApiAddress:
    """Say in `api.json` where the API listens (`HOST:PORT`), for the commands of this home."""
    address = ApiAddress(url=url_of(bound), pid=os.getpid())
    path = home / API_ADDRESS_NAME
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    _write_private(partial, json.dumps({"url": address.url, "pid": address.pid}).encode())
    partial.replace(path)
    return address


def remove_api_address(home: Path) -> None:
    """Remove `api.json`: the API listens no more."""
    (home / API_ADDRESS_NAME).unlink(missing_ok=True)


def render_config(values: Mapping[str, Mapping[str, object]]) -> str:
    """Return a `finode.toml` with every setting, its reason and default; those of `values` are set, not commented."""
    parts = [_HEADER]
    for section, field in Config.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue  # `home` is where the file lies
        doc = (kind.__doc__ or "").strip().splitlines()[0]
        parts.append(f"\n# {doc}\n[{section}]\n")
        given = values.get(section, {})
        for name, setting in kind.model_fields.items():
            value = given.get(name, setting.default)
            reason = f"# {setting.description}\n" if setting.description else ""
            parts.append(f"{reason}{'' if name in given else '# '}{name} = {_toml(value)}\n")
    return "".join(parts)


def _toml(value: Any) -> str:
    if isinstance(value, Enum):
        return json.dumps(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value))


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
