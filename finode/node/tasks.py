"""Several waits at once, whose first failure is the one the caller sees.

A trio nursery reports failures as exception groups. Where a session waits for all parties at once, the first
`FinodeError` is what happened; the cancellations it caused are not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

import trio

from finode.errors import FinodeError

T = TypeVar("T")


async def together(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all `calls` at once and return their results in order.

    The first `FinodeError` cancels the others and is raised; any other exception propagates as trio raises it.
    """
    pending = list(calls)
    results: dict[int, T] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        results[index] = await call()

    if len(pending) == 1:
        return [await pending[0]()]
    try:
        async with trio.open_nursery() as nursery:
            for index, call in enumerate(pending):
                nursery.start_soon(run, index, call)
    except BaseExceptionGroup as group:
        raise first_failure(group) from None
    return [results[index] for index in range(len(pending))]


def first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first `FinodeError` of a group that holds nothing worse, a bare `trio.Cancelled` if there is nothing
    else in it, else the group itself."""
    expected, other = group.split((FinodeError, trio.Cancelled))
    if other is not None or expected is None:
        return group
    ours, _ = expected.split(FinodeError)
    return next(_leaves(expected if ours is None else ours))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
