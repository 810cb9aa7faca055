"""The frames of one run, as they arrive from the other parties: no I/O, no matter in which order.

Parties move in step: a party sends its frame of round r + 1 only when it has all frames of round r, so another party
is at most one round ahead. What is further ahead, twice there, or of the wrong size, is that party's fault.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from finode.errors import PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Buffer
from finode.node.verdicts import VerdictReached
from finode.wire.shares import Verdict


class Inbox:
    """Frames by (round, party) of one run. `parties` are all peers in the order of their index."""

    def __init__(self, parties: tuple[PeerId, ...], party_index: int) -> None:
        self._parties = parties
        self._others = tuple(index for index in range(len(parties)) if index != party_index)
        self._frames: dict[tuple[int, int], Buffer] = {}
        self._verdict: Verdict | None = None
        self._changed = trio.Event()
        self.round = -1

    def put(self, party: int, round: int, frame: Buffer) -> None:
        """Take a frame of another party; raise `RemoteProtocolError` when it cannot be due now."""
        current = max(self.round, 0)
        if not current <= round <= current + 1 or (round, party) in self._frames:
            raise RemoteProtocolError(
                f"party {party} sent round {round} while round {current} is due", peer=self._parties[party]
            )
        self._frames[round, party] = frame
        self._wake()

    def fail(self, verdict: Verdict) -> None:
        """End the run with a verdict; the first one counts."""
        if self._verdict is None:
            self._verdict = verdict
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def gather(self, round: int, expected_bytes: int, timeout_s: float) -> dict[int, Buffer]:
        """Return the other parties' frames of `round`.

        Raises `VerdictReached` when the run was ended, `PeerTimeout` naming the first party that is missing,
        `RemoteProtocolError` for a frame that has not exactly `expected_bytes`.
        """
        self.round = round
        with trio.move_on_after(timeout_s):
            while self._verdict is None and self._missing(round):
                await self._changed.wait()
        missing = self._missing(round)
        if self._verdict is not None and missing:
            raise VerdictReached(self._verdict)
        if missing:
            raise PeerTimeout(
                f"party {missing[0]} sent nothing for round {round} within {timeout_s:.0f} s",
                peer=self._parties[missing[0]],
            )
        frames = {party: self._frames.pop((round, party)) for party in self._others}
        for party, frame in frames.items():
            if len(frame) != expected_bytes:
                raise RemoteProtocolError(
                    f"party {party} sent {len(frame)} bytes in round {round} instead of {expected_bytes}",
                    peer=self._parties[party],
                )
        self.round = round + 1
        return frames

    def _missing(self, round: int) -> list[int]:
        return [party for party in self._others if (round, party) not in self._frames]

    @property
    def others(self) -> Iterable[int]:
        return self._others
