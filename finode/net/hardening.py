"""The libp2p host with everything mended that NETWORK.md lists before it may be used.

- Noise is the only security protocol, so that nobody enters in plaintext under another's peer id.
- Every inbound stream goes through one function of ours, out of which no exception escapes: one that escapes a stream
  handler ends libp2p's host. It negotiates by itself (`negotiation.py`), so allowlists are checked before a stream is
  agreed on.
- Inbound connections are counted while they last, in all, per address and while they shake hands. libp2p's own limit
  counts those that ever were.
- What libp2p does by itself is off: identify on connect (it runs as a system task of trio, where an exception ends the
  program), the resource manager, retries within one dial, the connection manager's watermarks.
- Connections are closed before the host stops, and a frozen peer cannot hold that up.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import IHost, INotifee, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import _IdentifyNotifee
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from finode.errors import ConfigError
from finode.identity import Identity
from finode.net.addresses import host_port
from finode.net.muxer import Muxer

HANDSHAKE_S = 5.0
"""Deadline of an inbound handshake, and of the negotiation of a stream."""
MAX_INBOUND = 1024
"""Inbound connections at once; each costs a descriptor and about 50 kB."""
MAX_HANDSHAKES = 64
"""Inbound connections that have not proved who they are; each may take `HANDSHAKE_S`."""
MAX_HANDSHAKES_PER_HOST = 32
CLOSE_S = 1.0
"""Deadline of saying farewell to all peers when the node stops."""


@dataclass(frozen=True, slots=True)
class Watch(INotifee):
    """Tells of connections that come and go. libp2p waits for a notifee, so neither callback may block."""

    came_up: Callable[[SwarmConn], None]
    went_down: Callable[[SwarmConn], None]

    async def connected(self, network: Any, conn: SwarmConn) -> None:
        self.came_up(conn)

    async def disconnected(self, network: Any, conn: SwarmConn) -> None:
        self.went_down(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


StreamServer = Callable[[SwarmConn, NetStream], Awaitable[None]]


def silence_libp2p() -> None:
    """Keep libp2p's loggers from writing raw lines to standard error.

    Some of its modules call `logging.debug`, which configures the root logger if nobody has.
    """
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    if not logging.root.handlers:
        logging.root.addHandler(logging.NullHandler())


def make_host(identity: Identity, listen: Sequence[Multiaddr]) -> IHost:
    """Return a host that has not started. `listen` only tells libp2p which transports are needed."""
    silence_libp2p()
    keys = create_new_key_pair(identity.seed())
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Muxer},
        announce_addrs=[],
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            max_connections=10**6,
            min_connections=0,
            low_watermark=0,
            high_watermark=10**6,
            max_connections_per_peer=10**3,
            inbound_upgrade_timeout=HANDSHAKE_S,
            outbound_upgrade_timeout=HANDSHAKE_S,
            inbound_stream_protocol_negotiation_timeout=HANDSHAKE_S,
            outbound_stream_protocol_negotiation_timeout=HANDSHAKE_S,
        ),
    )
    swarm = host.get_network()
    swarm.set_resource_manager(None)
    # libp2p makes its own `Yamux` whatever class the options name.
    swarm.upgrader.muxer_multistream = MuxerChoice({TProtocol(YAMUX): Muxer}, negotiate_timeout=round(HANDSHAKE_S))
    swarm.auto_connector = NoAutoConnector(swarm)
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.notifees[:] = [notifee for notifee in swarm.notifees if not isinstance(notifee, _IdentifyNotifee)]
    return host


class NoAutoConnector(AutoConnector):
    """Dials nobody: libp2p's dials every address that any peer has ever mentioned, up to its watermarks."""

    async def maybe_connect(self) -> None:
        await trio.lowlevel.checkpoint()


class MuxerChoice(MuxerMultistream):
    """Negotiates the muxer, and makes ours."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> Muxer:
        await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        return Muxer(conn, peer_id, is_initiator=conn.is_initiator)


class Admission:
    """Counts inbound connections and refuses those that are too many."""

    def __init__(self, swarm: Any) -> None:
        self._swarm = swarm
        self._open = 0
        self._handshakes: Counter[str] = Counter()

    async def handle(self, stream: Any, address: Multiaddr) -> None:
        """Take an accepted TCP stream to its end; libp2p calls this in a task per stream."""
        remote = stream.get_remote_address()
        host = remote[0] if remote else ""
        if (
            self._open >= MAX_INBOUND
            or self._handshakes.total() >= MAX_HANDSHAKES
            or self._handshakes[host] >= MAX_HANDSHAKES_PER_HOST
        ):
            await stream.close()
            return
        self._open += 1
        try:
            muxed = await self._shake_hands(stream, address, host)
            if muxed is not None:
                await muxed.event_closed.wait()
        finally:
            self._open -= 1
            with trio.CancelScope(shield=True):
                await stream.close()

    async def _shake_hands(self, stream: Any, address: Multiaddr, host: str) -> Any:
        self._handshakes[host] += 1
        try:
            return await self._swarm.upgrade_inbound_raw_conn(RawConnection(stream, False), address)
        except Exception:  # the edge: garbage that makes libp2p raise costs this one connection, not the listener
            return None
        finally:
            self._handshakes[host] -= 1
            if not self._handshakes[host]:
                del self._handshakes[host]


@asynccontextmanager
async def run_host(
    host: IHost, listen: Sequence[Multiaddr], serve: StreamServer, watch: Watch
) -> AsyncIterator[tuple[Multiaddr, ...]]:
    """Run the host; yield the addresses that it listens on, with their real ports.

    `serve` handles every inbound stream; whatever it raises resets that stream only. Raises `ConfigError` for an
    address that cannot be listened on.
    """
    swarm = host.get_network()

    async def serve_safely(stream: NetStream) -> None:
        try:
            await serve(stream.swarm_conn, stream)
        except Exception:  # the edge: out of here it would end the whole host; the router has logged what is ours
            await stream.reset()

    swarm.set_stream_handler(serve_safely)
    swarm._handle_inbound_connection = Admission(swarm).handle
    swarm.register_notifee(watch)
    for address in listen:
        _check_free(address)
    async with host.run(list(listen)):
        try:
            for address in listen:
                if str(address) not in swarm.listeners:
                    raise ConfigError(f"cannot listen on {address}", hint="is it an address of this machine?")
            yield tuple(found for listener in swarm.listeners.values() for found in listener.get_addrs())
        finally:
            with trio.CancelScope(shield=True):
                await _close(host)


def _check_free(address: Multiaddr) -> None:
    # libp2p binds with SO_REUSEPORT: a second daemon on the port would start, and steal half of the connections.
    host, port = host_port(address)
    family = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}.get(address.protocols()[0].name)
    if family is None:
        raise ConfigError(f"network.listen: {address} must begin with /ip4/ or /ip6/")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address}: {error.strerror}", hint="another port: [network] listen, or --listen"
            ) from None


async def _close(host: IHost) -> None:
    swarm = host.get_network()
    connections = swarm.get_connections()
    # libp2p closes one connection after the other, with pauses; a frozen peer's farewell would never be written.
    with trio.move_on_after(CLOSE_S):
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(close_quietly, connection)
    for connection in connections:
        await connection.muxed_conn.drop()
    with trio.move_on_after(CLOSE_S):
        await host.close()


async def close_quietly(connection: SwarmConn) -> None:
    """Close a connection that may be broken already."""
    try:
        await connection.close()
    except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        return
