"""Real nodes on libp2p: joining, knowing each other, opening streams, being refused, leaving."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from finode.config import Role
from finode.errors import ConfigError, PeerRefused, PeerTimeout, PeerUnreachable, RemoteError, VersionMismatch
from finode.identity import Identity, PeerId
from finode.net.directory import Offer
from finode.net.interface import Network, Stream
from finode.net.roster import write_roster
from finode.wire import session, shares
from finode.wire.control import Ping, Pong
from finode.wire.message import MIB
from tests.net.nodes import MakeHome, OpenNode, bootstrap, until

pytestmark = [pytest.mark.trio, pytest.mark.slow]
ONE, TWO, THREE = sorted((Identity.generate() for _ in range(3)), key=lambda identity: identity.peer_id)
ROSTER: dict[PeerId, str] = {ONE.peer_id: "One", TWO.peer_id: "Two", THREE.peer_id: "Three"}


async def echo(stream: Stream) -> None:
    while True:
        message = await stream.receive_frame(Ping, raw_limit=8 * MIB, timeout_s=30)
        if isinstance(message, Ping):
            await stream.send(Pong(number=message.number))
        elif isinstance(message, bytearray):
            await stream.send_raw(message)


async def test_a_late_node_knows_the_federation_and_is_known(open_node: OpenNode) -> None:
    async with (
        open_node(ONE, ROSTER, offer=lambda: Offer(roles=(Role.PARTY,), capacity=2)) as one,
        open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two,
    ):
        await until(lambda: len(one.records()) == len(two.records()) == 2, within_s=10)
        async with open_node(THREE, ROSTER, bootstrap=[bootstrap(one)]) as three:
            await until(lambda: set(three.records()) == set(ROSTER), within_s=3)
            await until(lambda: set(two.records()) == set(ROSTER), within_s=10)
            await until(lambda: all(state.connected for state in three.states().values()), within_s=10)
            network: Network = three
            state = network.states()[ONE.peer_id]
            assert state.organization == "One"
            assert state.record is not None
            assert (state.record.roles, state.record.capacity) == ((Role.PARTY,), 2)
            assert state.record.addresses == one.addresses
            await until(lambda: three.states()[ONE.peer_id].rtt_ms is not None, within_s=10)


async def test_a_new_offer_reaches_all_by_gossip(open_node: OpenNode) -> None:
    offers = [Offer(capacity=1)]
    async with (
        open_node(ONE, ROSTER, offer=lambda: offers[0]) as one,
        open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two,
        open_node(THREE, ROSTER, bootstrap=[bootstrap(one)]) as three,
    ):
        await until(lambda: len(two.records()) == len(three.records()) == 3, within_s=10)
        for capacity in (2, 3):
            offers[0] = Offer(capacity=capacity)
            one.announce()
            await until(lambda: two.records()[ONE.peer_id].capacity == offers[0].capacity, within_s=10)
            await until(lambda: three.records()[ONE.peer_id].capacity == offers[0].capacity, within_s=10)
        assert all(state.standing == 0 for node in (one, two, three) for state in node.states().values())


async def test_streams_carry_messages_rounds_and_bulk(open_node: OpenNode, events: list[str]) -> None:
    async def keep(stream: Stream) -> None:
        data = await stream.receive_bulk(8 * MIB, timeout_s=10)
        await stream.send_bulk(data)

    async with (
        open_node(ONE, ROSTER) as one,
        open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two,
    ):
        one.serve(session.PROTOCOL, echo)
        one.serve(shares.PROTOCOL, keep)
        rounds = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
        bulk = await two.open(ONE.peer_id, shares.PROTOCOL, timeout_s=5)
        assert rounds.peer == bulk.peer == ONE.peer_id
        data = bytes(range(256)) * 32768
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk.send_bulk, data)
            for number in range(50):
                await rounds.send(Ping(number=number))
                assert await rounds.receive(Pong, timeout_s=10) == Pong(number=number)
            assert await bulk.receive_bulk(len(data), timeout_s=10) == data
        large = bytes(5 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rounds.send_raw, large)
            assert await rounds.receive_raw(8 * MIB, timeout_s=10) == large
        # One connection for what is urgent and one for bulk, each seen by both ends.
        assert events.count("connected") == 4
        await rounds.close()
        await bulk.close()


@pytest.mark.parametrize("heard_lately", [True, False])
async def test_a_first_large_frame_waits_for_no_window(open_node: OpenNode, heard_lately: bool) -> None:
    """Both ways: a frame larger than yamux's first window is sent whole while nobody reads."""
    sent, frame = trio.Event(), bytes(3 * MIB // 2)

    async def send_first(stream: Stream) -> None:
        with trio.fail_after(10):
            await stream.send_raw(frame)
        sent.set()
        await stream.receive_raw(len(frame), timeout_s=30)
        await stream.send(Pong(number=1))

    async with open_node(ONE, ROSTER) as one, open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
        one.serve(session.PROTOCOL, send_first)
        await until(lambda: two._connections.link(ONE.peer_id) is not None, within_s=5)
        link = two._connections.link(ONE.peer_id)
        assert link is not None
        link.heard -= 0.0 if heard_lately else 5.0
        stream = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
        with trio.fail_after(10):
            await stream.send_raw(frame)
            await sent.wait()
        assert await stream.receive_raw(len(frame), timeout_s=10) == frame
        assert await stream.receive(Pong, timeout_s=10) == Pong(number=1)


async def test_who_closes_while_much_is_sent_to_it_is_heard_at_once(open_node: OpenNode) -> None:
    async def refuse(stream: Stream) -> None:
        await stream.receive(Ping, timeout_s=10)
        await stream.send(Pong(number=9))

    async with open_node(ONE, ROSTER) as one, open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
        one.serve(session.PROTOCOL, refuse)
        stream = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
        await stream.send(Ping(number=1))
        with trio.fail_after(10), pytest.raises(PeerUnreachable, match="closed the stream"):
            await stream.send_bulk(bytes(16 * MIB), timeout_s=60)
        assert await stream.receive(Pong, timeout_s=5) == Pong(number=9)


async def test_many_streams_come_and_go(open_node: OpenNode) -> None:
    async def once(stream: Stream) -> None:
        await stream.send_raw(await stream.receive_raw(100, timeout_s=10))

    async with open_node(ONE, ROSTER) as one, open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
        one.serve(session.PROTOCOL, once)
        for _ in range(400):
            stream = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
            await stream.send_raw(b"x")
            assert await stream.receive_raw(100, timeout_s=5) == b"x"
            await stream.close()


async def test_a_stream_is_used_before_the_peer_agrees_if_the_peer_was_heard_lately(open_node: OpenNode) -> None:
    async with open_node(ONE, ROSTER) as one, open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
        one.serve(session.PROTOCOL, echo)
        await until(lambda: two.states()[ONE.peer_id].connected, within_s=5)
        stream = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
        await stream.send(Ping(number=1))
        assert await stream.receive(Pong, timeout_s=5) == Pong(number=1)

        unserved = await two.open(ONE.peer_id, shares.PROTOCOL, timeout_s=5)
        with pytest.raises(PeerRefused, match="does not serve"):
            await unserved.receive(Pong, timeout_s=5)

        await until(lambda: two._connections.link(ONE.peer_id) is not None, within_s=5)
        link = two._connections.link(ONE.peer_id)
        assert link is not None
        link.heard -= 5.0  # as after five seconds of silence: then the peer is asked first
        with pytest.raises(PeerRefused, match="does not serve"):
            await two.open(ONE.peer_id, session.PROTOCOL + "0", timeout_s=5)


async def test_a_node_reaches_itself(open_node: OpenNode) -> None:
    async with open_node(ONE, ROSTER) as one:
        one.serve(session.PROTOCOL, echo)
        stream = await one.open(ONE.peer_id, session.PROTOCOL, timeout_s=1)
        await stream.send(Ping(number=1))
        assert await stream.receive(Pong, timeout_s=1) == Pong(number=1)


async def test_who_is_not_on_the_roster_gets_no_stream_and_hears_why(open_node: OpenNode, events: list[str]) -> None:
    stranger = Identity.generate()
    served = False

    async def handler(stream: Stream) -> None:
        nonlocal served
        served = True

    async with open_node(ONE, ROSTER) as one:
        one.serve(session.PROTOCOL, handler)
        roster = {**ROSTER, stranger.peer_id: "Stranger"}
        async with open_node(stranger, roster, bootstrap=[bootstrap(one)]) as outsider:
            with pytest.raises(PeerRefused, match="serves no finode") as caught:
                await outsider.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
            assert caught.value.reason == "not-on-roster"
            assert stranger.peer_id in caught.value.hint
            await until(lambda: "not_connected" in events, within_s=5)
            assert set(outsider.records()) == {stranger.peer_id}
        with pytest.raises(PeerRefused, match="not on this node's roster"):
            await one.open(stranger.peer_id, session.PROTOCOL, timeout_s=5)
        assert stranger.peer_id not in one.records()
        assert stranger.peer_id not in one.states()
    assert not served


async def test_open_trust_accepts_anybody_and_says_so(open_node: OpenNode, events: list[str]) -> None:
    stranger = Identity.generate()
    everybody = {"trust": "open"}
    async with open_node(ONE, {}, federation=everybody) as one:
        assert "open_trust" in events
        one.serve(session.PROTOCOL, echo)
        async with open_node(stranger, {}, federation=everybody, bootstrap=[bootstrap(one)]) as two:
            stream = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
            await stream.send(Ping(number=1))
            assert await stream.receive(Pong, timeout_s=5) == Pong(number=1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"versions": (7, 8)}, VersionMismatch, "speaks protocol versions 1, this node 7, 8"),
        ({"federation": {"name": "other"}}, PeerRefused, "belongs to the federation 'other'|refuses this node"),
    ],
)
async def test_who_does_not_fit_is_refused_and_both_sides_know(
    open_node: OpenNode,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, object],
    error: type[RemoteError],
    message: str,
) -> None:
    async with open_node(ONE, ROSTER) as one:
        async with open_node(TWO, ROSTER, bootstrap=[bootstrap(one)], **settings) as two:
            with pytest.raises(error, match=message):
                await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
            assert set(two.records()) == {TWO.peer_id}
        assert set(one.records()) == {ONE.peer_id}
    log = capsys.readouterr().out
    assert "peer_refused" in log
    if error is VersionMismatch:
        assert f"{TWO.peer_id} speaks protocol versions 7, 8, this node 1" in log


