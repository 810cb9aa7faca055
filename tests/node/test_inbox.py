"""Frames of a run, in whatever order they come."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from finode.errors import PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.node.inbox import Inbox
from finode.node.verdicts import VerdictReached
from finode.wire.shares import Fault, Verdict

PARTIES = (PeerId("p0"), PeerId("p1"), PeerId("p2"))


@pytest.mark.trio
async def test_frames_of_a_round_are_gathered_in_any_order() -> None:
    inbox = Inbox(PARTIES, 1)
    inbox.put(2, 0, bytearray(b"two"))
    inbox.put(2, 1, bytearray(b"two!"))
    inbox.put(0, 0, bytearray(b"one"))

    assert await inbox.gather(0, 3, 1.0) == {0: bytearray(b"one"), 2: bytearray(b"two")}
    inbox.put(0, 1, bytearray(b"one!"))
    assert await inbox.gather(1, 4, 1.0) == {0: bytearray(b"one!"), 2: bytearray(b"two!")}


@pytest.mark.trio
async def test_a_missing_party_is_named_at_the_deadline(autojump_clock: MockClock) -> None:
    inbox = Inbox(PARTIES, 0)
    inbox.put(1, 0, bytearray(b"x"))

    with pytest.raises(PeerTimeout, match="party 2 sent nothing for round 0 within 10 s") as caught:
        await inbox.gather(0, 1, 10.0)

    assert caught.value.peer == "p2"


@pytest.mark.trio
async def test_a_verdict_ends_a_wait_and_the_first_one_counts(autojump_clock: MockClock) -> None:
    inbox = Inbox(PARTIES, 0)
    first = Verdict(culprit="p1", round=3, fault=Fault.PEER_LOST)

    async with trio.open_nursery() as nursery:

        async def end() -> None:
            await trio.sleep(1)
            inbox.fail(first)
            inbox.fail(Verdict(culprit="p2", round=3, fault=Fault.TIMEOUT))

        nursery.start_soon(end)
        with pytest.raises(VerdictReached) as caught:
            await inbox.gather(0, 1, 10.0)

    assert caught.value.verdict == first
    assert "p1 was lost at round 3" in str(caught.value)


@pytest.mark.parametrize("round", [2, 7])
def test_a_frame_too_far_ahead_is_its_sender_s_fault(round: int) -> None:
    inbox = Inbox(PARTIES, 0)
    with pytest.raises(RemoteProtocolError, match="party 1") as caught:
        inbox.put(1, round, bytearray(b"x"))
    assert caught.value.peer == "p1"


def test_a_frame_sent_twice_is_its_sender_s_fault() -> None:
    inbox = Inbox(PARTIES, 0)
    inbox.put(1, 0, bytearray(b"x"))
    with pytest.raises(RemoteProtocolError):
        inbox.put(1, 0, bytearray(b"y"))


@pytest.mark.trio
async def test_a_frame_of_another_size_is_its_sender_s_fault() -> None:
    inbox = Inbox(PARTIES, 0)
    inbox.put(1, 0, bytearray(b"xx"))
    inbox.put(2, 0, bytearray(b"x"))
    with pytest.raises(RemoteProtocolError, match="2 bytes in round 0 instead of 1") as caught:
        await inbox.gather(0, 1, 1.0)
    assert caught.value.peer == "p1"
