"""Bundles dealt ahead: refilled, used once, waited for, filled up, cut, burned; on memory links, with real workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from finode.committee.sealed import SealedCommittee
from finode.errors import LocalProtocolError, SessionAborted
from finode.net.interface import Stream
from finode.net.memory import MemoryFederation
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from finode.node.negotiator import dissolve
from finode.smpc.engine import Program
from finode.smpc.native import NativeEngine
from finode.wire import canonical, preprocessing, shares
from finode.wire import committee as committee_wire
from finode.wire.committee import Accepted, Dissolve, Propose, RefusalReason, Refuse
from finode.wire.message import MIB
from finode.wire.preprocessing import Deal
from finode.wire.shares import Failed, Fault, Verdict
from tests.fakes.federation import Member, federation_of, toy_probabilities, until

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1]},
    "beta": {"roles": ["owner"], "models": [2]},
    "p1": {"roles": ["party"]},
    "p2": {"roles": ["party"]},
    "d1": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}
X = np.random.default_rng(5).normal(size=(20, 4))


@asynccontextmanager
async def federation(
    root: Path, **sections: dict[str, Any]
) -> AsyncIterator[tuple[MemoryFederation, dict[str, Member]]]:
    """The layout, with `sections` set at every node."""
    layout = {name: what | sections for name, what in LAYOUT.items()}
    async with federation_of(root, layout) as (network, members):
        yield network, members


async def _ask(members: dict[str, Member], count: int, **options: Any) -> QueryAnswer:
    async def silent(progress: QueryProgress) -> None:
        return None

    request = QueryRequest(service="toy", inputs=X[:count], **options)
    answer = await members["asker"].node.query(request, silent)
    assert answer.probabilities is not None
    assert len(answer.labels) == count
    assert np.abs(np.array(answer.probabilities) - toy_probabilities([1, 2], X[:count])).max() < 0.002
    return answer


def _kept(member: Member) -> int:
    """How many bundles lie in a member's worker."""
    return member.pool.worker.bundles


async def _full(members: dict[str, Member], count: int = 2) -> None:
    """Wait until the pool is refilled, and known to be at the querier."""
    await until(lambda: all(_kept(members[name]) == count for name in ("p1", "p2")))
    await trio.testing.wait_all_tasks_blocked()


def _dealt_batches(members: dict[str, Member]) -> list[int]:
    requests = [request for request in members["d1"].pool.worker.requests if request["kind"] == "deal"]
    return [canonical.decode(request["program"], Program).batch for request in requests]


@pytest.mark.slow
@pytest.mark.trio
async def test_after_the_first_query_bundles_lie_ready_and_are_replaced_when_used(tmp_path: Path) -> None:
    async with federation(tmp_path) as (_, members):
        first = await _ask(members, 4)
        await _full(members)
        second = await _ask(members, 4)
        await _full(members)
        third = await _ask(members, 3)

        assert not first.timings.dealt_ahead
        assert second.timings.dealt_ahead
        assert third.timings.dealt_ahead
        assert second.traffic.offline_bytes == first.traffic.offline_bytes
        await _full(members)
        # One that was asked for, two ahead, and one for each that was used.
        assert _dealt_batches(members) == [4] * 5


@pytest.mark.trio
async def test_nothing_is_dealt_ahead_where_the_dealer_keeps_no_pool(tmp_path: Path) -> None:
    async with federation(tmp_path, dealer={"pool_bundles": 0}) as (_, members):
        for _ in range(2):
            assert not (await _ask(members, 2)).timings.dealt_ahead
        assert _dealt_batches(members) == [2, 2]
        await until(lambda: _kept(members["p1"]) == 0)


@pytest.mark.trio
async def test_a_query_waits_for_the_bundle_that_is_being_dealt(tmp_path: Path) -> None:
    async with federation(tmp_path, dealer={"pool_bundles": 1}) as (_, members):
        await _ask(members, 1)
        await _full(members, 1)
        dealer, answers = members["d1"].pool.worker, list[QueryAnswer]()
        dealer.hold = trio.Event()
        assert (await _ask(members, 1)).timings.dealt_ahead
        await trio.testing.wait_all_tasks_blocked()
        assert len(_dealt_batches(members)) == 3

        async def ask() -> None:
            answers.append(await _ask(members, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            dealer.hold.set()
        await _full(members, 1)

        assert not answers[0].timings.dealt_ahead
        assert len(_dealt_batches(members)) == 4  # none was made for it alone: the fourth replaces the third


@pytest.mark.trio
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (3, 4), (5, 8), (9, 12)])
async def test_a_batch_is_filled_up_to_a_power_of_two_or_to_the_most(tmp_path: Path, count: int, batch: int) -> None:
    async with federation(tmp_path, querier={"max_batch": 12}, dealer={"pool_bundles": 0}) as (_, members):
        await _ask(members, count)
        assert _dealt_batches(members) == [batch]
        sessions = [view for view in members["p1"].node.sessions() if view.role == "party"]
        assert [view.batch for view in sessions] == [batch]


