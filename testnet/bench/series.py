"""How often something is asked: a warm-up and some queries for a median, or a stream of them without a pause.

What a query is and how it is asked is left to `ask`; here is only what counts, and when to stop.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from finode.client import Answer
from finode.testnet.network import first_error

STREAM_SECONDS: Final = 10.0
"""A stream of queries is measured for so long at least, after its first answers."""
STREAM_WIDTH: Final = 2
"""Queries of a stream that are under way at once, so that one is dealt for while the other computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to measure: `repeats` queries for a median after a warm-up, or the warm-up alone where it computes for over
    `budget_s`; the cold ones too or not; which engines are asked for digits, to compare their classes."""

    repeats: int = 5
    budget_s: float = 5.0
    cold: bool = True
    agreement_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """One query, how long it took as the client saw it, and what a link between parties carried meanwhile."""

    answer: Answer
    total_s: float
    link_bytes: int | None = None

    @property
    def served_s(self) -> float:
        """The time without agreeing on a committee and handing out weights."""
        return self.total_s - self.answer.timings.negotiation_s - self.answer.timings.deployment_s

    def is_slow(self, plan: Plan) -> bool:
        """Whether such a query is not to be repeated."""
        return self.answer.timings.online_s > plan.budget_s


@dataclass(frozen=True, slots=True)
class Series:
    """A warm-up, and the queries that count: the warm-up itself where it is too slow to be repeated."""

    first: Asked
    counted: tuple[Asked, ...]

    @property
    def is_first_alone(self) -> bool:
        return self.counted == (self.first,)


async def ask_in_series(
    ask: Callable[[], Awaitable[Asked]], plan: Plan, settle: Callable[[Asked], Awaitable[None]]
) -> Series:
    """Ask as often as `plan` says; `settle`, with the first query, before each of those that count."""
    first = await ask()
    if first.is_slow(plan):
        return Series(first, (first,))
    counted: list[Asked] = []
    while len(counted) < plan.repeats:
        await settle(first)
        counted.append(await ask())
    return Series(first, tuple(counted))


async def stream_per_s(ask: Callable[[], Awaitable[object]], clock: Callable[[], float] = time.monotonic) -> float:
    """Return the answers a second of queries without a pause between them, dealing included.

    The first answer of each place in the stream does not count: it found what had been dealt while nobody asked.
    """
    answered: list[float] = []

    async def place() -> None:
        while len(answered) <= 2 * STREAM_WIDTH or answered[-1] - answered[STREAM_WIDTH - 1] < STREAM_SECONDS:
            await ask()
            answered.append(clock())

    async with first_error(), trio.open_nursery() as nursery:
        for _ in range(STREAM_WIDTH):
            nursery.start_soon(place)
    counted = answered[STREAM_WIDTH - 1 :]
    return (len(counted) - 1) / (counted[-1] - counted[0])
