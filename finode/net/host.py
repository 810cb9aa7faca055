"""The node's place in the federation, on libp2p: what `open_network` gives the layers above.

    async with open_network(config, identity, offer, log=log) as network:
        network.serve(PROTOCOL, handler)
        stream = await network.open(peer, PROTOCOL, timeout_s=5)

It puts the parts together: the hardened host (`hardening`), links and who is let in (`connections`), the directory and
how it is kept (`directory`, `exchange`, `gossip`), the roster and the standings. All of its tasks run in one nursery;
leaving the block ends them and closes every connection within about two seconds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config, Trust
from finode.errors import ConfigError, PeerRefused, PeerTimeout, PeerUnreachable
from finode.identity import Identity, PeerId
from finode.net.addresses import AddressBook, announced, check, split_peer
from finode.net.connections import Connections
from finode.net.dialer import Dialer
from finode.net.directory import Directory, Offer, RecordWriter
from finode.net.exchange import Exchange
from finode.net.gossip import Gossip
from finode.net.groups import only
from finode.net.hardening import Watch, make_host, run_host
from finode.net.interface import Handler, PeerState, Stream, Validator
from finode.net.links import Heartbeat, Link
from finode.net.loopback import Loopback
from finode.net.roster import Roster
from finode.net.router import Router
from finode.net.standing import GRAYLIST, Standing
from finode.wire import control, directory, preprocessing, shares
from finode.wire.control import Hello
from finode.wire.directory import NodeRecord

BULK_PROTOCOLS = frozenset({shares.PROTOCOL, preprocessing.PROTOCOL})
"""What these carry is large; their streams go over a second connection (see `connections.py`)."""


class Libp2pNetwork:
    """Implements `finode.net.interface.Network`. Made and run by `open_network`."""

    def __init__(
        self,
        own: PeerId,
        roster: Roster,
        *,
        bootstrap: frozenset[PeerId],
        standing: Standing,
        log: FilteringBoundLogger,
    ) -> None:
        self._own = own
        self._roster = roster
        self._standing = standing
        self._bootstrap = bootstrap
        self._router = Router(log, self.fault)
        self._log = log
        self._addresses: tuple[str, ...] = ()
        self._on_link: list[Callable[[PeerId], None]] = []
        # Set by `open_network`: these need what this object offers, and it needs them.
        self._connections: Connections
        self._exchange: Exchange
        self._gossip: Gossip
        self._loopback: Loopback

    @property
    def peer_id(self) -> PeerId:
        return self._own

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        if peer == self._own:
            return self._loopback.open(protocol)
        if not self.accepts(peer):
            raise PeerRefused(
                f"{peer} is not on this node's roster",
                peer=peer,
                reason="not-on-roster",
                hint=f"finode peers trust {peer} --org NAME",
            )
        with trio.move_on_after(timeout_s):
            return await self._connections.open(peer, protocol, bulk=protocol in BULK_PROTOCOLS)
        raise PeerTimeout(f"{peer} was not reached within {timeout_s:g} s", peer=peer)

    def serve(self, protocol: str, handler: Handler) -> None:
        self._router.serve(protocol, handler)

    def states(self) -> Mapping[PeerId, PeerState]:
        records = self.records()
        peers = {*self._roster, *records, *self._connections.peers()} - {self._own}
        return {
            peer: PeerState(
                peer=peer,
                organization=self.organization_of(peer),
                connected=self._connections.connected(peer),
                rtt_ms=self._connections.rtt_ms(peer),
                standing=self._standing.of(peer),
                record=records.get(peer),
            )
            for peer in sorted(peers)
        }

    def records(self) -> Mapping[PeerId, NodeRecord]:
        return self._exchange.records()

    def organization_of(self, peer: PeerId) -> str:
        if not self._roster.is_open:
            return self._roster.organization_of(peer)
        record = self._exchange.record_of(peer)
        return record.organization if record is not None else ""

    def accepts(self, peer: PeerId) -> bool:
        return self._roster.accepts(peer)

    def fault(self, peer: PeerId, points: float, reason: str) -> None:
        before = self._standing.of(peer)
        left = self._standing.lower(peer, points)
        self._log.info("fault", peer=peer, points=points, standing=round(left, 1), reason=reason)
        if left <= GRAYLIST < before:
            self._log.warning("graylisted", peer=peer, standing=round(left, 1))

    def standing(self, peer: PeerId) -> float:
        return self._standing.of(peer)

    def condemn(self, peer: PeerId, reason: str) -> None:
        self._standing.condemn(peer)
        self._log.warning("condemned", peer=peer, reason=reason)

    def on_link(self, callback: Callable[[PeerId], None]) -> None:
        self._on_link.append(callback)

    def subscribe(self, topic: str, validate: Validator) -> None:
        self._gossip.subscribe(topic, validate)

    async def publish(self, topic: str, data: bytes) -> None:
        await self._gossip.publish(data, topic)

    def announce(self) -> None:
        self._exchange.announce()

    def reload_roster(self) -> None:
        """Read the roster file again and disconnect whom it dropped; raise `ConfigError` and change nothing if it is
        wrong."""
        dropped = self._roster.reload()
        for peer in dropped - {self._own}:
            self._connections.disconnect(peer, PeerUnreachable(f"{peer} was taken off the roster", peer=peer))
        self._exchange.forget_unaccepted()
        self._connections.look_again()
        self._log.info("roster_reloaded", peers=len(self._roster.peers), dropped=len(dropped))

    def _wanted(self) -> Iterable[PeerId]:
        # Whoever is accepted and has an address: those without one are skipped by the one who dials.
        return [peer for peer in {*self._bootstrap, *self.records()} if self.accepts(peer)]


@asynccontextmanager
async def open_network(
    config: Config,
    identity: Identity,
    offer: Callable[[], Offer],
    *,
    log: FilteringBoundLogger,
    versions: tuple[int, ...] = control.VERSIONS,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Libp2pNetwork]:
    """Join the federation of `config`; `offer` is asked for the node's offer whenever a record is written.

    Raises `ConfigError` for a roster, a bootstrap or a listening address that is wrong. An exception out of the block
    comes out as it is, not in a group.
    """
    settings, federation = config.network, config.federation
    roster = Roster(config.roster_path if federation.trust is Trust.ROSTER else None)
    if roster.is_open:
        log.warning("open_trust", federation=federation.name, meaning="anybody may join and is served")
    listen = [check(address, "listen") for address in settings.listen]
    for address in settings.announce:
        check(address, "announce")
    book = AddressBook()
    for address in settings.bootstrap:
        check(address, "bootstrap")
        where, peer = split_peer(address)
        if peer is None:
            raise ConfigError(f"network.bootstrap: {address!r} must end in /p2p/PEER_ID")
        if not roster.accepts(peer):
            log.warning("bootstrap_not_on_roster", peer=peer, hint=f"finode peers trust {peer} --org NAME")
        book.configure(peer, where)
    for address in settings.dial_through:
        check(address, "dial_through")
        where, peer = split_peer(address)
        if peer is not None:  # the settings have checked that
            book.dial_through(peer, where)

    standing = Standing(trio.current_time)
    network = Libp2pNetwork(
        identity.peer_id,
        roster,
        bootstrap=book.configured - {identity.peer_id},
        standing=standing,
        log=log,
    )
    router = network._router
    host = make_host(identity, listen)
    gossip = Gossip(
        host,
        federation.name,
        accept=lambda sender, data: network._exchange.hear(sender, data),
        admitted=lambda peer: network._connections.connected(peer),
        log=log,
    )
    network._gossip = gossip
    try:
        async with trio.open_nursery() as nursery:
            connections = Connections(
                host,
                own=identity.peer_id,
                accepts=network.accepts,
                hello=Hello(federation=federation.name, versions=versions, agent=f"finode/{version('finode')}"),
                heartbeat=Heartbeat(settings.heartbeat_interval_s, settings.heartbeat_timeout_s),
                book=book,
                dialer=Dialer(host.get_network(), book, dial_timeout_s=settings.dial_timeout_s),
                router=router,
                blame=network.fault,
                nursery=nursery,
                log=log,
            )
            network._connections = connections
            network._loopback = Loopback(identity.peer_id, router, nursery)

            def on_record(record: NodeRecord) -> None:
                if book.announce(record.peer, record.addresses) and not connections.connected(record.peer):
                    connections.look_again()

            async def open_small(peer: PeerId, protocol: str) -> Stream:
                return await network.open(peer, protocol, timeout_s=settings.dial_timeout_s)

            async def introduce(newcomer: PeerId) -> None:
                for peer in connections.peers():
                    if peer != newcomer:
                        await exchange.sync(peer)

            exchange = Exchange(
                Directory(identity.peer_id, federation.name, roster),
                RecordWriter(
                    identity,
                    federation=federation.name,
                    organization=config.node.organization,
                    lifetime_s=settings.record_lifetime_s,
                ),
                standing,
                own=identity.peer_id,
                offer=offer,
                addresses=lambda: network.addresses,
                versions=versions,
                interval_s=settings.record_interval_s,
                open_stream=open_small,
                publish=gossip.publish,
                on_record=on_record,
                introduce=lambda peer: connections.spawn(introduce, peer),
                blame=network.fault,
                clock=clock,
                log=log,
            )
            network._exchange = exchange
            network.serve(directory.PROTOCOL, exchange.serve)

            def on_link(link: Link) -> None:
                connections.spawn(gossip.greet, link.peer)
                if link.dialed and not link.bulk:
                    connections.spawn(exchange.sync, link.peer)
                if not link.bulk:
                    for callback in network._on_link:
                        callback(link.peer)

            connections.on_link = on_link
            watch = Watch(connections.came_up, connections.went_down)
            # The exception of the block must pass through libp2p's contexts before anything is cancelled: a `Cancelled`
            # raised in one of them would take its place.
            async with run_host(host, listen, connections.serve, watch) as listening:
                network._addresses = tuple(split_peer(address)[0] for address in settings.announce) or announced(
                    listening
                )
                exchange.renew()
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(gossip.run)
                    tasks.start_soon(exchange.keep_publishing)
                    tasks.start_soon(exchange.keep_syncing, connections.peers)
                    for peer in network._bootstrap:
                        connections.hurry(peer)
                    tasks.start_soon(connections.stay_connected, network._wanted)
                    log.info("listening", peer=identity.peer_id, addresses=list(network.addresses))
                    yield network
                    tasks.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only(group) from None