@pytest.mark.trio
async def test_inputs_that_fill_a_batch_count_against_the_quota(tmp_path: Path) -> None:
    async with federation(tmp_path, querier={"quota": 8, "max_batch": 4}) as (_, members):
        answers = [await _ask(members, 3) for _ in range(3)]
        assert answers[0].committee.id == answers[1].committee.id
        assert answers[2].committee.id != answers[0].committee.id


@pytest.mark.trio
async def test_a_large_query_is_cut_into_sessions_and_answered_as_one(tmp_path: Path) -> None:
    async with federation(tmp_path, querier={"max_batch": 8}) as (_, members):
        answer = await _ask(members, 20)
        sessions = [view for view in members["p1"].node.sessions() if view.role == "party"]
        one = await _ask(members, 8)

        assert sorted(view.batch for view in sessions) == [4, 8, 8]
        assert len({view.session for view in sessions}) == 3
        assert answer.session in {view.session for view in sessions}
        assert answer.traffic.rounds == 3 * one.traffic.rounds
        assert answer.traffic.bytes_sent_per_party[0] > 2 * one.traffic.bytes_sent_per_party[0]


@pytest.mark.trio
async def test_a_party_with_little_memory_gets_smaller_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeEngine, "memory_bytes", lambda engine, program: program.batch * (3 << 20))
    async with federation(tmp_path, party={"session_memory_mb": 16}) as (_, members):
        await _ask(members, 12)
        sessions = [view for view in members["p2"].node.sessions() if view.role == "party"]
        assert [view.batch for view in sessions] == [2, 5, 5]


async def _begin(members: dict[str, Member], sealed: SealedCommittee, session: bytes, serial: bytes) -> Stream:
    """Have the querier begin a session of two inputs at p1 alone."""
    start = members["asker"].start(session, sealed.id, serial, 2, 2 * 4 * 8, terms=sealed.terms)
    stream = await members["asker"].network.open(members["p1"].peer, shares.PROTOCOL, timeout_s=1)
    await stream.send(start)
    await stream.send_bulk(bytes(start.input_bytes))
    return stream


async def _refusal(stream: Stream) -> Verdict:
    """Long before the time that a party waits for a bundle is over."""
    with trio.fail_after(5):
        while not isinstance(reply := await stream.receive(Failed, shares.SessionProgress, timeout_s=5), Failed):
            pass
    return reply.verdict


def _used(member: Member) -> bytes:
    """The name at a party of the bundle that its first session used; the serial is its end."""
    name: bytes = next(request["bundle"] for request in member.pool.worker.requests if request["kind"] == "run")
    return name


@pytest.mark.slow
@pytest.mark.trio
async def test_a_bundle_is_refused_the_second_time_at_once_for_the_querier_s_fault(tmp_path: Path) -> None:
    """The querier itself names a bundle again that its own session has used up."""
    async with federation(tmp_path, session={"deal_timeout_s": 60.0}) as (_, members):
        await _ask(members, 2)
        await _full(members)
        party, used = members["p1"], _used(members["p1"])
        (sealed,) = party.desk.book

        verdict = await _refusal(await _begin(members, sealed, b"n" * 16, used[-16:]))

        assert (verdict.culprit, verdict.fault) == (members["asker"].peer, Fault.PROTOCOL)
        await until(lambda: party.desk.book.seats_in_use == 0)
        await until(lambda: party.network.states()[members["asker"].peer].standing < 0)
        assert party.network.states()[members["d1"].peer].standing == 0
        with pytest.raises(LocalProtocolError, match="used, burned, or never came"):
            await party.pool.worker.request(
                {"kind": "run", "run": b"r" * 16, "bundle": used, "zero_parties": []}, [b""]
            )


@pytest.mark.slow
@pytest.mark.trio
async def test_of_two_sessions_with_one_serial_the_second_is_refused_while_the_first_waits(tmp_path: Path) -> None:
    async with federation(tmp_path, session={"deal_timeout_s": 60.0}) as (_, members):
        await _ask(members, 2)
        await _full(members)
        party = members["p1"]
        (sealed,) = party.desk.book
        first = await _begin(members, sealed, b"1" * 16, b"s" * 16)
        await trio.testing.wait_all_tasks_blocked()
        second = await _begin(members, sealed, b"2" * 16, b"s" * 16)

        verdict = await _refusal(second)

        assert (verdict.culprit, verdict.fault) == (members["asker"].peer, Fault.PROTOCOL)
        await until(lambda: party.desk.book.seats_in_use == 1)
        (waiting,) = [view for view in party.node.sessions() if not view.outcome]
        assert waiting.session == (b"1" * 16).hex()
        await first.close()
        await until(lambda: party.desk.book.seats_in_use == 0)
        assert party.network.states()[members["d1"].peer].standing == 0


