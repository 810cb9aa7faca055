"""The votes of past sessions, kept as shares in this process until labels come for them, or for `feedback_window_s`.

Each is good for one counting: it is gone as soon as it is taken, and with the process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from finode.errors import PeerRefused
from finode.identity import PeerId
from finode.smpc.engine import Program
from finode.wire.committee import Terms
from finode.wire.message import MIB

MOST_BYTES = 64 * MIB
"""About a million votes of ten classes; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Ballots:
    """One session's votes at one party. `zero_keys` are the session's keys with the other parties."""

    session: bytes
    terms: Terms
    program: Program
    count: int
    ballots: bytes = field(repr=False)
    zero_keys: Mapping[int, bytes] = field(repr=False)


class BallotBox:
    """Ballots by session. `clock` gives seconds that only grow."""

    def __init__(self, window_s: float, clock: Callable[[], float]) -> None:
        self._window_s = window_s
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, Ballots]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        self._sweep()
        return len(self._kept)

    def put(self, ballots: Ballots) -> None:
        """Keep a session's votes; one whose id is here already is refused by silence: its votes are spent or kept."""
        self._sweep()
        if ballots.session in self._kept or not self._window_s:
            return
        self._kept[ballots.session] = (self._clock() + self._window_s, ballots)
        self._bytes += len(ballots.ballots)
        while self._bytes > MOST_BYTES:
            self._drop(next(iter(self._kept)))

    def keeps(self, session: bytes, querier: PeerId) -> Ballots | None:
        """Return a querier's session if its votes are here, without taking them."""
        self._sweep()
        entry = self._kept.get(session)
        return entry[1] if entry is not None and entry[1].terms.querier == querier else None

    def take(self, session: bytes, querier: PeerId) -> Ballots:
        """Take the votes of a querier's session, once; raise `PeerRefused` when they are not here."""
        if self.keeps(session, querier) is None:
            raise PeerRefused(
                "the votes of the session are not kept here (any more)",
                reason="not-kept",
                hint="labels are taken once per session, and within [party] feedback_window_s",
            )
        return self._drop(session)

    def _drop(self, session: bytes) -> Ballots:
        _, ballots = self._kept.pop(session)
        self._bytes -= len(ballots.ballots)
        return ballots

    def _sweep(self) -> None:
        now = self._clock()
        for session in [session for session, (until, _) in self._kept.items() if until <= now]:
            self._drop(session)
