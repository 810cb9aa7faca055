"""A party's run, in lockstep with the others: gates are coroutines, and what they open in one round shares one frame.

A gate awaits `session.open(...)` wherever it needs the other parties. `Lockstep` runs all coroutines until each of
them waits, either for an opening or for another gate's value; the openings that wait then are one round. So a round
costs the same whether one model takes part in it or twenty, and the number of rounds is the depth of the graph.

Every opening has a tag: the path of the session that asked for it, made by `session.branch("model0/conv1")`. Frames
are written in the order of tags, so nothing depends on the order in which coroutines ran. No I/O happens here: `Run`
hands out the frames of a round as an `Exchange` and takes the others' frames in `resume`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import coroutine
from typing import Any, Generic, TypeVar

from torch import Tensor

from finode.errors import LocalProtocolError
from finode.smpc import frames
from finode.smpc.engine import Buffer, Exchange, Finished, Outcome
from finode.smpc.transcript import Transcript

T = TypeVar("T")
Work = Coroutine[Any, Any, T]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a gate or a run costs a party: rounds, and bits of opened values sent to each other party."""

    rounds: int
    bits: int

    def then(self, other: Cost) -> Cost:
        """Return the cost of this followed by `other`."""
        return Cost(self.rounds + other.rounds, self.bits + other.bits)


class Cell(Generic[T]):
    """A value that one coroutine provides and `uses` others await; dropped after the last of them took it."""

    __slots__ = ("_uses", "_value", "provided")

    def __init__(self, uses: int) -> None:
        self._uses = uses
        self._value: T | None = None
        self.provided = False

    async def provide(self, value: T) -> None:
        """Set the value, once."""
        if self.provided:
            raise LocalProtocolError("a value is provided a second time")
        self._value = value if self._uses else None
        self.provided = True
        await _effect(_Provided(self))

    async def get(self) -> T:
        """Wait for the value and take it, at most `uses` times in all."""
        if not self.provided:
            await _effect(_Wait(self))
        value = self._value
        if self._uses <= 0 or value is None:
            raise LocalProtocolError("a value is taken more often than was announced")
        self._uses -= 1
        if self._uses == 0:
            self._value = None
        return value


@dataclass(frozen=True, slots=True)
class _Ask:
    tag: str
    openings: Sequence[frames.Opening]


@dataclass(frozen=True, slots=True)
class _Fork:
    children: Sequence[Work[Any]]


@dataclass(frozen=True, slots=True)
class _Wait:
    cell: Cell[Any]


@dataclass(frozen=True, slots=True)
class _Provided:
    cell: Cell[Any]


_Effect = _Ask | _Fork | _Wait | _Provided


@coroutine
def _effect(effect: _Effect) -> Generator[_Effect, Any, Any]:
    return (yield effect)


@dataclass(slots=True, eq=False)
class _Task:
    work: Work[Any]
    parent: _Task | None = None
    index: int = 0
    results: list[Any] = field(default_factory=list)
    missing: int = 0


class Lockstep:
    """Runs coroutines until all of them wait for openings."""

    def __init__(self, main: Work[Any]) -> None:
        self._tasks = [_Task(main)]
        self._ready: deque[tuple[_Task, Any]] = deque([(self._tasks[0], None)])
        self._asking: dict[str, _Task] = {}
        self._waiting: dict[int, list[_Task]] = {}
        self.done = False
        self.result: Any = None

    def advance(self, answers: Mapping[str, list[Tensor]]) -> dict[str, Sequence[frames.Opening]]:
        """Give the opened values to those who wait for them, run on, and return the next round's openings by tag.

        Returns nothing when `done`. An error in any coroutine ends them all.
        """
        for tag, opened in answers.items():
            self._ready.append((self._asking.pop(tag), opened))
        asked: dict[str, Sequence[frames.Opening]] = {}
        try:
            while self._ready:
                self._step(*self._ready.popleft(), asked)
            if not asked and not self.done:
                raise LocalProtocolError("all coroutines wait, and none of them for an opening")
        except BaseException:
            self.close()
            raise
        return asked

    def _step(self, task: _Task, value: Any, asked: dict[str, Sequence[frames.Opening]]) -> None:
        try:
            effect = task.work.send(value)
        except StopIteration as stop:
            self._finish(task, stop.value)
            return
        match effect:
            case _Ask(tag, openings):
                if tag in self._asking:
                    raise LocalProtocolError(f"two openings of one round have the tag {tag!r}")
                self._asking[tag] = task
                asked[tag] = openings
            case _Fork(children):
                task.results, task.missing = [None] * len(children), len(children)
                for index, work in enumerate(children):
                    child = _Task(work, task, index)
                    self._tasks.append(child)
                    self._ready.append((child, None))
                if not children:
                    self._ready.append((task, []))
            case _Wait(cell):
                if cell.provided:
                    self._ready.append((task, None))
                else:
                    self._waiting.setdefault(id(cell), []).append(task)
            case _Provided(cell):
                self._ready.extend((waiter, None) for waiter in self._waiting.pop(id(cell), ()))
                self._ready.append((task, None))
            case _:
                raise LocalProtocolError(f"a gate awaits {effect!r}, which is nothing of a session")

    def _finish(self, task: _Task, result: Any) -> None:
        self._tasks.remove(task)
        parent = task.parent
        if parent is None:
            self.result, self.done = result, True
            return
        parent.results[task.index] = result
        parent.missing -= 1
        if parent.missing == 0:
            self._ready.append((parent, parent.results))

    def close(self) -> None:
        """End all coroutines."""
        for task in self._tasks:
            task.work.close()
        self._tasks.clear()
        self._ready.clear()
        self._asking.clear()
        self._waiting.clear()


