"""Several waits at once."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from finode.errors import PeerTimeout, WorkerDied
from finode.node.tasks import together


async def _later(seconds: float, result: int | Exception) -> int:
    await trio.sleep(seconds)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.trio
async def test_results_come_in_the_order_of_the_calls(autojump_clock: MockClock) -> None:
    assert await together([partial(_later, 2, 1), partial(_later, 1, 2)]) == [1, 2]
    assert await together([partial(_later, 2, 1)]) == [1]


@pytest.mark.trio
async def test_the_first_failure_cancels_the_others_and_comes_out_bare(autojump_clock: MockClock) -> None:
    calls = [
        partial(_later, 5, 1),
        partial(_later, 1, PeerTimeout("late", peer="p")),
        partial(_later, 2, WorkerDied("")),
    ]
    began = trio.current_time()
    with pytest.raises(PeerTimeout, match="late"):
        await together(calls)
    assert trio.current_time() - began < 1.5


@pytest.mark.trio
async def test_a_bug_is_not_taken_for_a_failure(autojump_clock: MockClock) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await together([partial(_later, 1, ZeroDivisionError()), partial(_later, 5, 1)])
    assert caught.value.subgroup(ZeroDivisionError) is not None


@pytest.mark.trio
async def test_cancelled_from_outside_it_raises_a_bare_cancellation(autojump_clock: MockClock) -> None:
    seen: list[BaseException] = []
    with trio.move_on_after(1) as scope:
        try:
            await together([partial(_later, 5, 1), partial(_later, 6, 2)])
        except trio.Cancelled as cancelled:
            seen.append(cancelled)
            raise
    assert scope.cancelled_caught
    assert len(seen) == 1
