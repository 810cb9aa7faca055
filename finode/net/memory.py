"""A federation in one trio program: the same streams over pipes in memory, for tests of the layers above.

    federation = MemoryFederation()
    async with federation.node(identity, "Clinic North", offer) as network: ...
    federation.cut(peer)             # every stream to and from the peer fails; nobody reaches it any more
    federation.mend(peer)

Each node knows every other one's record as soon as it is announced. Streams are `FrameStream`s, so deadlines, size
limits, backpressure and errors are those of the real network. Time is trio's clock: a mock clock drives all deadlines.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from finode.errors import PeerRefused, PeerTimeout, PeerUnreachable
from finode.identity import Identity, PeerId
from finode.net.directory import Directory, Offer, RecordWriter
from finode.net.groups import only
from finode.net.interface import Handler, PeerState, Stream, Validator
from finode.net.links import Link
from finode.net.loopback import Loopback
from finode.net.pipe import MemoryPipe
from finode.net.roster import Roster
from finode.net.router import Router
from finode.net.standing import Standing
from finode.net.stream import FrameStream
from finode.wire.control import VERSIONS
from finode.wire.directory import NodeRecord


class MemoryFederation:
    """The nodes, and which of them are cut off."""

    def __init__(
        self,
        name: str = "finode",
        *,
        clock: Callable[[], float] = time.time,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.log: FilteringBoundLogger = log if log is not None else structlog.get_logger()
        self._nodes: dict[PeerId, MemoryNetwork] = {}
        self._cut: set[PeerId] = set()

    @asynccontextmanager
    async def node(
        self, identity: Identity, organization: str, offer: Callable[[], Offer]
    ) -> AsyncIterator[MemoryNetwork]:
        """Join a node; it leaves at the end. Its handlers run in a nursery of its own."""
        try:
            async with trio.open_nursery() as nursery:
                network = MemoryNetwork(self, identity, organization, offer, nursery)
                self._nodes[identity.peer_id] = network
                for other in self._nodes.values():
                    network._meet(other)
                    other._meet(network)
                network.announce()
                try:
                    yield network
                finally:
                    self.cut(identity.peer_id)
                    del self._nodes[identity.peer_id]
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None

    def cut(self, peer: PeerId) -> None:
        """Cut a peer off: its streams fail at both ends, and new ones cannot be opened."""
        self._cut.add(peer)
        for node in self._nodes.values():
            for other in list(node._links):
                if peer in (other, node.peer_id):
                    node._lose(other)

    def mend(self, peer: PeerId) -> None:
        """Let a peer that was cut off be reached again."""
        self._cut.discard(peer)
        for node in self._nodes.values():
            if node.peer_id != peer and self.reaches(node.peer_id, peer):
                node._connected(peer)
                self._nodes[peer]._connected(node.peer_id)

    def gossip(self, sender: MemoryNetwork, topic: str, data: bytes) -> None:
        """Hand a message on from neighbor to neighbor, as far as validators let it: once to each node."""
        told, waiting = {sender.peer_id}, [sender]
        while waiting:
            forwarder = waiting.pop()
            for node in self._nodes.values():
                if node.peer_id not in told and self.reaches(forwarder.peer_id, node.peer_id):
                    told.add(node.peer_id)
                    if node._hear(forwarder.peer_id, topic, data):
                        waiting.append(node)

    def reaches(self, one: PeerId, other: PeerId) -> bool:
        return {one, other} <= set(self._nodes) - self._cut

    def spread(self, record_of: MemoryNetwork) -> None:
        """Hand a node's newest record to all nodes that it reaches."""
        for node in self._nodes.values():
            if node is record_of or self.reaches(node.peer_id, record_of.peer_id):
                node._learn(record_of)