async def test_a_reloaded_roster_disconnects_and_lets_in(open_node: OpenNode, make_home: MakeHome) -> None:
    async with open_node(ONE, {ONE.peer_id: "One", TWO.peer_id: "Two"}) as one:
        path = make_home(ONE, {ONE.peer_id: "One", TWO.peer_id: "Two"}).roster_path
        one.serve(session.PROTOCOL, echo)
        async with (
            open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two,
            open_node(THREE, ROSTER, bootstrap=[bootstrap(one)]) as three,
        ):
            stream = await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
            with pytest.raises(PeerRefused):
                await three.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
            await until(lambda: TWO.peer_id in one.records(), within_s=5)

            write_roster(path, {ONE.peer_id: "One", THREE.peer_id: "Three again"})
            one.reload_roster()
            with pytest.raises(PeerUnreachable):
                await stream.receive(Pong, timeout_s=10)
            assert TWO.peer_id not in one.records()
            await until(lambda: three.states()[ONE.peer_id].connected, within_s=10)
            assert one.organization_of(THREE.peer_id) == "Three again"

            path.write_text("nonsense", encoding="utf-8")
            with pytest.raises(ConfigError):
                one.reload_roster()
            assert one.accepts(THREE.peer_id)


async def test_a_restarted_node_is_found_again(open_node: OpenNode, make_home: MakeHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = f"/ip4/127.0.0.1/tcp/{port}"
    async with open_node(ONE, ROSTER) as one:
        for _ in range(2):
            async with open_node(TWO, ROSTER, listen=[where]) as two:
                two.serve(session.PROTOCOL, echo)
                if TWO.peer_id not in one.records():
                    async with open_node(THREE, ROSTER, bootstrap=[bootstrap(one), bootstrap(two)]):
                        await until(lambda: TWO.peer_id in one.records(), within_s=10)
                await until(lambda: one.states()[TWO.peer_id].connected, within_s=10)
                stream = await one.open(TWO.peer_id, session.PROTOCOL, timeout_s=5)
                await stream.send(Ping(number=9))
                assert await stream.receive(Pong, timeout_s=5) == Pong(number=9)
            with pytest.raises(PeerUnreachable):
                await stream.receive(Pong, timeout_s=5)


async def test_who_cannot_be_reached_is_named_within_the_deadline(open_node: OpenNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_at = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{TWO.peer_id}"
        async with open_node(ONE, ROSTER, bootstrap=[silent_at]) as one:
            with pytest.raises(PeerTimeout, match=r"within 0\.5 s") as caught:
                await one.open(TWO.peer_id, session.PROTOCOL, timeout_s=0.5)
            assert caught.value.peer == TWO.peer_id
            with pytest.raises(PeerUnreachable, match="no address"):
                await one.open(THREE.peer_id, session.PROTOCOL, timeout_s=5)
    async with open_node(ONE, ROSTER, bootstrap=[silent_at]) as one:
        with pytest.raises(PeerUnreachable, match="Connection refused"):
            await one.open(TWO.peer_id, session.PROTOCOL, timeout_s=5)


async def test_what_is_wrong_with_the_addresses_is_said_at_once(
    open_node: OpenNode, make_home: MakeHome, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"cannot listen on .*Address already in use"):
            async with open_node(ONE, ROSTER, listen=[where]):
                raise AssertionError("it started on a taken port")
    for settings, message in (
        ({"listen": ["/ip4/192.0.2.1/tcp/0"]}, "cannot listen on"),
        ({"listen": ["nonsense"]}, r"network\.listen"),
        ({"bootstrap": [f"/ip4/1.2.3.4/udp/1/p2p/{TWO.peer_id}"]}, r"network\.bootstrap"),
    ):
        with pytest.raises(ConfigError, match=message):
            async with open_node(ONE, ROSTER, **settings):
                raise AssertionError("it started")


async def test_an_error_in_the_block_comes_out_as_it_is_and_the_exit_is_quick(open_node: OpenNode) -> None:
    async with open_node(ONE, ROSTER) as one:
        one.serve(session.PROTOCOL, echo)
        with pytest.raises(KeyError, match="from the block"):  # noqa: PT012 - the whole block is meant
            async with open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
                await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
                began = trio.current_time()
                raise KeyError("from the block")
        assert trio.current_time() - began < 3
        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                started = trio.Event()

                async def run() -> None:
                    async with open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
                        await two.open(ONE.peer_id, session.PROTOCOL, timeout_s=5)
                        started.set()
                        await trio.sleep_forever()

                nursery.start_soon(run)
                await started.wait()
                nursery.cancel_scope.cancel()


async def test_bulk_shares_the_connection_with_a_peer_that_cannot_be_dialed(
    open_node: OpenNode, events: list[str]
) -> None:
    async def take(stream: Stream) -> None:
        await stream.send_raw(len(await stream.receive_bulk(MIB, timeout_s=10)).to_bytes(4, "big"))

    async with (
        open_node(ONE, ROSTER) as one,
        open_node(TWO, ROSTER, bootstrap=[bootstrap(one)], announce=["/ip4/127.0.0.1/tcp/1"]) as two,
    ):
        two.serve(shares.PROTOCOL, take)
        await until(lambda: one.states()[TWO.peer_id].record is not None, within_s=5)
        for _ in range(2):
            stream = await one.open(TWO.peer_id, shares.PROTOCOL, timeout_s=5)
            await stream.send_bulk(bytes(MIB))
            assert await stream.receive_raw(4, timeout_s=10) == MIB.to_bytes(4, "big")
        assert events.count("no_bulk_connection") == 1


async def test_inbound_connections_are_counted_while_they_last(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finode.net.hardening.MAX_INBOUND", 3)
    monkeypatch.setattr("finode.net.hardening.MAX_HANDSHAKES_PER_HOST", 2)
    async with open_node(ONE, ROSTER) as one:
        port = int(one.addresses[0].rsplit("/", 1)[1])
        for _ in range(10):
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        # Two are shaking hands, which is all that one host may do at once: the third is turned away.
        with trio.fail_after(5):
            while await idle[2].receive_some(1024):
                pass
        for stream in idle:
            await stream.aclose()
        for _ in range(5):
            async with open_node(TWO, ROSTER, bootstrap=[bootstrap(one)]) as two:
                await until(lambda: two.states()[ONE.peer_id].connected, within_s=10)
