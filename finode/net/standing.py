"""A peer's standing: 0 for a newcomer, lowered by faults, recovering slowly, at least -100.

Standing is what this node itself saw. It orders candidates and at `GRAYLIST` ends a peer's gossip; it is a claim, never
a proof, and it is told to nobody. A peer against which there is a proof is condemned: it has the lowest standing, and
that does not come back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from finode.identity import PeerId

LOWEST = -100.0
GRAYLIST = -80.0
"""Below this, gossip and directory records from a peer are not even looked at."""
RECOVERY_PER_HOUR = 20.0
"""Points that come back: a peer that only once misbehaved is as good as new the next day."""


class PeerFault(Enum):
    """What a peer may do wrong on the network, and the points it costs."""

    BAD_RECORD = 10.0
    """A directory record that its signer never could have meant: bad signature, another's name, too large."""
    STALE_RECORD = 0.5
    """An expired or replayed record: gossip is late at times, so this is mostly nobody's fault."""
    PROTOCOL = 8.0
    """A message or frame that the protocol does not allow."""
    BAD_HELLO = 5.0
    """Another federation, or no hello."""
    FLOOD = 20.0
    """More connections, streams or bytes than it may have."""
    FROZEN = 3.0
    """It stopped answering heartbeats."""
    NO_ANSWER = 1.0
    """A protocol's answer did not come before the deadline."""


@dataclass(slots=True)
class _Mark:
    points: float
    at: float


class Standing:
    """The standings of all peers. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: dict[PeerId, _Mark] = {}
        self._condemned: set[PeerId] = set()

    def of(self, peer: PeerId) -> float:
        """Return a peer's standing now."""
        if peer in self._condemned:
            return LOWEST
        mark = self._marks.get(peer)
        if mark is None:
            return 0.0
        return min(0.0, mark.points + (self._clock() - mark.at) * RECOVERY_PER_HOUR / 3600)

    def lower(self, peer: PeerId, points: float) -> float:
        """Take points off a peer's standing and return what is left; negative points are an error."""
        if not points >= 0:
            raise ValueError(f"a fault costs points, it does not give {-points:g}")
        left = max(LOWEST, self.of(peer) - points)
        self._marks[peer] = _Mark(left, self._clock())
        return left

    def condemn(self, peer: PeerId) -> None:
        """Give a peer the lowest standing for as long as this node runs."""
        self._condemned.add(peer)

    def graylisted(self, peer: PeerId) -> bool:
        return self.of(peer) <= GRAYLIST
