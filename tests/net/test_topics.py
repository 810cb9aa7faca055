"""Gossip on topics that the layers above subscribe to, over real libp2p."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.pubsub import pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record

from finode.identity import Identity, PeerId
from finode.net.interface import MAX_GOSSIP
from finode.net.standing import LOWEST
from tests.net.nodes import OpenNode, bootstrap, until

pytestmark = [pytest.mark.trio, pytest.mark.slow]
TOPIC = "finode/test/1/finode"


async def test_a_topic_carries_messages_to_whoever_subscribed(open_node: OpenNode) -> None:
    one, two = Identity.generate(), Identity.generate()
    roster = {one.peer_id: "A", two.peer_id: "B"}
    heard: list[tuple[PeerId, bytes]] = []

    def validate(sender: PeerId, data: bytes) -> bool:
        heard.append((sender, data))
        return True

    async with open_node(one, roster) as a, open_node(two, roster, bootstrap=[bootstrap(a)]) as b:
        linked: list[PeerId] = []
        b.on_link(linked.append)
        b.subscribe(TOPIC, validate)
        a.subscribe(TOPIC, lambda sender, data: True)
        await until(lambda: linked == [one.peer_id], within_s=5)
        with trio.fail_after(10):
            while not heard:
                # A subscription travels by itself: until it has arrived nobody is told.
                await a.publish(TOPIC, b"news")
                await trio.sleep(0.1)
        assert set(heard) == {(one.peer_id, b"news")}
        heard.clear()
        await a.publish(TOPIC, bytes(MAX_GOSSIP))
        await until(lambda: heard == [(one.peer_id, bytes(MAX_GOSSIP))], within_s=5)
        heard.clear()
        await a.publish(TOPIC, bytes(MAX_GOSSIP + 1))
        await until(lambda: heard == [(one.peer_id, b"")], within_s=5)
        # Records go on as before.
        await until(lambda: two.peer_id in a.records(), within_s=5)
        b.condemn(one.peer_id, "a test")
        assert b.standing(one.peer_id) == b.states()[one.peer_id].standing == LOWEST


async def test_messages_do_not_carry_their_senders_addresses(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Identity.generate(), Identity.generate()
    roster = {one.peer_id: "A", two.peer_id: "B"}
    carried: list[bool] = []

    def consume(message: Any, *others: Any) -> bool:
        if message.publish:
            carried.append(message.HasField("senderRecord"))
        taken: bool = maybe_consume_signed_record(message, *others)
        return taken

    monkeypatch.setattr(pubsub, "maybe_consume_signed_record", consume)
    async with open_node(one, roster) as a, open_node(two, roster, bootstrap=[bootstrap(a)]) as b:
        for node in (a, b):
            node.subscribe(TOPIC, lambda sender, data: True)
        await until(lambda: a.states()[two.peer_id].connected, within_s=5)
        with trio.fail_after(10):
            while not carried:
                await a.publish(TOPIC, b"news")
                await trio.sleep(0.1)

    assert not any(carried)
