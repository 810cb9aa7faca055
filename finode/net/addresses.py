"""Addresses: those that others can reach us at, and those that we know of others.

An address is a multiaddress as a string, `/ip4/192.0.2.7/tcp/4001`, without `/p2p/...`; only TCP is spoken. A wildcard
that is listened on (0.0.0.0, ::) is announced as the addresses of the interfaces; loopback only when there is nothing
else, since another machine would find itself there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from libp2p.utils.address_validation import get_available_interfaces
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from finode.errors import ConfigError
from finode.identity import PeerId

MAX_ADDRESSES = 16
"""Addresses of one peer, as in its record."""
_HOSTS = {"ip4", "ip6", "dns", "dns4", "dns6"}


def split_peer(address: str) -> tuple[str, PeerId | None]:
    """Split `ADDRESS/p2p/PEER_ID`; the second part is None where it is missing."""
    head, separator, peer = address.partition("/p2p/")
    return head, PeerId(peer.strip("/")) if separator else None


def parse(address: str) -> Multiaddr | None:
    """Return the multiaddress when it is one that this node can dial or listen on, None otherwise."""
    try:
        parsed = Multiaddr(address)
        names = [protocol.name for protocol in parsed.protocols()]
    except (MultiaddrError, ValueError, TypeError):
        return None
    return parsed if len(names) == 2 and names[0] in _HOSTS and names[1] == "tcp" else None


def check(address: str, setting: str) -> Multiaddr:
    """Return the multiaddress of a setting; raise `ConfigError` that names the setting and what it may be."""
    parsed = parse(split_peer(address)[0])
    if parsed is None:
        raise ConfigError(f"network.{setting}: {address!r} is not an address such as /ip4/127.0.0.1/tcp/4001")
    return parsed


def host_port(address: Multiaddr) -> tuple[str, int]:
    """Return the host and the port of an address of ours."""
    name = address.protocols()[0].name
    return str(address.value_for_protocol(name)), int(address.value_for_protocol("tcp"))


def announced(listening: Iterable[Multiaddr]) -> tuple[str, ...]:
    """Return the addresses to announce for those that are listened on (with their real ports)."""
    found: list[str] = []
    for address in listening:
        host, port = host_port(address)
        if not _is_wildcard(host):
            found.append(str(address))
            continue
        family = address.protocols()[0].name
        interfaces = [candidate for candidate in get_available_interfaces(port) if _family(candidate) == family]
        outward = [candidate for candidate in interfaces if not _is_local(host_port(candidate)[0])]
        found += [str(candidate) for candidate in outward or interfaces]
    return tuple(dict.fromkeys(found))[:MAX_ADDRESSES]


def _family(address: Multiaddr) -> str:
    return str(address.protocols()[0].name)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local


class AddressBook:
    """Where peers may be reached: what the person configured, what they say of themselves, what worked last.

    Where the person says what to dial a peer through, nothing else counts: its own addresses lead nowhere from here, or
    around the link that the person means.
    """

    def __init__(self) -> None:
        self._configured: dict[PeerId, list[str]] = {}
        self._announced: dict[PeerId, tuple[str, ...]] = {}
        self._worked: dict[PeerId, str] = {}
        self._through: dict[PeerId, list[str]] = {}

    def dial_through(self, peer: PeerId, address: str) -> None:
        """Dial the peer at this address, and at no other but those that are given so."""
        self._through.setdefault(peer, []).append(address)

    def configure(self, peer: PeerId, address: str) -> None:
        """Add an address of a bootstrap peer."""
        self._configured.setdefault(peer, []).append(address)

    def announce(self, peer: PeerId, addresses: tuple[str, ...]) -> bool:
        """Take the addresses of a peer's record; return whether they are news."""
        usable = tuple(address for address in addresses[:MAX_ADDRESSES] if parse(address) is not None)
        if self._announced.get(peer) == usable:
            return False
        self._announced[peer] = usable
        return True

    def worked(self, peer: PeerId, address: str) -> None:
        """Remember the address of the last successful dial; it is tried first next time."""
        self._worked[peer] = address

    def forget(self, peer: PeerId) -> None:
        """Forget what a peer said of itself."""
        self._announced.pop(peer, None)
        self._worked.pop(peer, None)

    def of(self, peer: PeerId) -> tuple[str, ...]:
        """Return a peer's addresses, the likeliest first."""
        if peer in self._through:
            return tuple(dict.fromkeys(self._through[peer]))
        worked = (self._worked[peer],) if peer in self._worked else ()
        known = (*worked, *self._announced.get(peer, ()), *self._configured.get(peer, ()))
        return tuple(dict.fromkeys(known))

    @property
    def configured(self) -> frozenset[PeerId]:
        return frozenset(self._configured)
