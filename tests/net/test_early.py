"""Streams whose first message does not wait for the peer's yes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from finode.errors import PeerRefused, PeerUnreachable
from finode.identity import Identity
from finode.net.early import EarlyPipe
from finode.net.negotiation import MULTISTREAM, NOT_AVAILABLE, answer, line
from finode.net.pipe import MemoryPipe
from finode.net.stream import FrameStream, NotServed, Pacer, PipeError

pytestmark = pytest.mark.trio
PROTOCOL = "/a/1"
YES = line(MULTISTREAM) + line(PROTOCOL)
NO = line(MULTISTREAM) + line(NOT_AVAILABLE)


async def test_what_is_sent_is_there_before_the_peer_has_answered() -> None:
    near, far = MemoryPipe.pair()
    pipe = await EarlyPipe.ask(near, PROTOCOL)
    await pipe.write(b"early ", b"data")

    assert await answer(far, {PROTOCOL}) == (PROTOCOL, bytearray(b"early data"))
    await far.write(b"later")
    assert await pipe.read() == b"later"


@pytest.mark.parametrize("cut", range(len(YES) + 1))
async def test_an_answer_may_come_in_pieces_and_with_data_behind_it(cut: int) -> None:
    near, far = MemoryPipe.pair()
    pipe = await EarlyPipe.ask(near, PROTOCOL)
    whole = YES + b"data"
    await far.write(whole[:cut])

    with trio.move_on_after(0):
        await pipe.read()  # cut off in the middle of the answer: nothing of it is lost
    await far.write(whole[cut:])

    assert await pipe.read() == b"data"


async def test_a_peer_that_says_no_is_named_as_refusing() -> None:
    near, far = MemoryPipe.pair()
    peer = Identity.generate().peer_id
    stream = FrameStream(await EarlyPipe.ask(near, PROTOCOL), peer, pacer=Pacer())
    await stream.send_raw(b"what it will not read")
    await far.write(NO)

    for _ in range(2):
        with pytest.raises(PeerRefused, match=f"does not serve {PROTOCOL}") as refusal:
            await stream.receive_raw(100, timeout_s=1)
        assert refusal.value.peer == peer


@pytest.mark.parametrize("said", [b"\x04\xff\xfe\xfd\n", line("/multistream/2.0.0"), line(MULTISTREAM) + line("/b/1")])
async def test_nonsense_is_no_answer(said: bytes) -> None:
    near, far = MemoryPipe.pair()
    pipe = await EarlyPipe.ask(near, PROTOCOL)
    await far.write(said)

    with pytest.raises(PipeError) as refusal:
        await pipe.read()
    assert not isinstance(refusal.value, NotServed)


async def test_a_peer_that_closes_without_a_word_is_lost() -> None:
    near, far = MemoryPipe.pair()
    stream = FrameStream(await EarlyPipe.ask(near, PROTOCOL), Identity.generate().peer_id, pacer=Pacer())
    await far.write(YES[:5])
    await far.close()

    with pytest.raises(PeerUnreachable, match="without an answer"):
        await stream.receive_raw(100, timeout_s=1)
