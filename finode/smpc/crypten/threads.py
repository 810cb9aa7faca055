"""A computation that calls its communicator in the middle of things, as a `PartyRun`.

CrypTen asks for values of other parties deep inside of its operators and waits for them. So a run has a thread, and
the thread and its caller take turns: `start` and `resume` let it compute until it hands over the frames of its next
round, or its result. Only one of the two is ever awake. A run that is dropped ends its thread.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from finode.errors import LocalProtocolError
from finode.smpc.engine import Buffer, Exchange, Finished, Outcome
from finode.smpc.transcript import Transcript

Frames = Mapping[int, Buffer]


class _Dropped(BaseException):
    """Unwinds the thread of a run that nobody will resume. No handler of the computation may catch it."""


@dataclass(frozen=True, slots=True)
class _Round:
    frames: Frames
    expected_bytes: int


@dataclass(frozen=True, slots=True)
class _Value:
    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Link:
    """The thread's end of a run."""

    def __init__(self) -> None:
        self.handed_over: SimpleQueue[_Round | _Value | _Failure] = SimpleQueue()
        self.arrived: SimpleQueue[Frames | None] = SimpleQueue()
        self.transcript = Transcript()

    def exchange(self, frames: Frames, expected_bytes: int) -> Frames:
        """Hand over one round's frames and wait for those of the other parties."""
        self.handed_over.put(_Round(frames, expected_bytes))
        arrived = self.arrived.get()
        if arrived is None:
            raise _Dropped
        return arrived


def _nothing() -> None:
    """A run that has not started has no thread to end."""


def _end(link: Link, thread: threading.Thread) -> None:
    """End a run's thread at its present wait, if it has one, and see it gone before anything else goes on."""
    link.arrived.put(None)
    thread.join()


def _work(link: Link, body: Callable[[Link], Any]) -> None:
    try:
        value = body(link)
    except _Dropped:
        return
    except BaseException as error:
        # Whatever it is, it is raised where the caller waits: nothing is swallowed.
        link.handed_over.put(_Failure(error))
    else:
        link.handed_over.put(_Value(value))


class ThreadRun:
    """One party's side of one run (`engine.PartyRun`). Not thread-safe; burned when dropped."""

    def __init__(
        self,
        body: Callable[[Link], Any],
        party: int,
        parties: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`body` runs in a thread of its own, calls `Link.exchange` for each round and returns the run's value."""
        self._body: Callable[[Link], Any] | None = body
        self._others = [other for other in range(parties) if other != party]
        self._clock = clock
        self._link: Link | None = None
        self._end: Callable[[], object] = _nothing
        self._waits = False
        self.rounds = 0
        self.bytes_sent = 0
        self.compute_s = 0.0

    def start(self) -> Outcome:
        """Compute up to the first exchange."""
        if self._body is None:
            raise LocalProtocolError("a run is started once")
        body, self._body = self._body, None
        link = self._link = Link()
        thread = threading.Thread(target=_work, args=(link, body), name="crypten-run", daemon=True)
        # The thread knows the link and not the run: so a run that is dropped is collected, and its thread ends.
        self._end = weakref.finalize(self, _end, link, thread)
        began = self._clock()
        thread.start()
        return self._next(link, began)

    def resume(self, received: Frames) -> Outcome:
        """Take the other parties' frames of this round and compute up to the next exchange.

        Raises what the computation raises; the run is over then.
        """
        if self._link is None or not self._waits:
            raise LocalProtocolError("the run waits for no frames")
        if sorted(received) != self._others:
            raise LocalProtocolError(f"frames of parties {sorted(received)}, where {self._others} must send one each")
        began = self._clock()
        self._link.arrived.put(received)
        return self._next(self._link, began)

    def _next(self, link: Link, began: float) -> Outcome:
        self._waits = False
        said = link.handed_over.get()
        self.compute_s += self._clock() - began
        if not isinstance(said, _Round):
            self._end()
        match said:
            case _Failure(error):
                raise error
            case _Value(value):
                return Finished(value, self.rounds, self.bytes_sent, self.compute_s, link.transcript.digest())
            case _Round(frames, expected_bytes):
                exchange = Exchange(self.rounds, frames, expected_bytes)
                self.rounds += 1
                self.bytes_sent += sum(len(frame) for frame in frames.values())
                self._waits = True
                return exchange
