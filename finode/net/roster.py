"""The roster: whom this node accepts, and by what name. A TOML file that people edit and `finode peers trust` adds to.

    [[peer]]
    id = "12D3KooW..."
    organization = "Clinic North"

A peer id stands once. One organization may have several peers: policy counts organizations, not peers. Nothing here
imports libp2p.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finode.errors import ConfigError, IdentityError
from finode.identity import PeerId, public_key_of

MAX_NAME = 64
"""Characters of an organization's name, as in a node's record."""
_HEAD = """\
# The peers that this node accepts, and the organization that each belongs to. Names are yours to give: policies
# compare them, so write one organization always in the same way. `finode peers trust PEER_ID --org NAME` adds an
# entry; the daemon reads the file again on SIGHUP.
"""


def check_entry(peer: object, organization: object, where: str) -> tuple[PeerId, str]:
    """Return a checked entry; raise `ConfigError` that says `where` what is wrong."""
    if not isinstance(peer, str):
        raise ConfigError(f'{where} lacks its id = "12D3KooW..."')
    if not isinstance(organization, str) or not organization.strip():
        raise ConfigError(f"{where} ({peer}) lacks its organization")
    if len(organization) > MAX_NAME or not organization.isprintable():
        raise ConfigError(f"{where} ({peer}): an organization has at most {MAX_NAME} printable characters")
    try:
        public_key_of(peer)
    except IdentityError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
    return PeerId(peer), organization.strip()


def load_roster(path: Path) -> dict[PeerId, str]:
    """Read a roster file: peer id to organization. Raises `ConfigError` that names the file and the entry."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no roster at {path}",
            hint='run `finode init`, or set [federation] trust = "open" if anybody may join',
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    unknown = set(table) - {"peer"}
    entries = table.get("peer", [])
    if unknown or not isinstance(entries, list):
        raise ConfigError(
            f"{path} has {', '.join(sorted(unknown)) or 'no list of [[peer]]'}; it may have [[peer]] only"
        )
    peers: dict[PeerId, str] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, [[peer]] number {number}"
        if not isinstance(entry, dict) or set(entry) - {"id", "organization"}:
            raise ConfigError(f"{where} may have id and organization only")
        peer, organization = check_entry(entry.get("id"), entry.get("organization"), where)
        if peer in peers:
            raise ConfigError(f"{where}: {peer} stands in the roster already")
        peers[peer] = organization
    return peers


def write_roster(path: Path, peers: Mapping[PeerId, str]) -> None:
    """Replace a roster file in one step; a crash leaves the old or the new one."""
    text = _HEAD + "".join(
        f"\n[[peer]]\nid = {_quoted(peer)}\norganization = {_quoted(organization)}\n"
        for peer, organization in peers.items()
    )
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # interrupted, too: no half-written file stays beside the roster
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def start_roster(path: Path, peer: PeerId, organization: str) -> None:
    """Start a roster that accepts one peer, the node itself; raise `ConfigError` when the file exists."""
    if path.exists():
        raise ConfigError(f"{path} exists already", hint="`finode peers trust` adds to it")
    write_roster(path, dict([check_entry(peer, organization, str(path))]))


def add_peer(path: Path, peer: str, organization: str) -> bool:
    """Add a peer, or give it another organization; return whether the file changed. Starts the file if need be."""
    peers = load_roster(path) if path.exists() else {}
    key, name = check_entry(peer, organization, "the new entry")
    if peers.get(key) == name:
        return False
    write_roster(path, {**peers, key: name})
    return True


def remove_peer(path: Path, peer: str) -> bool:
    """Remove a peer; return whether it was there."""
    peers = load_roster(path)
    if peers.pop(PeerId(peer), None) is None:
        return False
    write_roster(path, peers)
    return True


class Roster:
    """A roster in memory, with the file it came from. Without a file it accepts anybody (`trust = "open"`)."""

    def __init__(self, path: Path | None, peers: Mapping[PeerId, str] | None = None) -> None:
        self._path = path
        self._peers: dict[PeerId, str] = dict(peers) if peers is not None else load_roster(path) if path else {}

    @property
    def is_open(self) -> bool:
        return self._path is None

    @property
    def peers(self) -> Mapping[PeerId, str]:
        return MappingProxyType(self._peers)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def accepts(self, peer: str) -> bool:
        return self.is_open or peer in self._peers

    def organization_of(self, peer: PeerId) -> str:
        """Return the organization of a peer on the roster, "" for one that is not."""
        return self._peers.get(peer, "")

    def reload(self) -> frozenset[PeerId]:
        """Read the file again and return the peers that it dropped. A file that is wrong changes nothing."""
        if self._path is None:
            return frozenset()
        before, self._peers = self._peers, load_roster(self._path)
        return frozenset(before) - frozenset(self._peers)
