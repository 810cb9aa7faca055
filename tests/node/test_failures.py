"""Members that vanish, refuse or break the rules: every session ends with one verdict, and the querier goes on without
the culprit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from finode.errors import CommitteeError, PeerUnreachable, SessionAborted, SessionCancelled
from finode.net.interface import Stream
from finode.net.memory import MemoryFederation
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from finode.wire import committee, preprocessing, shares
from finode.wire.preprocessing import Deal, RequestMasks
from finode.wire.shares import Failed, Fault, Prepare
from tests.fakes.federation import Member, federation_of, toy_probabilities, until

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1]},
    "beta": {"roles": ["owner"], "models": [2]},
    "p1": {"roles": ["party"]},
    "p2": {"roles": ["party"]},
    "p3": {"roles": ["party"]},
    "d1": {"roles": ["dealer"]},
    "d2": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}
X = np.random.default_rng(3).normal(size=(3, 4))


async def _silent(progress: QueryProgress) -> None:
    return None


def _by_peer(members: dict[str, Member], peer: str) -> Member:
    return next(member for member in members.values() if member.peer == peer)


def _check(answer: QueryAnswer, seeds: list[int]) -> None:
    assert answer.probabilities is not None
    assert np.abs(np.array(answer.probabilities) - toy_probabilities(seeds, X)).max() < 0.002


async def _query_and_cut(
    federation: MemoryFederation,
    members: dict[str, Member],
    phase: str,
    victim: Callable[[], str],
) -> QueryAnswer:
    """Ask, and cut the victim off when the query first reaches `phase`."""
    done: list[str] = []

    async def on_progress(progress: QueryProgress) -> None:
        if progress.phase == phase and not done:
            done.append(victim())
            federation.cut(_by_peer(members, done[0]).peer)

    answer = await members["asker"].node.query(QueryRequest(service="toy", inputs=X), on_progress)
    assert done
    return answer


@pytest.mark.trio
@pytest.mark.parametrize("phase", ["committee", "deployment", "preprocessing", "rounds"])
@pytest.mark.parametrize("role", ["party", "dealer"])
async def test_a_lost_member_is_replaced_at_every_phase(tmp_path: Path, phase: str, role: str) -> None:
    async with federation_of(tmp_path, LAYOUT) as (federation, members):
        asker = members["asker"].node
        first = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        lost = first.committee.parties[0] if role == "party" else first.committee.dealer

        answer = await _query_and_cut(federation, members, phase, lambda: lost)

        if (role, phase) == ("dealer", "rounds") and lost == answer.committee.dealer:
            # The parties had their bundles, so nothing was lost by it; but nothing more is asked of its committee.
            assert answer.attempts == 1
            await trio.testing.wait_all_tasks_blocked()
            answer = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        assert lost not in (*answer.committee.parties, answer.committee.dealer)
        assert answer.committee.id != first.committee.id
        _check(answer, [1, 2])


@pytest.mark.trio
async def test_an_owner_lost_before_it_handed_out_is_left_out(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (federation, members):
        beta = members["beta"].peer

        answer = await _query_and_cut(federation, members, "deployment", lambda: beta)

        assert answer.committee.owners == (members["alpha"].peer,)
        assert [(one.owner, one.reason) for one in answer.committee.left_out] == [
            (beta, "was lost in an earlier attempt")
        ]
        _check(answer, [1])


@pytest.mark.trio
async def test_an_owner_that_is_back_has_its_vote_from_the_next_query_on(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (federation, members):
        asker, beta = members["asker"].node, members["beta"].peer
        federation.cut(beta)
        without = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        same = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        federation.mend(beta)
        answer = await asker.query(QueryRequest(service="toy", inputs=X), _silent)

    assert [one.reason for one in without.committee.left_out] == ["disconnected"]
    assert same.committee.id == without.committee.id
    _check(without, [1])
    assert answer.committee.left_out == ()
    _check(answer, [1, 2])


@pytest.mark.trio
async def test_an_owner_that_is_silent_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUT | {"asker": {"roles": ["querier"], "session": {"answer_timeout_s": 3.0}}}
    async with federation_of(tmp_path, layout) as (_, members):
        beta = members["beta"]

        async def say_nothing(stream: Stream) -> None:
            await trio.sleep_forever()

        monkeypatch.setitem(beta.network._router._handlers, committee.PROTOCOL, say_nothing)
        answer = await members["asker"].node.query(QueryRequest(service="toy", inputs=X), _silent)

    assert [(one.owner, one.reason) for one in answer.committee.left_out] == [
        (beta.peer, "did not answer within 3 s"),
    ]
    _check(answer, [1])


@pytest.mark.trio
async def test_without_enough_parties_left_the_error_names_the_culprit(tmp_path: Path) -> None:
    layout = {name: what for name, what in LAYOUT.items() if name not in ("p3", "d2")}
    async with federation_of(tmp_path, layout) as (federation, members):
        victim = members["p1"].peer
        with pytest.raises((SessionAborted, CommitteeError)) as caught:
            await _query_and_cut(federation, members, "preprocessing", lambda: victim)
        assert "eligible are 1 parties" in str(caught.value)
        assert "disconnected" in str(caught.value) or "excluded" in str(caught.value)


@pytest.mark.trio
async def test_a_worker_that_dies_costs_its_session_and_the_query_goes_elsewhere(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        asker = members["asker"].node
        first = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        broken = _by_peer(members, first.committee.parties[1])
        broken.pool.worker.die()

        answer = await asker.query(QueryRequest(service="toy", inputs=X), _silent)

        assert broken.peer not in answer.committee.parties
        assert answer.attempts == 2
        _check(answer, [1, 2])
        told = [view.outcome for view in _by_peer(members, first.committee.parties[0]).node.sessions()]
        assert any("lost its worker process" in outcome for outcome in told)


@pytest.mark.trio
async def test_cancelling_ends_the_session_at_every_member(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        asker = members["asker"].node
        first = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        stuck = _by_peer(members, first.committee.parties[0])
        stuck.pool.worker.hold = trio.Event()
        outcomes: list[BaseException] = []

        async def ask() -> None:
            try:
                await asker.query(QueryRequest(service="toy", inputs=X), _silent)
            except SessionCancelled as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(
                lambda: any(view.phase in ("preprocessing", "rounds") for view in asker.sessions() if not view.outcome)
            )
            running = next(view for view in asker.sessions() if not view.outcome)
            assert await asker.cancel(running.session)
        assert outcomes
        for member in members.values():
            await until(lambda: all(view.outcome for view in member.node.sessions()))  # noqa: B023 - awaited here
        stuck.pool.worker.hold.set()
        assert not await asker.cancel("00" * 16)


@pytest.mark.trio
async def test_beyond_its_capacity_a_node_is_busy(tmp_path: Path) -> None:
    layout = {name: what for name, what in LAYOUT.items() if name not in ("p3", "d2")}
    layout["p1"] = layout["p1"] | {"node": {"capacity": 1}}
    layout["d1"] = layout["d1"] | {"dealer": {"pool_bundles": 0}}
    async with federation_of(tmp_path, layout) as (_, members):
        asker = members["asker"].node
        await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        members["p2"].pool.worker.hold = trio.Event()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.query, QueryRequest(service="toy", inputs=X), _silent)
            await until(lambda: any(not view.outcome for view in members["p1"].node.sessions()))
            with pytest.raises(SessionAborted, match="is busy"):
                await asker.query(QueryRequest(service="toy", inputs=X, deadline_s=1), _silent)
            members["p2"].pool.worker.hold.set()


@pytest.mark.trio
async def test_outsiders_get_nothing(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT | {"outsider": {"roles": ["owner"]}}) as (_, members):
        asker = members["asker"].node
        first = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        committee, party = bytes.fromhex(first.committee.id), first.committee.parties[0]
        outsider = members["outsider"].network
        start = members["outsider"].start(b"s" * 16, committee, b"b" * 16, 1, 32)
        deal = Deal(committee=committee, serial=b"b" * 16, batch=1)
        asked = [
            (party, shares.PROTOCOL, start),
            (party, shares.PROTOCOL, Prepare(committee=committee, run=b"r" * 16)),
            (first.committee.dealer, preprocessing.PROTOCOL, deal),
            (first.committee.dealer, preprocessing.PROTOCOL, RequestMasks(committee=committee)),
        ]
        for peer, protocol, message in asked:
            stream = await outsider.open(peer, protocol, timeout_s=1)  # type: ignore[arg-type]
            await stream.send(message)
            reply = await stream.receive(Failed, timeout_s=2)
            assert reply.verdict.fault is Fault.PROTOCOL
            assert reply.verdict.culprit == outsider.peer_id
            await stream.close()
        await until(lambda: members["outsider"].peer in _standings(members, party))
        unknown = members["outsider"].start(b"s" * 16, b"?" * 32, b"b" * 16, 1, 32)
        stream = await outsider.open(party, shares.PROTOCOL, timeout_s=1)  # type: ignore[arg-type]
        await stream.send(unknown)
        assert (await stream.receive(Failed, timeout_s=2)).verdict.fault is Fault.NOT_SEALED
        with pytest.raises(PeerUnreachable):
            await stream.receive(Failed, timeout_s=2)


def _standings(members: dict[str, Member], at: str) -> set[str]:
    states = _by_peer(members, at).network.states()
    return {peer for peer, state in states.items() if state.standing < 0}


@pytest.mark.trio
async def test_a_withdrawn_model_is_dropped_by_the_parties_and_left_out(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        asker, beta = members["asker"].node, members["beta"]
        first = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        party = _by_peer(members, first.committee.parties[0])
        assert {entry.owner for entry in party.holdings.store.all()} >= {beta.peer}

        beta.holdings.registry.remove(beta.models[0].version)
        await beta.node.reload()
        await until(lambda: not any(entry.owner == beta.peer for entry in party.holdings.store.all()))
        answer = await asker.query(QueryRequest(service="toy", inputs=X), _silent)

        assert answer.committee.owners == (members["alpha"].peer,)
        _check(answer, [1])


@pytest.mark.trio
async def test_a_party_that_lost_a_deployment_gets_the_same_share_again(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        asker = members["asker"].node
        first = await asker.query(QueryRequest(service="toy", inputs=X), _silent)
        party = _by_peer(members, first.committee.parties[0])
        kept = party.holdings.store.all()[0]
        share = party.holdings.store.share_path(kept.id).read_bytes()
        party.holdings.store.drop(kept.id)

        answer = await asker.query(QueryRequest(service="toy", inputs=X), _silent)

        _check(answer, [1, 2])
        if party.peer in answer.committee.parties and answer.committee.parties == first.committee.parties:
            assert party.holdings.store.share_path(kept.id).read_bytes() == share
