"""Ledgers of several nodes: records spread, late ones catch up, lies and contradictions cost their authors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from finode.errors import BadSignature, LocalProtocolError, PeerUnreachable
from finode.identity import Identity, PeerId
from finode.ledger.envelopes import envelope
from finode.ledger.intake import SKEW_MS
from finode.ledger.store import Added, Ledger
from finode.net.directory import Offer
from finode.net.interface import Stream
from finode.net.memory import MemoryFederation, MemoryNetwork
from finode.net.standing import LOWEST
from finode.node.ledger_keeper import FIRST_MESSAGES, SYNC_TIMEOUT_S, LedgerKeeper
from finode.node.receipt_streams import ReceiptStreams
from finode.wire import canonical
from finode.wire.message import Message
from finode.wire.receipts import PROTOCOL, Order, SignedReceipt
from finode.wire.reconciliation import Compare, Compared, Envelope, FetchRecords, KeyRange, LedgerRecords, RecordKind
from finode.wire.signed import open_signed, sign
from tests.fakes.federation import until
from tests.ledger.making import (
    DEALER,
    FEDERATION,
    FIRST,
    MEMBERS,
    OWNER,
    QUERIER,
    SECOND,
    START_MS,
    STRANGER,
    order_of,
    receipt_of,
    signed_receipt,
    signed_statement,
    statement_of,
    verified_receipt,
)

pytestmark = pytest.mark.trio
TOPIC = f"finode/receipts/1/{FEDERATION}"
NOW_S = START_MS / 1000 + 7200


@dataclass
class Node:
    network: MemoryNetwork
    keeper: LedgerKeeper
    ledger: Ledger
    added: list[Added]

    @property
    def peer(self) -> PeerId:
        return self.network.peer_id


class World:
    """Nodes on memory links, on all of whose rosters the members of the test records stand."""

    def __init__(self, root: Path, *, interval_s: float = 600.0) -> None:
        self._root = root
        self._interval_s = interval_s
        self.federation = MemoryFederation(FEDERATION)

    @asynccontextmanager
    async def node(self, identity: Identity) -> AsyncIterator[Node]:
        async with self.federation.node(identity, identity.peer_id[-6:], Offer) as network:
            for member in (*MEMBERS, OWNER):
                network._organizations.setdefault(member.peer_id, "a member")
            with closing(Ledger.open(self._root / f"{identity.peer_id}.sqlite")) as ledger:
                keeper = LedgerKeeper(
                    ledger,
                    network,
                    federation=FEDERATION,
                    interval_s=self._interval_s,
                    log=structlog.get_logger(),
                    clock=lambda: NOW_S,
                )
                streams = ReceiptStreams(network)
                streams.route(FIRST_MESSAGES, keeper.serve_sync)
                streams.open()
                added: list[Added] = []
                keeper.listen(added.extend)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keeper.run)
                    yield Node(network, keeper, ledger, added)
                    nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def nodes(self, *identities: Identity) -> AsyncIterator[list[Node]]:
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(self.node(identity)) for identity in identities]
            await trio.testing.wait_all_tasks_blocked()
            yield nodes


def equal(nodes: list[Node]) -> bool:
    return len({node.ledger.dump() for node in nodes}) == 1


async def test_what_one_files_all_get_by_gossip(tmp_path: Path) -> None:
    async with World(tmp_path).nodes(FIRST, SECOND, DEALER) as nodes:
        await nodes[0].keeper.file(signed_receipt(receipt_of()))

        assert nodes[0].ledger.receipts() == (verified_receipt(),)  # at once
        await until(lambda: all(node.added for node in nodes))
        assert equal(nodes)
        for node in nodes:
            assert node.added == [Added(record=verified_receipt(), previous=None)]
        await nodes[1].keeper.file(signed_receipt(receipt_of()))
        assert len(nodes[1].added) == 1


async def test_whoever_waits_hears_of_a_change(tmp_path: Path) -> None:
    async with World(tmp_path).nodes(FIRST) as (node,), trio.open_nursery() as nursery:
        nursery.start_soon(node.keeper.changed)
        await trio.testing.wait_all_tasks_blocked()
        await node.keeper.file(signed_receipt(receipt_of()))


async def test_what_is_not_true_is_not_filed(tmp_path: Path) -> None:
    bad = SignedReceipt(
        body=receipt_of(1).encode(),
        order=signed_receipt(receipt_of(0)).order,
        signatures=signed_receipt(receipt_of(0)).signatures,
    )
    async with World(tmp_path).nodes(FIRST) as (node,):
        with pytest.raises(BadSignature):
            await node.keeper.file(bad)
        assert node.ledger.receipts() == ()


@pytest.mark.slow
@pytest.mark.parametrize("late", [Identity.from_seed(bytes([seed] * 32)) for seed in (3, 4)], ids=["one", "other"])
async def test_a_late_joiner_gets_all(tmp_path: Path, late: Identity) -> None:
    """With an id below and above the others': of two peers the lower one opens a sync when they meet."""
    world = World(tmp_path, interval_s=0.3)
    async with world.nodes(FIRST, SECOND) as nodes:
        nodes[0].ledger.add_all([verified_receipt(number) for number in range(100)])
        await nodes[0].keeper.file(signed_statement(statement_of()))

        async with world.node(late) as newcomer:
            await until(lambda: equal([newcomer, nodes[0]]))
            assert newcomer.ledger.counts()[RecordKind.RECEIPT] == 100
            await until(lambda: equal([newcomer, *nodes]))


