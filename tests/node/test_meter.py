"""The meter against a link that counts: rounds and bytes that a session reports are those that went over its lanes.

What goes on after the answer, the statistics, has rounds of its own behind those of the answer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finode.identity import PeerId
from finode.net.interface import Stream
from finode.node.interface import QueryProgress, QueryRequest
from finode.wire.session import PROTOCOL, ROUND_HEADER
from tests.fakes.federation import Member, federation_of, until

LAYOUT: dict[str, dict[str, Any]] = {
    **{f"party {index}": {"roles": ["owner", "party"], "models": [index]} for index in range(5)},
    "dealer": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}


@dataclass(frozen=True)
class Frame:
    """One frame of a lane: of which run and round, and how long."""

    run: bytes
    round: int
    length: int


Frames = dict[tuple[PeerId, PeerId], list[Frame]]


def _seen(frame: Any) -> Frame:
    run, round = ROUND_HEADER.unpack_from(frame)
    return Frame(run, round, len(frame))


class CountedLane:
    """A lane's stream at the party that opened it: it sees the frames of both directions."""

    def __init__(self, stream: Stream, own: PeerId, frames: Frames) -> None:
        self._stream = stream
        self._own = own
        self._frames = frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send_raw(self, frame: Any, **options: Any) -> None:
        self._frames[self._own, self._stream.peer].append(_seen(frame))
        await self._stream.send_raw(frame, **options)

    async def receive_frame(self, *kinds: Any, **options: Any) -> Any:
        frame = await self._stream.receive_frame(*kinds, **options)
        if isinstance(frame, bytearray):
            self._frames[self._stream.peer, self._own].append(_seen(frame))
        return frame


def count_lanes(members: dict[str, Member], monkeypatch: pytest.MonkeyPatch) -> Frames:
    """Count the frames of every lane that is opened from now on, by who sends and who receives."""
    frames: Frames = defaultdict(list)

    def counting(member: Member) -> Any:
        inner = member.network.open

        async def open(peer: PeerId, protocol: str, *, timeout_s: float) -> Any:
            stream = await inner(peer, protocol, timeout_s=timeout_s)
            return CountedLane(stream, member.peer, frames) if protocol == PROTOCOL else stream

        return open

    for member in members.values():
        monkeypatch.setattr(member.network, "open", counting(member))
    return frames


async def ignore(progress: QueryProgress) -> None:
    return None


@pytest.mark.trio
@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4])
async def test_rounds_and_bytes_are_those_that_the_links_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parties: int, batch: int
) -> None:
    request = QueryRequest(service="toy", inputs=np.ones((batch, 4)), parties=parties)
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        frames = count_lanes(members, monkeypatch)
        await members["asker"].node.query(request, ignore)  # opens lanes and masked weights
        answer = await members["asker"].node.query(request, ignore)
        await until(lambda: sum(member.node.ballots_kept for member in members.values()) == 2 * parties)

    session, rounds = bytes.fromhex(answer.session), answer.traffic.rounds
    after = {pair: [one for one in seen if one.run == session and one.round >= rounds] for pair, seen in frames.items()}
    frames = {pair: [one for one in seen if one.run == session and one.round < rounds] for pair, seen in frames.items()}
    assert all(after.values())
    assert len(frames) == parties * (parties - 1)
    assert all([one.round for one in seen] == list(range(rounds)) for seen in frames.values())
    sent = tuple(
        sum(one.length for (source, _), seen in frames.items() for one in seen if source == party)
        for party in answer.committee.parties
    )
    assert sent == answer.traffic.bytes_sent_per_party
