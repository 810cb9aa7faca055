"""What leaves a node, captured at its streams: uniform shares, masked openings, a dealer that sees no data at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finode.net.interface import Buffer
from finode.net.stream import FrameStream
from finode.node.interface import QueryProgress, QueryRequest
from finode.smpc import sharing
from finode.wire.message import Message
from finode.wire.preprocessing import BundleStored, Deal, RequestMasks
from finode.wire.session import ROUND_HEADER
from finode.wire.shares import OfferDeployment
from tests.fakes.federation import Member, federation_of, toy_plan, toy_weights

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1]},
    "beta": {"roles": ["owner"], "models": [2]},
    "p1": {"roles": ["party"]},
    "p2": {"roles": ["party"]},
    "d1": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}


class Capture:
    """Everything that is sent, by the peer that it is sent to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.raw: list[tuple[str, bytes]] = []
        send, send_raw = FrameStream.send, FrameStream.send_raw

        async def capture_send(stream: FrameStream, message: Message, **options: Any) -> None:
            self.messages.append((stream.peer, message))
            await send(stream, message, **options)

        async def capture_raw(stream: FrameStream, data: Buffer, **options: Any) -> None:
            self.raw.append((stream.peer, bytes(data)))
            await send_raw(stream, data, **options)

        send_bulk = FrameStream.send_bulk

        async def capture_bulk(stream: FrameStream, data: Buffer, **options: Any) -> None:
            self.raw.append((stream.peer, bytes(data)))
            await send_bulk(stream, data, **options)

        monkeypatch.setattr(FrameStream, "send", capture_send)
        monkeypatch.setattr(FrameStream, "send_raw", capture_raw)
        monkeypatch.setattr(FrameStream, "send_bulk", capture_bulk)


async def _no_progress(progress: QueryProgress) -> None:
    return None


def _is_uniform(data: bytes) -> bool:
    """Chi-square over byte values; 255 degrees of freedom, beyond 400 once in ten million."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum()) < 400


async def _ask(members: dict[str, Member], x: np.ndarray[Any, Any]) -> None:
    await members["asker"].node.query(QueryRequest(service="toy", inputs=x), _no_progress)


@pytest.mark.trio
async def test_the_dealer_is_sent_no_share_of_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        capture = Capture(monkeypatch)
        await _ask(members, np.ones((4, 4)))
        dealer = members["d1"].peer

    assert not [data for peer, data in capture.raw if peer == dealer]
    offers = [message for peer, message in capture.messages if peer == dealer]
    sizes = [message.share_bytes for message in offers if isinstance(message, OfferDeployment)]
    assert sizes == [0, 0]
    kinds = {type(message).__name__ for message in offers}
    assert {Deal.__name__, RequestMasks.__name__, BundleStored.__name__} <= kinds
    assert not kinds & {"StartSession", "SessionResult"}


@pytest.mark.trio
async def test_frames_of_live_parties_are_uniform_and_never_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same extreme input again and again: what goes over the lanes looks like noise and differs each time."""
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        capture = Capture(monkeypatch)
        parties = {members["p1"].peer, members["p2"].peer}
        lane_bytes = []
        for value in (0.0, 0.0, 100.0, -100.0, 0.0, 0.0):
            capture.raw.clear()
            await _ask(members, np.full((64, 4), value))
            frames = [data[ROUND_HEADER.size :] for peer, data in capture.raw if peer in parties]
            lane_bytes.append([frame for frame in frames if len(frame) >= 32])

    everything = [frame for frames in lane_bytes for frame in frames]
    assert len(everything) > 60
    assert max(Counter(everything).values()) == 1
    # Openings of ring elements: their payload starts behind the engine's own header, which is public.
    tail = b"".join(frame[len(frame) // 2 :] for frame in everything if len(frame) > 4096)
    assert len(tail) > 50_000
    assert _is_uniform(tail)


@pytest.mark.trio
async def test_shares_on_the_parties_disks_are_uniform_and_add_up_to_the_weights(tmp_path: Path) -> None:
    layout = {name: dict(what) for name, what in LAYOUT.items()}
    layout["alpha"]["models"] = list(range(10, 40))
    async with federation_of(tmp_path, layout) as (_, members):
        await _ask(members, np.ones((1, 4)))
        stores = [members[name].holdings.store for name in ("p1", "p2")]
        kept = {entry.id: entry for entry in stores[0].all()}
        shares = [{key: store.share_path(key).read_bytes() for key in kept} for store in stores]
        versions = {entry.version: seed for entry, seed in zip(members["alpha"].models, range(10, 40), strict=True)}

    for side in shares:
        assert _is_uniform(b"".join(side.values()))
    assert len(kept) == 31
    plan = toy_plan()
    for key, entry in kept.items():
        if entry.version in versions:
            total = sum(np.frombuffer(side[key], dtype="<i8") for side in shares)
            expected = sharing.encode_weights(plan, toy_weights(plan, versions[entry.version]), 16)
            assert np.array_equal(total, expected)