@pytest.mark.slow
async def test_two_sides_of_a_partition_end_with_the_same(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.nodes(FIRST, SECOND, DEALER) as nodes:
        world.federation.cut(FIRST.peer_id)
        for number in range(20):
            await nodes[0].keeper.file(signed_receipt(receipt_of(number), (FIRST, QUERIER)))
            await nodes[1].keeper.file(signed_receipt(receipt_of(number + 10), (SECOND, DEALER)))
        await until(lambda: equal(nodes[1:]))
        assert not equal(nodes[:2])

        world.federation.mend(FIRST.peer_id)

        await until(lambda: equal(nodes))
        assert nodes[0].ledger.counts()[RecordKind.RECEIPT] == 30
        merged = nodes[2].ledger.receipt(receipt_of(15).id.hex())
        assert merged.withheld == ()


async def test_what_gossip_lost_comes_by_sync(tmp_path: Path) -> None:
    async with World(tmp_path, interval_s=0.05).nodes(FIRST, SECOND) as nodes:
        for node in nodes:
            node.network._topics.clear()
        await nodes[0].keeper.file(signed_receipt(receipt_of(0)))
        await nodes[1].keeper.file(signed_receipt(receipt_of(1)))

        await until(lambda: equal(nodes))


async def test_a_record_too_large_for_gossip_is_synced_at_once(tmp_path: Path) -> None:
    statement = statement_of(classes=150, joint=(1 << 40,) * 22500, counts=(7,) * 300)
    async with World(tmp_path).nodes(FIRST, SECOND) as nodes:
        await nodes[1].keeper.file(signed_statement(statement))

        await until(lambda: equal(nodes))
        assert len(nodes[0].ledger.statements()) == 1


@pytest.mark.slow
async def test_a_contradiction_condemns_its_signer_on_every_node(tmp_path: Path) -> None:
    """Two nodes get one body each; whoever has both has the proof, and gossips it."""
    world = World(tmp_path)
    async with world.nodes(FIRST, DEALER, OWNER, SECOND) as nodes:
        honest, cheat = nodes[:3], SECOND.peer_id
        world.federation.cut(FIRST.peer_id)
        await nodes[0].keeper.file(signed_receipt(receipt_of(), (SECOND,)))
        await nodes[1].keeper.file(signed_receipt(receipt_of(count=3), (SECOND, DEALER)))
        assert all(node.network.standing(cheat) == 0 for node in honest)

        world.federation.mend(FIRST.peer_id)

        await until(lambda: all(node.network.standing(cheat) == LOWEST for node in honest))
        assert {node.ledger.condemned() for node in honest} == {frozenset({cheat})}
        await until(lambda: equal(honest))
        world.federation.cut(OWNER.peer_id)
    # After a restart, too.
    async with world.nodes(OWNER) as (again,):
        assert again.network.standing(cheat) == LOWEST


async def test_gossip_that_is_not_true_costs_the_one_who_passes_it_on(tmp_path: Path) -> None:
    altered = bytearray(envelope(signed_receipt(receipt_of())).data)
    altered[altered.index(b"digits")] ^= 1
    other_federation = envelope(signed_receipt(receipt_of(federation="other")))
    async with World(tmp_path).nodes(FIRST, SECOND) as nodes:
        before = nodes[1].network.standing(FIRST.peer_id)
        for data in (
            b"\xc1 garbage",
            canonical.encode(Envelope(kind=RecordKind.RECEIPT, data=bytes(altered))),
            canonical.encode(other_federation),
        ):
            await nodes[0].network.publish(TOPIC, data)
            after = nodes[1].network.standing(FIRST.peer_id)
            assert after == pytest.approx(before - 10, abs=0.1)
            before = after
        assert nodes[1].ledger.receipts() == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"querier": STRANGER.peer_id},
        {"started_ms": int(NOW_S * 1000), "ended_ms": int(NOW_S * 1000) + SKEW_MS + 1},
    ],
    ids=["not-on-the-roster", "from-the-future"],
)
async def test_a_true_record_that_may_not_enter_yet_costs_nothing(tmp_path: Path, changes: dict[str, int]) -> None:
    receipt = receipt_of(0, **changes)
    order = open_signed(order_of(receipt), Order)
    querier = STRANGER if receipt.querier == STRANGER.peer_id else QUERIER
    record = signed_receipt(receipt, (FIRST, SECOND), order=sign(querier, order))
    async with World(tmp_path).nodes(FIRST, SECOND) as nodes:
        assert await nodes[1].keeper.take(FIRST.peer_id, [envelope(record)]) == 0
        assert nodes[1].network.standing(FIRST.peer_id) == 0
        assert nodes[1].ledger.receipts() == ()
        await nodes[1].keeper.file(record)
        assert nodes[1].ledger.receipts() == ()