@pytest.mark.slow
@pytest.mark.trio
async def test_a_serial_from_before_a_restart_is_refused_at_once_as_its_committee_is(tmp_path: Path) -> None:
    """Bundles and committees live in memory, and terms made before a node started are not accepted by it again."""
    async with federation(tmp_path) as (_, members):
        await _ask(members, 2)
        (sealed,) = members["p1"].desk.book
        serial, identities = _used(members["p1"])[-16:], {name: member.identity for name, member in members.items()}
    again = {name: {key: value for key, value in what.items() if key != "models"} for name, what in LAYOUT.items()}
    async with federation_of(tmp_path, again, identities) as (_, members):
        verdict = await _refusal(await _begin(members, sealed, b"n" * 16, serial))
        assert (verdict.culprit, verdict.fault) == (members["p1"].peer, Fault.NOT_SEALED)

        stream = await members["asker"].network.open(members["p1"].peer, committee_wire.PROTOCOL, timeout_s=1)
        await stream.send(Propose(terms=sealed.terms))
        refused = await stream.receive(Accepted, Refuse, timeout_s=5)
        assert isinstance(refused, Refuse)
        assert refused.reason is RefusalReason.EXPIRED
        await _ask(members, 2)
        assert members["p1"].pool.worker.requests
        assert _used(members["p1"])[-16:] != serial


@pytest.mark.trio
async def test_a_dealer_deals_no_serial_twice_and_lays_it_to_the_querier(tmp_path: Path) -> None:
    """A second offer of one would cost it its standing with the parties. A new stream changes nothing."""
    async with federation(tmp_path, dealer={"pool_bundles": 0}) as (_, members):
        await _ask(members, 2)
        asker, dealer = members["asker"], members["d1"]
        (sealed,) = dealer.desk.book
        again = Deal(committee=sealed.id, serial=_used(members["p1"])[-16:], batch=2)
        stream = await asker.network.open(dealer.peer, preprocessing.PROTOCOL, timeout_s=1)
        await stream.send(again)

        with trio.fail_after(5):
            reply = await stream.receive(Failed, preprocessing.Dealt, timeout_s=5)

        assert isinstance(reply, Failed)
        assert (reply.verdict.culprit, reply.verdict.fault) == (asker.peer, Fault.PROTOCOL)
        assert members["p1"].network.states()[dealer.peer].standing == 0


@pytest.mark.slow
@pytest.mark.trio
async def test_a_lost_dealer_takes_its_bundles_along_and_the_querier_leaves_the_committee(tmp_path: Path) -> None:
    layout = LAYOUT | {"d2": {"roles": ["dealer"]}}
    async with federation_of(tmp_path, layout) as (network, members):
        first = await _ask(members, 2)
        await _full(members)
        dealer = next(name for name in ("d1", "d2") if members[name].peer == first.committee.dealer)
        network.cut(members[dealer].peer)
        await until(lambda: all(_kept(members[name]) == 0 for name in ("p1", "p2")))

        second = await _ask(members, 2)

        assert second.committee.dealer != first.committee.dealer
        assert second.attempts == 1  # nothing was tried on the committee that could not answer any more


@pytest.mark.slow
@pytest.mark.trio
async def test_bundles_die_with_the_worker_and_the_session_gets_a_fresh_one(tmp_path: Path) -> None:
    layout = LAYOUT | {"p3": {"roles": ["party"]}}
    async with federation_of(tmp_path, layout) as (_, members):
        first = await _ask(members, 2)
        party = next(member for member in members.values() if member.peer == first.committee.parties[0])
        await until(lambda: _kept(party) == 2)
        party.pool.worker.die()
        await trio.testing.wait_all_tasks_blocked()

        second = await _ask(members, 2)

        assert party.peer not in second.committee.parties


