"""How often a benchmark asks, and what of it counts."""

from __future__ import annotations

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from finode.client import Answer
from finode.node.interface import CommitteeView, Timings, Traffic
from finode.testnet.bench.series import STREAM_SECONDS, STREAM_WIDTH, Asked, Plan, ask_in_series, stream_per_s

pytestmark = pytest.mark.trio


def asked(online_s: float) -> Asked:
    timings = Timings(negotiation_s=1.0, deployment_s=2.0, offline_s=0.5, online_s=online_s, total_s=3.5 + online_s)
    answer = Answer(
        session="00",
        service="digits",
        labels=("0",),
        label_indices=np.zeros(1, np.int64),
        probabilities=None,
        top=None,
        classes=("0",),
        committee=CommitteeView(id="00", parties=(), dealer="", owners=(), organizations={}),
        timings=timings,
        traffic=Traffic(rounds=0, bytes_sent_per_party=(), offline_bytes=0),
        engine="native",
        attempts=1,
    )
    return Asked(answer, timings.total_s)


async def test_the_warm_up_does_not_count_and_each_other_query_waits_first() -> None:
    told: list[str] = []

    async def ask() -> Asked:
        told.append("ask")
        return asked(float(len(told)))

    async def settle(first: Asked) -> None:
        assert first.answer.timings.online_s == 1.0
        told.append("settle")

    series = await ask_in_series(ask, Plan(repeats=2), settle)

    assert told == ["ask", "settle", "ask", "settle", "ask"]
    assert [each.answer.timings.online_s for each in series.counted] == [3.0, 5.0]
    assert not series.is_first_alone


async def test_a_slow_query_is_its_own_figure() -> None:
    async def ask() -> Asked:
        return asked(5.5)

    async def settle(first: Asked) -> None:
        raise AssertionError("nothing more is asked")

    series = await ask_in_series(ask, Plan(repeats=5, budget_s=5.0), settle)

    assert series.is_first_alone
    assert series.first.served_s == 6.0  # no committee, no weights, but its bundle


async def test_a_stream_counts_what_it_answers_once_it_flows(autojump_clock: MockClock) -> None:
    """Two at once; the dealer has two bundles at first, then makes one every 2 s."""
    bundles = trio.Semaphore(STREAM_WIDTH)

    async def ask() -> None:
        await bundles.acquire()
        await trio.sleep(0.25)

    async def deal() -> None:
        while True:
            await trio.sleep(2.0)
            bundles.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deal)
        began = trio.current_time()
        rate = await stream_per_s(ask, trio.current_time)
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()

    assert rate == pytest.approx(0.5, rel=0.05)  # not more for the bundles that lay ready
    assert STREAM_SECONDS <= took <= STREAM_SECONDS + 2 * STREAM_WIDTH * 2.0