EVERYTHING = Compare(ranges=(KeyRange(start=b"", until=b"", count=0, fingerprint=b""),))


async def test_a_listener_answers_what_the_protocol_says(tmp_path: Path) -> None:
    record = envelope(signed_receipt(receipt_of()))
    async with World(tmp_path).nodes(FIRST, SECOND) as nodes:
        nodes[0].ledger.add_all([verified_receipt()])
        stream = await nodes[1].network.open(FIRST.peer_id, PROTOCOL, timeout_s=1)
        await stream.send(EVERYTHING)
        assert (await stream.receive(Compared, timeout_s=1)).have == (record.hash(),)
        await stream.send(FetchRecords(hashes=(bytes(32), record.hash())))
        assert await stream.receive(LedgerRecords, timeout_s=1) == LedgerRecords(records=(record,), done=2)
        await stream.close()


async def test_a_peer_of_bad_standing_is_told_nothing(tmp_path: Path) -> None:
    async with World(tmp_path).nodes(FIRST, SECOND) as nodes:
        nodes[0].network.condemn(SECOND.peer_id, "a test")
        stream = await nodes[1].network.open(FIRST.peer_id, PROTOCOL, timeout_s=1)
        await stream.send(EVERYTHING)
        with pytest.raises(PeerUnreachable):
            await stream.receive(Compared, timeout_s=1)
        await nodes[1].network.publish(TOPIC, canonical.encode(envelope(signed_receipt(receipt_of()))))
        await trio.testing.wait_all_tasks_blocked()
        assert nodes[0].ledger.receipts() == ()


async def test_a_listener_that_answers_other_than_asked_is_blamed(tmp_path: Path) -> None:
    wanted = envelope(signed_receipt(receipt_of(0)))

    async def lie(stream: Stream) -> None:
        await stream.receive(Compare, timeout_s=1)
        await stream.send(Compared(ranges=(), have=(wanted.hash(),), want=(), until=b""))
        await stream.receive(FetchRecords, timeout_s=1)
        await stream.send(LedgerRecords(records=(wanted,), done=2))

    world = World(tmp_path)
    async with world.node(FIRST) as node, world.federation.node(SECOND, "liar", Offer) as liar:
        liar.serve(PROTOCOL, lie)
        await node.keeper.sync(SECOND.peer_id)
        assert node.network.standing(SECOND.peer_id) < -7
        assert node.ledger.receipts() == ()


async def test_a_listener_that_never_comes_to_an_end_is_left(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def dawdle(stream: Stream) -> None:
        for number in count(1):
            await stream.receive(Compare, timeout_s=60)
            await trio.sleep(15)
            await stream.send(Compared(ranges=(), have=(), want=(), until=number.to_bytes(8, "big")))

    world = World(tmp_path)
    async with world.node(FIRST) as node, world.federation.node(SECOND, "dawdler", Offer) as dawdler:
        dawdler.serve(PROTOCOL, dawdle)
        with trio.fail_after(2 * SYNC_TIMEOUT_S):
            await node.keeper.sync(SECOND.peer_id)


async def test_a_first_message_has_one_server() -> None:
    streams = ReceiptStreams(network=None)  # type: ignore[arg-type]

    async def serve(stream: Stream, first: Message) -> None:
        raise AssertionError("no stream comes in")

    streams.route((Compare,), serve)
    with pytest.raises(LocalProtocolError, match="Compare"):
        streams.route((Compare,), serve)