@dataclass(frozen=True, slots=True)
class Session:
    """What a gate sees of a run: which party it is, and how to open values. `path` is its place in the program."""

    party: int
    parties: int
    path: str = ""

    @property
    def first(self) -> bool:
        """Whether this is party 0, the one that adds public terms to sharings."""
        return self.party == 0

    def branch(self, name: str) -> Session:
        """Return the session of a part of the program; its openings are tagged with `name`."""
        return Session(self.party, self.parties, f"{self.path}/{name}" if self.path else name)

    async def open_together(self, *openings: frames.Opening) -> list[Tensor]:
        """Open several sharings of any kinds in one round."""
        opened: list[Tensor] = await _effect(_Ask(self.path, openings))
        return opened

    async def open(self, share: Tensor) -> Tensor:
        """Open elements of Z_2^64."""
        return (await self.open_together(frames.elements(share)))[0]

    async def open_bits(self, share: Tensor) -> Tensor:
        """Open XOR-shared bits."""
        return (await self.open_together(frames.bits(share)))[0]

    async def parallel(self, *work: Work[T]) -> list[T]:
        """Run coroutines side by side, sharing rounds; return their results in order.

        Those that open something need branches of their own.
        """
        results: list[T] = await _effect(_Fork(work))
        return results


class Run:
    """One party's side of one run (`engine.PartyRun`). Not thread-safe; burned when dropped.

    `rest` makes the run that goes on after this one, given the number of the round after its last (`Finished.rest`).
    """

    def __init__(
        self,
        body: Callable[[Session], Awaitable[Any]],
        party: int,
        parties: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        first_round: int = 0,
        rest: Callable[[int], Run] | None = None,
    ) -> None:
        self._body: Callable[[Session], Awaitable[Any]] | None = body
        self._session = Session(party, parties)
        self._clock = clock
        self._lockstep: Lockstep | None = None
        self._frame: frames.Frame | None = None
        self._transcript = Transcript()
        self._first_round = first_round
        self._rest = rest
        self.rounds = 0
        self.bits = 0
        self.bytes_sent = 0
        self.compute_s = 0.0

    @property
    def cost(self) -> Cost:
        """What the run cost so far, as gates state it."""
        return Cost(self.rounds, self.bits)

    def start(self) -> Outcome:
        """Compute up to the first exchange."""
        if self._body is None:
            raise LocalProtocolError("a run is started once")
        body, self._body = self._body, None

        async def main() -> Any:
            return await body(self._session)

        self._lockstep = Lockstep(main())
        return self._advance(dict)

    def resume(self, received: Mapping[int, Buffer]) -> Outcome:
        """Take the other parties' frames of this round and compute up to the next exchange.

        Raises `RemoteProtocolError` whose `peer` is the decimal party index when a frame is malformed; the run is
        burned then.
        """
        frame, self._frame = self._frame, None
        if frame is None:
            raise LocalProtocolError("the run waits for no frames")
        others = [party for party in range(self._session.parties) if party != self._session.party]
        if sorted(received) != others:
            raise LocalProtocolError(f"frames of parties {sorted(received)}, where {others} must send one each")

        def answers() -> Mapping[str, list[Tensor]]:
            opened = frame.open(received)
            frame.transcribe(opened, self._transcript)
            return frame.placed(opened)

        return self._advance(answers)

    def _advance(self, answers: Callable[[], Mapping[str, list[Tensor]]]) -> Outcome:
        lockstep = self._lockstep
        if lockstep is None:
            raise LocalProtocolError("the run is not started or is over")
        began = self._clock()
        try:
            openings = lockstep.advance(answers())
            if lockstep.done:
                self.compute_s += self._clock() - began
                self._lockstep = None
                return self._finished(lockstep.result)
            round_ = self._first_round + self.rounds
            frame = self._frame = frames.Frame(self._session.party, round_, openings)
        except BaseException:
            lockstep.close()
            self._lockstep = None
            raise
        others = [party for party in range(self._session.parties) if party != self._session.party]
        self.bits += frame.payload_bits
        self.bytes_sent += len(frame.data) * len(others)
        exchange = Exchange(round_, dict.fromkeys(others, frame.data), len(frame.data))
        self.rounds += 1
        self.compute_s += self._clock() - began
        return exchange

    def _finished(self, value: Any) -> Finished:
        rest = None if self._rest is None else self._rest(self._first_round + self.rounds)
        digest = self._transcript.digest()
        return Finished(value, self.rounds, self.bytes_sent, self.compute_s, digest, rest)