@pytest.mark.trio
async def test_a_bundle_that_the_dealer_cannot_deal_now_ends_its_session_and_not_the_pool(tmp_path: Path) -> None:
    layout = dict(LAYOUT, d1=LAYOUT["d1"] | {"node": {"capacity": 1}, "dealer": {"pool_bundles": 0}})
    async with federation_of(tmp_path, layout) as (_, members):
        before = await _ask(members, 1)
        dealer, answers = members["d1"].pool.worker, list[QueryAnswer]()
        dealer.hold = held = trio.Event()

        async def ask() -> None:
            answers.append(await _ask(members, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: any(not view.outcome for view in members["d1"].node.sessions()))
            with pytest.raises(SessionAborted, match="is busy"):
                await _ask(members, 2, deadline_s=1)
            held.set()

        assert answers[0].attempts == 1
        assert answers[0].committee.id == before.committee.id


@pytest.mark.trio
async def test_a_committee_that_ends_burns_its_bundles(tmp_path: Path) -> None:
    async with federation(tmp_path) as (_, members):
        answer = await _ask(members, 2)
        await _full(members)
        message = Dissolve(committee=bytes.fromhex(answer.committee.id), reason="no more questions")
        for name in ("p1", "p2"):
            await dissolve(members["asker"].network, members[name].peer, message)
        await until(lambda: all(_kept(members[name]) == 0 for name in ("p1", "p2")))


@pytest.mark.slow
@pytest.mark.trio
async def test_a_cancelled_query_leaves_no_bundle_behind(tmp_path: Path) -> None:
    async with federation(tmp_path) as (_, members):
        await _ask(members, 2)
        await _full(members)
        members["p1"].pool.worker.hold = trio.Event()
        with trio.move_on_after(0.1):
            await _ask(members, 2)
        members["p1"].pool.worker.hold.set()
        members["p1"].pool.worker.hold = None
        await until(lambda: all(_kept(members[name]) <= 2 for name in ("p1", "p2")))
        await _ask(members, 2)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_party_takes_no_more_ahead_than_it_has_room_for(tmp_path: Path) -> None:
    layout = dict(LAYOUT, p2=LAYOUT["p2"] | {"party": {"pool_bundles": 1}})
    async with federation_of(tmp_path, layout) as (_, members):
        await _ask(members, 2)
        await until(lambda: _kept(members["p2"]) == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert _kept(members["p2"]) == 1
        assert (await _ask(members, 2)).timings.dealt_ahead
        assert await _waits_for_nothing(members)


def _dealt_program(members: dict[str, Member]) -> Program:
    request = next(request for request in members["d1"].pool.worker.requests if request["kind"] == "deal")
    return canonical.decode(request["program"], Program)


async def _settled(members: dict[str, Member], count: int) -> None:
    """Wait until each party keeps so many bundles, and nobody is about to deal or take one more."""
    await _full(members, count)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert [_kept(members[name]) for name in ("p1", "p2")] == [count, count]


@pytest.mark.slow
@pytest.mark.trio
async def test_a_dealer_deals_as_much_ahead_as_its_setting_says_and_no_more(tmp_path: Path) -> None:
    dealer, party = {"pool_bundles": 64, "pool_memory_mb": 1}, {"pool_bundles": 64}
    async with federation(tmp_path, dealer=dealer, party=party) as (_, members):
        await _ask(members, 2)
        fitting = MIB // NativeEngine().correction_bytes(_dealt_program(members))
        assert 1 < fitting < 64
        await _settled(members, fitting)

        assert (await _ask(members, 2)).timings.dealt_ahead
        await _settled(members, fitting)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_party_keeps_as_much_ahead_as_its_setting_says_and_no_more(tmp_path: Path) -> None:
    dealer, party = {"pool_bundles": 64}, {"pool_bundles": 64, "pool_memory_mb": 1}
    async with federation(tmp_path, dealer=dealer, party=party) as (_, members):
        await _ask(members, 2)
        fitting = MIB // NativeEngine().memory_bytes(_dealt_program(members))
        assert 1 < fitting < 64
        await _settled(members, fitting)

        assert (await _ask(members, 2)).timings.dealt_ahead


@pytest.mark.slow
@pytest.mark.trio
async def test_a_full_party_gets_bundles_of_the_batch_that_was_asked_for_last(tmp_path: Path) -> None:
    async with federation(tmp_path) as (_, members):
        for count, kept in ((1, 2), (2, 4)):
            await _ask(members, count)
            await _full(members, kept)
        await _ask(members, 4)
        await until(lambda: _dealt_batches(members).count(4) >= 3)
        await _full(members, 4)

        assert (await _ask(members, 4)).timings.dealt_ahead
        assert (await _ask(members, 2)).timings.dealt_ahead
        assert [answer.attempts for answer in [await _ask(members, 1)]] == [1]


async def _waits_for_nothing(members: dict[str, Member]) -> bool:
    """A query of a batch that was never dealt ahead is answered although the pool is full."""
    return not (await _ask(members, 16)).timings.dealt_ahead
