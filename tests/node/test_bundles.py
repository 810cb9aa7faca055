"""Bundles are used once, and meet their session in either order."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from finode.errors import PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.node.bundles import BundleShelf, PartyBundle

DEALER = PeerId("dealer")
SESSION = b"s" * 16
BUNDLE = PartyBundle(b"seed" * 8, bytearray(b"corrections"))


@pytest.mark.trio
async def test_whoever_is_first_waits_for_the_other(autojump_clock: MockClock) -> None:
    shelf = BundleShelf()
    shelf.put(DEALER, SESSION, BUNDLE)
    assert await shelf.take(DEALER, SESSION, 5) is BUNDLE

    async with trio.open_nursery() as nursery:

        async def take() -> None:
            assert await shelf.take(DEALER, SESSION, 5) is BUNDLE

        nursery.start_soon(take)
        await trio.sleep(1)
        shelf.put(DEALER, SESSION, BUNDLE)


@pytest.mark.trio
async def test_a_bundle_is_taken_once_and_a_late_dealer_is_named(autojump_clock: MockClock) -> None:
    shelf = BundleShelf()
    shelf.put(DEALER, SESSION, BUNDLE)
    await shelf.take(DEALER, SESSION, 5)
    with pytest.raises(PeerTimeout, match="no bundle within 5 s") as caught:
        await shelf.take(DEALER, SESSION, 5)
    assert caught.value.peer == DEALER


def test_a_second_offer_of_one_serial_is_refused() -> None:
    shelf = BundleShelf()
    shelf.claim(DEALER, b"1" * 16)
    with pytest.raises(RemoteProtocolError, match="second time"):
        shelf.claim(DEALER, b"1" * 16)
    shelf.claim(PeerId("another dealer"), b"1" * 16)


@pytest.mark.trio
async def test_a_bundle_that_nobody_takes_is_burned(autojump_clock: MockClock) -> None:
    shelf = BundleShelf()
    shelf.put(DEALER, SESSION, BUNDLE)
    await shelf.keep(SESSION, 60)
    with pytest.raises(PeerTimeout):
        await shelf.take(DEALER, SESSION, 1)


def test_a_bundle_s_repr_shows_neither_seed_nor_corrections() -> None:
    assert "seed" not in repr(BUNDLE).replace("seed=", "")
    assert "corrections" not in repr(BUNDLE)
