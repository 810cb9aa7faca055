"""Directory records and other topics by gossip: libp2p's gossipsub, hardened as in NETWORK.md.

Gossip is a hint. It is lossy, so the directory is also synced with each peer on connect and from time to time; and
whatever goes wrong in it must end neither the host nor the node. A message that libp2p cannot digest is dropped
(`SafePubsub.push_msg`), and a gossip service that ends nevertheless is started again.

Only admitted peers (on the roster, past hello) are told anything: libp2p would subscribe with every connection. Peers
suggested by others (peer exchange) are never dialed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import IHost, INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.score import ScoreParams, TopicScoreParams
from libp2p.tools.anyio_service import background_trio_service
from structlog.typing import FilteringBoundLogger

from finode.identity import PeerId
from finode.net.directory import MAX_ENVELOPE
from finode.net.interface import MAX_GOSSIP, Validator
from finode.wire.message import KIB

PROTOCOLS = (PROTOCOL_ID_V12, PROTOCOL_ID_V11)
RESTART_S = 1.0
"""Pause before a gossip service that ended is started again."""
MAX_RPC = 4 * MAX_GOSSIP + 64 * KIB
"""Largest gossip frame: a few records and the control messages around them."""


class SafePubsub(Pubsub):
    """A pubsub that a peer's bytes cannot end, and that talks to admitted peers only."""

    def __init__(self, *args: Any, admitted: Callable[[PeerId], bool], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admitted = admitted
        # libp2p counts from the second of the start, so that a restarted node's messages pass for duplicates.
        self.counter = time.time_ns()

    async def push_msg(self, msg_forwarder: ID, msg: Any) -> None:
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception:  # the edge: a garbage key or sender id raises from deep inside libp2p, and ends its service
            if msg_forwarder == self.my_id:
                raise

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        # libp2p puts the sender's signed addresses into every message, and verifies them twice at its receiver, which
        # costs more than the message itself. They serve those who dial whom gossip names: nobody here.
        rpc_msg.ClearField("senderRecord")
        sent: bool = await super().write_msg(stream, rpc_msg)
        return sent

    async def _handle_new_peer(self, peer_id: ID) -> None:
        if self._admitted(PeerId(str(peer_id))):
            await super()._handle_new_peer(peer_id)


class QuietGossipSub(GossipSub):
    """A gossipsub that does not dial whom a peer names."""

    async def _do_px(self, px_peers: list[Any]) -> None:
        await trio.lowlevel.checkpoint()


class Gossip:
    """The federation's topic of records, and those that are subscribed to besides."""

    def __init__(
        self,
        host: IHost,
        federation: str,
        *,
        accept: Validator,
        admitted: Callable[[PeerId], bool],
        log: FilteringBoundLogger,
    ) -> None:
        self._host = host
        self.topic = f"finode/records/1/{federation}"
        self._topics: dict[str, tuple[Validator, int]] = {self.topic: (accept, MAX_ENVELOPE)}
        self._admitted = admitted
        self._log = log
        self._pubsub: SafePubsub | None = None
        self._changed = trio.Event()

    def subscribe(self, topic: str, validate: Validator) -> None:
        """Serve one more topic."""
        self._topics[topic] = (validate, MAX_GOSSIP)
        self._changed.set()

    async def run(self) -> None:
        """Serve the topic until cancelled."""
        while True:
            try:
                await self._serve()
            except Exception:  # the edge: one of libp2p's tasks failed, which ends its service; begin again
                self._log.exception("gossip_failed")
            await trio.sleep(RESTART_S)

    async def _serve(self) -> None:
        router = QuietGossipSub(
            protocols=list(PROTOCOLS),
            degree=4,
            degree_low=2,
            degree_high=6,
            heartbeat_interval=1,
            max_messages_per_topic_per_second=1000,
            score_params=ScoreParams(
                p4_invalid_messages=TopicScoreParams(weight=-10, cap=100, decay=0.9),
                publish_threshold=-50,
                gossip_threshold=-20,
                graylist_threshold=-80,
            ),
        )
        pubsub = SafePubsub(
            self._host,
            router,
            admitted=self._admitted,
            strict_signing=True,
            max_inbound_rpc_size=MAX_RPC,
            allowed_topics=frozenset(self._topics),
        )
        async with background_trio_service(pubsub), background_trio_service(router), trio.open_nursery() as nursery:
            await pubsub.wait_until_ready()
            self._pubsub = pubsub
            try:
                for peer in self._host.get_live_peers():
                    pubsub.manager.run_task(pubsub.ensure_peer_stream, peer)
                served: set[str] = set()
                while True:
                    self._changed = trio.Event()
                    for topic in self._topics.keys() - served:
                        await self._join(pubsub, topic, nursery)
                        served.add(topic)
                    await self._changed.wait()
            finally:
                self._pubsub = None

    async def _join(self, pubsub: SafePubsub, topic: str, nursery: trio.Nursery) -> None:
        validate, limit = self._topics[topic]

        def judge(forwarder: ID, message: Any) -> bool:
            if forwarder == self._host.get_id():
                return True
            return validate(PeerId(str(forwarder)), message.data if len(message.data) <= limit else b"")

        pubsub.allowed_topics = frozenset(self._topics)
        pubsub.set_topic_validator(topic, judge, False)
        nursery.start_soon(_drain, await pubsub.subscribe(topic))

    async def publish(self, data: bytes, topic: str = "") -> None:
        """Tell the federation, on the topic of records or another; nothing happens while the service is down."""
        if self._pubsub is not None:
            try:
                await self._pubsub.publish(topic or self.topic, data)
            except (BaseLibp2pError, OSError) as error:
                self._log.info("gossip_not_published", error=str(error))

    async def greet(self, peer: PeerId) -> None:
        """Begin gossip with a peer that was admitted just now."""
        if self._pubsub is not None:
            await self._pubsub.ensure_peer_stream(ID.from_base58(peer))


async def _drain(subscription: Any) -> None:
    """Take what a topic's validator has seen already: an unread subscription would only fill up."""
    while True:
        await subscription.get()
