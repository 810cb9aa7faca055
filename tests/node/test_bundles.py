"""Bundles are used once, meet their session in either order, and take no more room than they are given."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from finode.errors import PeerRefused, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.node.bundles import MAX_ASKED, BundleShelf, PartyBundle

DEALER = PeerId("dealer")
COMMITTEE = b"c" * 32


def bundle_of(serial: bytes = b"s" * 16, *, committee: bytes = COMMITTEE, ahead: bool = True) -> PartyBundle:
    return PartyBundle(
        dealer=DEALER,
        serial=serial,
        committee=committee,
        batch=4,
        ahead=ahead,
        size=100,
        memory_bytes=1000,
        worker=cast(Any, None),
    )


async def _take(shelf: BundleShelf, bundle: PartyBundle) -> PartyBundle:
    return await shelf.take(bundle.dealer, bundle.serial, COMMITTEE, 4, 5)


@pytest.fixture
def shelf() -> BundleShelf:
    return BundleShelf(2, 2500)


@pytest.mark.trio
async def test_whoever_is_first_waits_for_the_other(shelf: BundleShelf, autojump_clock: MockClock) -> None:
    first, second = bundle_of(b"1" * 16), bundle_of(b"2" * 16)
    shelf.put(first)
    assert await _take(shelf, first) is first

    async with trio.open_nursery() as nursery:

        async def take() -> None:
            assert await _take(shelf, second) is second

        nursery.start_soon(take)
        await trio.sleep(1)
        shelf.put(second)


@pytest.mark.trio
async def test_a_bundle_is_taken_once_and_a_late_dealer_is_named(shelf: BundleShelf, autojump_clock: MockClock) -> None:
    bundle = bundle_of()
    shelf.put(bundle)
    await _take(shelf, bundle)
    with pytest.raises(PeerTimeout, match="no bundle within 5 s") as caught:
        await _take(shelf, bundle)
    assert caught.value.peer == DEALER


def test_a_second_offer_of_one_serial_is_refused(shelf: BundleShelf) -> None:
    shelf.claim(DEALER, b"1" * 16)
    with pytest.raises(RemoteProtocolError, match="second time"):
        shelf.claim(DEALER, b"1" * 16)
    shelf.claim(PeerId("another dealer"), b"1" * 16)


@pytest.mark.trio
@pytest.mark.parametrize(("committee", "batch"), [(b"o" * 32, 4), (COMMITTEE, 2)])
async def test_a_bundle_of_another_committee_or_batch_is_burned(
    shelf: BundleShelf, committee: bytes, batch: int, autojump_clock: MockClock
) -> None:
    bundle = bundle_of()
    shelf.put(bundle)
    with pytest.raises(RemoteProtocolError, match="another committee or batch"):
        await shelf.take(DEALER, bundle.serial, committee, batch, 5)
    assert bundle.ended.is_set()
    with pytest.raises(PeerTimeout):
        await _take(shelf, bundle)


@pytest.mark.trio
async def test_a_committee_that_ends_burns_its_bundles_and_no_others(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    ours, theirs = bundle_of(b"1" * 16), bundle_of(b"2" * 16, committee=b"o" * 32)
    shelf.put(ours)
    shelf.put(theirs)
    assert shelf.burn_committee(COMMITTEE) == 1
    assert ours.ended.is_set()
    assert not theirs.ended.is_set()
    with pytest.raises(PeerTimeout):
        await _take(shelf, ours)
    assert not shelf.burn(ours)


def test_room_is_limited_by_number_and_by_memory_for_what_nobody_asked_for(shelf: BundleShelf) -> None:
    for index in range(2):
        shelf.admit(COMMITTEE, True, 1000)
        shelf.put(bundle_of(bytes([index]) * 16))
    with pytest.raises(PeerRefused, match="2 bundles dealt ahead") as caught:
        shelf.admit(COMMITTEE, True, 1)
    assert caught.value.reason == "busy"
    shelf.admit(b"o" * 32, True, 500)
    with pytest.raises(PeerRefused, match="memory"):
        shelf.admit(b"o" * 32, True, 501)
    for index in range(MAX_ASKED):
        shelf.admit(COMMITTEE, False, 1 << 40)
        shelf.put(bundle_of(bytes([100 + index]) * 16, ahead=False))
    with pytest.raises(PeerRefused, match="do not begin"):
        shelf.admit(COMMITTEE, False, 1)
