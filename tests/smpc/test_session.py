from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from finode.errors import LocalError, LocalProtocolError, RemoteProtocolError
from finode.smpc.engine import Exchange, Finished
from finode.smpc.session import Cell, Cost, Lockstep, Run, Session
from finode.smpc.share import Share
from finode.smpc.simulation import exchange

Body = Callable[[Session], Awaitable[Any]]


def _runs(body: Body, parties: int = 3) -> list[Run]:
    return [Run(body, party, parties) for party in range(parties)]


def _mine(session: Session, *values: int) -> Tensor:
    """A sharing in which party i holds (i + 1) * value."""
    return torch.tensor(values) * (session.party + 1)


async def _chain(session: Session, length: int) -> list[int]:
    opened = []
    for step in range(length):
        opened.append(int(await session.open(_mine(session, 10**step))))
    return opened


def test_coroutines_side_by_side_share_rounds_and_frames() -> None:
    async def body(session: Session) -> list[list[int]]:
        return await session.parallel(*(_chain(session.branch(f"m{i}"), i) for i in range(4)))

    done = exchange(_runs(body))

    assert done.values == [[[], [6], [6, 60], [6, 60, 600]]] * 3
    assert done.costs == [Cost(rounds=3, bits=64 * (3 + 2 + 1))] * 3
    assert done.bytes_sent == [2 * sum(len(frames[i]) for frames in done.frames) for i in range(3)]


def test_the_result_does_not_depend_on_the_order_of_coroutines() -> None:
    async def in_order(session: Session) -> Any:
        return await session.parallel(_chain(session.branch("a"), 2), _chain(session.branch("b"), 3))

    async def reversed_order(session: Session) -> Any:
        second, first = await session.parallel(_chain(session.branch("b"), 3), _chain(session.branch("a"), 2))
        return [first, second]

    # One party spawns its tasks the other way round, and all still understand each other.
    done = exchange([Run(in_order, 0, 2), Run(reversed_order, 1, 2)])

    assert done.values[0] == done.values[1]


def test_values_wait_for_those_who_provide_them() -> None:
    async def body(session: Session) -> list[Any]:
        cell: Cell[int] = Cell(2)

        async def reader(name: str) -> int:
            return await cell.get() + int(await session.branch(name).open(_mine(session, 1)))

        async def writer() -> None:
            await cell.provide(int(await session.branch("w").open(_mine(session, 100))))

        return await session.parallel(reader("r1"), writer(), reader("r2"))

    done = exchange(_runs(body))

    assert done.values == [[606, None, 606]] * 3
    assert done.costs[0].rounds == 2


def _stuck(session: Session) -> Awaitable[Any]:
    return Cell[int](1).get()


async def _same_tag(session: Session) -> None:
    await session.parallel(session.open(_mine(session, 1)), session.open(_mine(session, 2)))


async def _twice(session: Session) -> None:
    cell: Cell[int] = Cell(1)
    await cell.provide(1)
    await cell.provide(2)


async def _too_often(session: Session) -> None:
    cell: Cell[int] = Cell(1)
    await cell.provide(1)
    await cell.get()
    await cell.get()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (_stuck, "none of them for an opening"),
        (_same_tag, "have the tag"),
        (_twice, "second time"),
        (_too_often, "more often"),
    ],
)
def test_misuse_is_a_local_error_by_name(body: Body, problem: str) -> None:
    with pytest.raises(LocalProtocolError, match=problem):
        Run(body, 0, 2).start()


def test_a_foreign_awaitable_is_refused_and_ends_all_coroutines() -> None:
    class Foreign:
        def __await__(self) -> Any:
            yield "something else"

    async def body() -> None:
        await Foreign()

    lockstep = Lockstep(body())
    with pytest.raises(LocalProtocolError, match="something else"):
        lockstep.advance({})
    assert not lockstep.done


def test_a_run_is_started_once_and_resumed_only_when_it_waits() -> None:
    async def body(session: Session) -> int:
        return int(await session.open(_mine(session, 1)))

    first, second = _runs(body, 2)
    with pytest.raises(LocalProtocolError, match="waits for no frames"):
        first.resume({})
    ours, theirs = first.start(), second.start()
    assert isinstance(ours, Exchange)
    assert isinstance(theirs, Exchange)
    assert ours.expected_bytes == len(theirs.frames[0])
    with pytest.raises(LocalProtocolError, match="started once"):
        first.start()

    finished = first.resume({1: theirs.frames[0]})

    assert isinstance(finished, Finished)
    assert finished.value == 3
    assert (finished.rounds, finished.bytes_sent) == (1, ours.expected_bytes)
    assert "3" not in repr(finished).split("rounds")[0]
    with pytest.raises(LocalProtocolError, match="waits for no frames"):
        first.resume({1: theirs.frames[0]})


@pytest.mark.parametrize("received", [{}, {1: b""}, {0: b"", 1: b""}, {1: b"", 2: b"", 3: b""}])
def test_frames_of_the_wrong_parties_are_refused(received: dict[int, bytes]) -> None:
    run = _runs(lambda session: session.open(_mine(session, 1)))[0]
    run.start()

    with pytest.raises(LocalProtocolError, match="must send one each"):
        run.resume(received)


def test_a_malformed_frame_burns_the_run() -> None:
    runs = _runs(lambda session: session.open(_mine(session, 1)), 2)
    frame = bytes(exchange_frame(runs[1]))
    runs[0].start()

    with pytest.raises(RemoteProtocolError) as caught:
        runs[0].resume({1: frame[:-1]})

    assert caught.value.peer == "1"
    with pytest.raises(LocalProtocolError):
        runs[0].resume({1: frame})


def exchange_frame(run: Run) -> bytes:
    outcome = run.start()
    assert isinstance(outcome, Exchange)
    return bytes(next(iter(outcome.frames.values())))


def test_a_share_hides_its_value_and_is_no_condition() -> None:
    share = Share(torch.tensor([12345]), first=True)

    assert "12345" not in repr(share)
    assert "shape=(1,)" in repr(share)
    with pytest.raises(LocalError, match="secret"):
        assert share
    total = (share + share - share).scale(2).add_public(1)
    assert total.data.tolist() == [24691]
    assert Share(share.data, first=False).add_public(1).data.tolist() == [12345]
