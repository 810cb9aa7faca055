"""Real daemons that are killed, frozen or cut down while a query runs.

Every test uses up what it kills, so the order matters: first freezes, which are undone, then kills.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from finode.client import Answer, Client, Progress, SessionView
from finode.daemon.home import read_api_address
from finode.testnet.network import Network, NodeState

pytestmark = pytest.mark.slow

X = np.random.default_rng(5).uniform(size=(64, 1, 8, 8))
SESSION_ENDS_WITHIN_S = 15.0


def _node(network: Network, peer: str) -> NodeState:
    return next(node for node in network.nodes if node.peer == peer)


def _client(network: Network, name: str) -> Client:
    home = next(node.home for node in network.nodes if node.name == name)
    address = read_api_address(home)
    assert address is not None
    return Client(address.url)


def _client_of(network: Network, peer: str) -> Client:
    return _client(network, _node(network, peer).name)


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _ask(
    network: Network, on_phase: str = "", act: Callable[[], None] | None = None, count: int = len(X)
) -> Answer:
    acted = False

    def on_progress(progress: Progress) -> None:
        nonlocal acted
        if act is not None and progress.phase == on_phase and not acted:
            acted = True
            act()

    async with _client(network, "querier") as client:
        answer = await client.query("small", X[:count], on_progress=on_progress, deadline_s=90)
    assert act is None or acted
    return answer


async def _settled(network: Network) -> Answer:
    """Return an answer of a committee that is prepared and will be used again by the next query."""
    await _all_connected(network)
    await _ask(network)
    return await _ask(network)


async def _all_connected(network: Network) -> None:
    """Wait until the querier is connected to every daemon that still runs: a thawed one needs a moment."""
    alive = {node.peer for node in network.nodes if node.process.is_running() and node.name != "querier"}
    with trio.fail_after(40):
        async with _client(network, "querier") as client:
            while True:
                if alive <= {peer.peer for peer in await client.peers() if peer.connected}:
                    return
                await trio.sleep(0.1)


async def _ended_at(network: Network, peer: str, session: str, within_s: float) -> SessionView:
    """Return a session at a member, once it has an outcome there."""
    with trio.fail_after(within_s):
        async with _client_of(network, peer) as client:
            while True:
                for view in await client.sessions():
                    if view.session == session and view.outcome:
                        return view
                await trio.sleep(0.1)


def _same(one: Answer, other: Answer) -> bool:
    assert one.probabilities is not None
    assert other.probabilities is not None
    return bool(np.abs(one.probabilities - other.probabilities).max() < 0.002)


@pytest.mark.trio
async def test_a_party_frozen_in_mid_rounds_is_named_and_replaced(network: Network) -> None:
    first = await _settled(network)
    frozen, other = (_node(network, peer) for peer in first.committee.parties)

    with _frozen(frozen.process.pid):
        answer = await _ask(network, "rounds", lambda: os.kill(frozen.process.pid, signal.SIGSTOP))
        ended = await _ended_at(network, other.peer, answer.session, SESSION_ENDS_WITHIN_S)

    assert ended.seconds < SESSION_ENDS_WITHIN_S
    assert frozen.peer in ended.outcome
    assert "at round" in ended.outcome
    assert frozen.peer not in answer.committee.parties
    assert answer.attempts == 2
    assert _same(first, answer)


@pytest.mark.trio
async def test_a_dealer_frozen_while_it_deals_is_replaced(network: Network) -> None:
    first = await _settled(network)
    dealer = _node(network, first.committee.dealer)

    with _frozen(dealer.process.pid):
        # As many inputs as no bundle was dealt ahead for: the parties begin, and wait for one that never comes.
        answer = await _ask(network, "preprocessing", lambda: os.kill(dealer.process.pid, signal.SIGSTOP), 20)

    assert answer.committee.dealer != dealer.peer
    assert answer.labels == first.labels[:20]
    for peer in first.committee.parties:
        ended = await _ended_at(network, peer, answer.session, SESSION_ENDS_WITHIN_S)
        assert ended.seconds < SESSION_ENDS_WITHIN_S
        assert dealer.peer in ended.outcome


@pytest.mark.trio
async def test_an_owner_frozen_before_it_hands_out_is_left_out(network: Network) -> None:
    await _all_connected(network)
    owner = next(node for node in network.nodes if node.name == "owner-b")
    acted = False

    def on_progress(progress: Progress) -> None:
        nonlocal acted
        if progress.phase == "deployment" and not acted:
            acted = True
            os.kill(owner.process.pid, signal.SIGSTOP)

    with _frozen(owner.process.pid):
        async with _client(network, "querier") as client:
            # Four parties: a committee that was not there before, so that its shares must be handed out.
            answer = await client.query("small", X[:2], parties=4, on_progress=on_progress, deadline_s=90)

    assert acted
    assert owner.peer not in answer.committee.owners
    assert len(answer.committee.parties) == 4


@pytest.mark.trio
async def test_a_party_frozen_before_the_proposal_is_passed_over(network: Network) -> None:
    first = await _settled(network)
    frozen = _node(network, first.committee.parties[1])

    with _frozen(frozen.process.pid):
        os.kill(frozen.process.pid, signal.SIGSTOP)
        async with _client(network, "querier") as client:
            # Another reveal needs new terms, so the frozen party is asked before anybody knows that it is frozen.
            answer = await client.query("small", X[:2], reveal="top1", deadline_s=60)

    assert frozen.peer not in answer.committee.parties


@pytest.mark.trio
async def test_a_worker_that_is_killed_takes_only_its_session(network: Network) -> None:
    first = await _settled(network)
    party = _node(network, first.committee.parties[0])
    (worker,) = _children(party.process.pid)

    answer = await _ask(network, "rounds", lambda: os.kill(worker, signal.SIGKILL))

    assert party.peer not in answer.committee.parties
    assert party.process.is_running()
    assert _same(first, answer)
    with trio.fail_after(60):
        async with _client_of(network, party.peer) as client:
            while (await client.status()).workers != 1:  # noqa: ASYNC110 - another process, no event to wait for
                await trio.sleep(0.2)
    assert _children(party.process.pid) != (worker,)


@pytest.mark.trio
@pytest.mark.parametrize("phase", ["deployment", "rounds"])
async def test_a_party_that_is_killed_is_replaced(network: Network, phase: str) -> None:
    if phase == "deployment":
        # A fresh pair of terms, so that shares are on their way when the party dies.
        await _all_connected(network)
        async with _client(network, "querier") as client:
            first = await client.query("small", X, vote="hard")
        victim = _node(network, first.committee.parties[0])
        acted = False

        def on_progress(progress: Progress) -> None:
            nonlocal acted
            if progress.phase == "deployment" and not acted:
                acted = True
                os.kill(victim.process.pid, signal.SIGKILL)

        async with _client(network, "querier") as client:
            answer = await client.query("small", X, reveal="label", on_progress=on_progress, deadline_s=60)
        assert acted
    else:
        first = await _settled(network)
        victim = _node(network, first.committee.parties[0])
        answer = await _ask(network, "rounds", lambda: os.kill(victim.process.pid, signal.SIGKILL))
        assert _same(first, answer)

    assert victim.peer not in answer.committee.parties


@pytest.mark.trio
async def test_a_dealer_that_is_killed_is_replaced(network: Network) -> None:
    first = await _settled(network)
    dealer = _node(network, first.committee.dealer)

    answer = await _ask(network, "preprocessing", lambda: os.kill(dealer.process.pid, signal.SIGKILL))

    assert answer.committee.dealer != dealer.peer
    assert _same(first, answer)


@pytest.mark.trio
async def test_a_daemon_told_to_stop_in_mid_session_does_so_within_three_seconds(network: Network) -> None:
    first = await _settled(network)
    leaving = _node(network, first.committee.parties[0])
    stopped: list[float] = []

    async def watch(began: float) -> None:
        while leaving.process.is_running() and not _is_zombie(leaving.process.pid):  # noqa: ASYNC110 - the same
            await trio.sleep(0.02)
        stopped.append(time.monotonic() - began)

    async with trio.open_nursery() as nursery:

        def stop() -> None:
            os.kill(leaving.process.pid, signal.SIGTERM)
            nursery.start_soon(watch, time.monotonic())

        answer = await _ask(network, "rounds", stop)

    assert stopped[0] < 3.0
    assert leaving.peer not in answer.committee.parties
    assert _same(first, answer)
    log = leaving.log_path.read_text()
    assert '"event": "stopped"' in log
    assert "Traceback" not in log


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _children(pid: int) -> tuple[int, ...]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return tuple(int(child) for child in text.split())
