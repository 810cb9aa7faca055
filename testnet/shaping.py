"""What a link does to bytes, as arithmetic on times: no I/O and no clock.

A `Pipe` is one direction between two nodes. All their connections share it: bytes leave one after the other at its rate
and arrive `delay_s` after they have left, in order. A `Window` is one direction of one connection. It bounds what is
under way, as TCP does: it starts small and grows by what is acknowledged (slow start, RFC 5681 section 3.1), so that a
transfer of a megabyte over a long link takes several round trips although the rate would allow less; and what it allows
is not sent at once but spread over a part of the round trip (pacing, as BBR does it).

Losses are not emulated: a window grows up to `WINDOW_LIMIT` and never shrinks. Nor does it shrink when the connection
rests, for streams here rest for milliseconds, not for the fraction of a second after which TCP would do that.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from finode.testnet.links import Link

FIRST_WINDOW: Final = 64 * 1024
"""Bytes under way at first. Linux receives so much on a new connection (half of tcp_rmem's default of 128 KiB) and
sends ten segments, which are more where segments are jumbo, as between emulated hosts; elsewhere they are 14 KiB."""
WINDOW_LIMIT: Final = 4 * 1024 * 1024
"""Bytes under way at most: the default of tcp_wmem's maximum."""
PACING_GAIN: Final = 2.885
"""A window is sent over this part of a round trip: 2 / ln 2, BBR's gain while it looks for the rate
(draft-cardwell-iccrg-bbr-congestion-control, section 4.3.1.1)."""
SEGMENT: Final = 8 * 1024
"""Least bytes that are worth a step of their own: about a jumbo frame."""
STEP_S: Final = 0.001
"""What a link carries in this time is moved in one step, so that even a fast one does not take a step per packet; and
so much may be sent ahead of the pace, as in Linux."""
MAX_CHUNK: Final = 256 * 1024


class Pipe:
    """One direction of the link between two nodes. `carried` counts its bytes since it was made."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.carried = 0
        self._free_at = 0.0

    @property
    def chunk(self) -> int:
        """Bytes to take at a time."""
        return max(SEGMENT, min(MAX_CHUNK, int(self.link.bytes_per_s * STEP_S)))

    def carry(self, size: int, now: float) -> float:
        """Send `size` bytes that are there `now`; return when the last of them arrives."""
        self.carried += size
        self._free_at = max(self._free_at, now) + size / self.link.bytes_per_s
        return self._free_at + self.link.delay_s


class Window:
    """What one direction of one connection may have under way."""

    def __init__(self) -> None:
        self.size = FIRST_WINDOW
        self.under_way = 0
        self.paced_until = 0.0
        self._unacknowledged: deque[tuple[float, int]] = deque()

    def room(self, now: float) -> int:
        """Return how many bytes may be sent now; 0 rather than less than a segment."""
        room = self.size - self.under_way
        return room if room >= SEGMENT and self.paced_until - now <= STEP_S else 0

    def room_at(self) -> float | None:
        """Return when to ask again for room, None if that depends on bytes that have yet to arrive."""
        if self.size - self.under_way >= SEGMENT:
            return self.paced_until - STEP_S
        return self._unacknowledged[0][0] if self._unacknowledged else None

    def sent(self, size: int, now: float, round_trip_s: float) -> None:
        """Note that bytes have left, and until when no others may."""
        self.under_way += size
        self.paced_until = max(self.paced_until, now) + size / self.size * round_trip_s / PACING_GAIN

    def arrived(self, size: int, acknowledged_at: float) -> None:
        """Note that bytes have reached the other end, and when this end hears of it."""
        self._unacknowledged.append((acknowledged_at, size))

    def hear(self, now: float) -> None:
        """Take the acknowledgements that have come by `now`."""
        while self._unacknowledged and self._unacknowledged[0][0] <= now:
            size = self._unacknowledged.popleft()[1]
            # As in Linux: a sender that does not use half of its window learns nothing of what it could use.
            if 2 * self.under_way >= self.size:
                self.size = min(self.size + size, WINDOW_LIMIT)
            self.under_way -= size
