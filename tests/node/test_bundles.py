"""Bundles are used once, and meet their session in either order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from finode.errors import PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.node.bundles import MAX_OF_ONE_DEALER, BundleKey, BundleShelf, PartyBundle

DEALER = PeerId("dealer")
KEY = BundleKey(DEALER, b"c" * 32, b"s" * 16, 2)
BUNDLE = PartyBundle(b"seed" * 8, bytearray(b"corrections"))


@pytest.mark.trio
async def test_whoever_is_first_waits_for_the_other(autojump_clock: MockClock) -> None:
    shelf = BundleShelf()
    shelf.put(KEY, BUNDLE)
    assert await shelf.take(KEY, 5) is BUNDLE

    async with trio.open_nursery() as nursery:

        async def take() -> None:
            assert await shelf.take(KEY, 5) is BUNDLE

        nursery.start_soon(take)
        await trio.sleep(1)
        shelf.put(KEY, BUNDLE)


@pytest.mark.trio
async def test_a_bundle_is_taken_once_and_a_late_dealer_is_named(autojump_clock: MockClock) -> None:
    shelf = BundleShelf()
    shelf.put(KEY, BUNDLE)
    await shelf.take(KEY, 5)
    with pytest.raises(PeerTimeout, match="no bundle within 5 s") as caught:
        await shelf.take(KEY, 5)
    assert caught.value.peer == DEALER


@pytest.mark.trio
@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, dealer=PeerId("another dealer")),
        replace(KEY, committee=b"d" * 32),
        replace(KEY, session=b"t" * 16),
        replace(KEY, batch=3),
    ],
    ids=["dealer", "committee", "session", "batch"],
)
async def test_a_bundle_of_another_dealer_committee_session_or_size_does_not_fit(
    autojump_clock: MockClock, other: BundleKey
) -> None:
    shelf = BundleShelf()
    shelf.put(other, BUNDLE)
    with pytest.raises(PeerTimeout):
        await shelf.take(KEY, 5)


def test_a_second_offer_of_one_serial_is_refused() -> None:
    shelf = BundleShelf()
    with shelf.claim(KEY, b"1" * 16):
        pass
    with pytest.raises(RemoteProtocolError, match="second time"), shelf.claim(KEY, b"1" * 16):
        raise AssertionError
    with shelf.claim(replace(KEY, dealer=PeerId("another dealer")), b"1" * 16):
        pass


def test_one_dealer_cannot_fill_the_shelf() -> None:
    shelf = BundleShelf()
    held = [shelf.claim(KEY, bytes([number]) * 16) for number in range(MAX_OF_ONE_DEALER)]
    for claim in held:
        claim.__enter__()
    with pytest.raises(RemoteProtocolError, match="nobody asked for"), shelf.claim(KEY, b"x" * 16):
        raise AssertionError
    with shelf.claim(replace(KEY, dealer=PeerId("another dealer")), b"x" * 16):
        pass
    for claim in held:
        claim.__exit__(None, None, None)
    with shelf.claim(KEY, b"y" * 16):
        pass


@pytest.mark.trio
async def test_a_bundle_that_nobody_takes_is_burned(autojump_clock: MockClock) -> None:
    shelf = BundleShelf()
    with shelf.claim(KEY, b"1" * 16):
        shelf.put(KEY, BUNDLE)
        await shelf.keep(KEY, 60)
    with pytest.raises(PeerTimeout):
        await shelf.take(KEY, 1)
    shelf.put(KEY, BUNDLE)
    shelf.burn(KEY)
    with pytest.raises(PeerTimeout):
        await shelf.take(KEY, 1)


def test_a_bundle_s_repr_shows_neither_seed_nor_corrections() -> None:
    assert repr(BUNDLE) == "PartyBundle()"
