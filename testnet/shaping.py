"""What a link does to bytes, as arithmetic on times: no I/O and no clock.

A `Pipe` is one direction between two nodes. All their connections share it: bytes leave one after the other at its rate
and arrive `delay_s` after they have left, in order. A `Window` is one direction of one connection. It bounds what is
under way, as TCP does: it starts small and grows by what is acknowledged (slow start, RFC 5681 section 3.1), so that a
transfer of a megabyte over a long link takes several round trips although the rate would allow less; and what it allows
is not sent at once but spread over a part of the round trip (pacing).

Losses are not emulated: a window grows up to `WINDOW_LIMIT` and never shrinks. Nor does it shrink when the connection
rests, for streams here rest for milliseconds, not for the fraction of a second after which TCP would do that.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from finode.testnet.links import Link

SEGMENT: Final = 8948
"""A TCP segment where packets have 9000 bytes, as between emulated hosts; it is also the least worth a step."""
FIRST_WINDOW: Final = 7 * SEGMENT
"""Bytes under way at first. Linux sends ten segments, but takes only what fits into half of tcp_rmem's default of
128 KiB on a new connection. On the open Internet, where packets have 1500 bytes, ten segments are 14 KiB."""
WINDOW_LIMIT: Final = 4 * 1024 * 1024
"""Bytes under way at most: the default of tcp_wmem's maximum."""
PACING_GAIN: Final = 2.0
"""A window is sent over half of a round trip: Linux's pace in slow start (tcp_pacing_ss_ratio)."""
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
        # The most that was under way lately, and what is left to hear of until that is too long ago to count.
        self._most = 0
        self._left = 0

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
        if self.under_way > self._most:
            self._most = self._left = self.under_way
        self.paced_until = max(self.paced_until, now) + size / self.size * round_trip_s / PACING_GAIN

    def arrived(self, size: int, acknowledged_at: float) -> None:
        """Note that bytes have reached the other end, and when this end hears of it."""
        self._unacknowledged.append((acknowledged_at, size))

    def hear(self, now: float) -> None:
        """Take the acknowledgements that have come by `now`."""
        while self._unacknowledged and self._unacknowledged[0][0] <= now:
            size = self._unacknowledged.popleft()[1]
            # As in Linux: a sender that does not use half of its window learns nothing of what it could use.
            if self.size < 2 * self._most:
                self.size = min(self.size + size, WINDOW_LIMIT)
            self.under_way -= size
            self._left -= size
            if self._left <= 0:
                self._most = self._left = self.under_way