class MemoryNetwork:
    """Implements `finode.net.interface.Network` on memory."""

    def __init__(
        self,
        federation: MemoryFederation,
        identity: Identity,
        organization: str,
        offer: Callable[[], Offer],
        nursery: trio.Nursery,
    ) -> None:
        self._federation = federation
        self._identity = identity
        self._offer = offer
        self._nursery = nursery
        self._organizations = {identity.peer_id: organization}
        self._roster = Roster(None)
        self._standing = Standing(federation.clock)
        self._directory = Directory(identity.peer_id, federation.name, self._roster)
        self._writer = RecordWriter(identity, federation=federation.name, organization=organization, lifetime_s=3600.0)
        self._router = Router(federation.log.bind(node=identity.peer_id), self.fault)
        self._loopback = Loopback(identity.peer_id, self._router, nursery)
        self._links: dict[PeerId, Link] = {}
        self._topics: dict[str, Validator] = {}
        self._on_link: list[Callable[[PeerId], None]] = []

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return ("/ip4/127.0.0.1/tcp/1",)

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        if peer == self.peer_id:
            return self._loopback.open(protocol)
        other = self._federation._nodes.get(peer)
        with trio.move_on_after(timeout_s):
            await trio.lowlevel.checkpoint()
            if other is None or not self._federation.reaches(self.peer_id, peer):
                raise PeerUnreachable(f"{peer} cannot be reached", peer=peer)
            if not other._router.serves(protocol):
                raise PeerRefused(f"{peer} does not serve {protocol}", peer=peer, reason="not-served")
            mine, theirs = MemoryPipe.pair()
            stream = self._stream(mine, peer)
            other._nursery.start_soon(other._router.run, protocol, other._stream(theirs, self.peer_id))
            return stream
        raise PeerTimeout(f"{peer} was not reached within {timeout_s:g} s", peer=peer)

    def serve(self, protocol: str, handler: Handler) -> None:
        self._router.serve(protocol, handler)

    def states(self) -> Mapping[PeerId, PeerState]:
        records = self.records()
        return {
            peer: PeerState(
                peer=peer,
                organization=self.organization_of(peer),
                connected=self._federation.reaches(self.peer_id, peer),
                rtt_ms=0.1 if self._federation.reaches(self.peer_id, peer) else None,
                standing=self._standing.of(peer),
                record=records.get(peer),
            )
            for peer in self._organizations
            if peer != self.peer_id
        }

    def records(self) -> Mapping[PeerId, NodeRecord]:
        return self._directory.records(self._now_ms())

    def organization_of(self, peer: PeerId) -> str:
        return self._organizations.get(peer, "")

    def accepts(self, peer: PeerId) -> bool:
        return peer in self._organizations

    def fault(self, peer: PeerId, points: float, reason: str) -> None:
        self._standing.lower(peer, points)

    def standing(self, peer: PeerId) -> float:
        return self._standing.of(peer)

    def condemn(self, peer: PeerId, reason: str) -> None:
        self._standing.condemn(peer)

    def on_link(self, callback: Callable[[PeerId], None]) -> None:
        self._on_link.append(callback)

    def subscribe(self, topic: str, validate: Validator) -> None:
        self._topics[topic] = validate

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._federation.gossip(self, topic, data)

    def announce(self) -> None:
        signed = self._writer.write(self._offer(), addresses=self.addresses, versions=VERSIONS, now_ms=self._now_ms())
        self._directory.insert(signed, self._now_ms())
        self._federation.spread(self)

    def reload_roster(self) -> None:
        """Nothing to read: every node of the federation is on every roster."""

    def _now_ms(self) -> int:
        return int(self._federation.clock() * 1000)

    def _meet(self, other: MemoryNetwork) -> None:
        self._organizations[other.peer_id] = other._organizations[other.peer_id]
        self._learn(other)
        if other is not self:
            self._connected(other.peer_id)

    def _connected(self, peer: PeerId) -> None:
        for callback in self._on_link:
            callback(peer)

    def _hear(self, forwarder: PeerId, topic: str, data: bytes) -> bool:
        return topic in self._topics and self._topics[topic](forwarder, data)

    def _learn(self, other: MemoryNetwork) -> None:
        for signed in other._directory.answer(self._directory.have()).records:
            if signed.signer == other.peer_id:
                self._directory.insert(signed, self._now_ms())

    def _stream(self, pipe: MemoryPipe, peer: PeerId) -> FrameStream:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = Link(peer, bulk=False, dialed=True, drop=lambda: None)
        stream = FrameStream(pipe, peer, pacer=link.pacer, on_end=link.discard)
        link.add(stream)
        return stream

    def _lose(self, peer: PeerId) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            link.end(PeerUnreachable(f"{peer} was lost", peer=peer))
