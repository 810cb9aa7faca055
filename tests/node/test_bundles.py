"""Bundles are used once, meet their session in either order, and take no more room than they are given."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from finode.errors import PeerRefused, PeerTimeout, RemoteProtocolError, WorkerDied
from finode.identity import PeerId
from finode.node import bundles
from finode.node.bundles import MAX_OF_ONE_DEALER, BundleShelf, Fate, PartyBundle

DEALER = PeerId("dealer")
OTHER = PeerId("another dealer")
QUERIER = PeerId("querier")
COMMITTEE = b"c" * 32


def bundle_of(
    serial: bytes = b"s" * 16, *, committee: bytes = COMMITTEE, ahead: bool = True, dealer: PeerId = DEALER
) -> PartyBundle:
    return PartyBundle(
        dealer=dealer,
        serial=serial,
        committee=committee,
        batch=4,
        ahead=ahead,
        size=100,
        worker=cast(Any, None),
    )


async def _take(shelf: BundleShelf, bundle: PartyBundle) -> PartyBundle:
    return await shelf.take(bundle.dealer, bundle.serial, COMMITTEE, 4, QUERIER, 5)


async def _is_refused_as_burned(shelf: BundleShelf, bundle: PartyBundle) -> None:
    """At once, and to nobody's fault: it may have been burned while its session was on its way."""
    began = trio.current_time()
    with pytest.raises(PeerRefused, match="burned") as caught:
        await _take(shelf, bundle)
    assert (caught.value.peer, caught.value.reason) == ("", "not-sealed")
    assert trio.current_time() == began


def _naming(
    shelf: BundleShelf, serial: bytes = b"s" * 16, committee: bytes = COMMITTEE
) -> AbstractContextManager[None]:
    return shelf.naming(DEALER, serial, committee, QUERIER)


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
async def test_a_dealer_that_sends_no_bundle_in_time_is_named(shelf: BundleShelf, autojump_clock: MockClock) -> None:
    with pytest.raises(PeerTimeout, match="no bundle within 5 s") as caught:
        await _take(shelf, bundle_of())
    assert caught.value.peer == DEALER


@pytest.mark.trio
async def test_a_second_take_is_refused_at_once_and_laid_to_the_querier(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    bundle, waiting = bundle_of(), trio.current_time()
    with shelf.claim(bundle):
        shelf.put(bundle)
        await _take(shelf, bundle)
        with pytest.raises(RemoteProtocolError, match="another session took") as caught:
            await _take(shelf, bundle)
    assert caught.value.peer == QUERIER
    with pytest.raises(RemoteProtocolError, match="another session took"):
        await _take(shelf, bundle)
    assert trio.current_time() == waiting


@pytest.mark.trio
async def test_a_serial_is_one_session_s_before_its_bundle_comes_while_it_is_used_and_afterwards(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    bundle = bundle_of()

    def refused() -> None:
        with pytest.raises(RemoteProtocolError, match="second session") as caught, _naming(shelf):
            raise AssertionError
        assert caught.value.peer == QUERIER

    with _naming(shelf):
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                assert await _take(shelf, bundle) is bundle

            nursery.start_soon(take)
            await trio.sleep(1)
            refused()
            shelf.put(bundle)
            refused()
        refused()
    refused()
    assert not bundle.ended.is_set()  # the refused sessions burned nothing
    with _naming(shelf, b"t" * 16):
        pass
    refused()
    with _naming(shelf, committee=b"o" * 32):
        pass


def test_a_committee_names_so_many_serials_and_those_of_one_that_is_over_are_forgotten(
    shelf: BundleShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "REMEMBERED_SERIALS", 2)
    for serial in (b"1" * 16, b"2" * 16):
        with _naming(shelf, serial):
            pass
    with pytest.raises(PeerRefused, match="2 bundles") as caught, _naming(shelf, b"3" * 16):
        raise AssertionError
    assert caught.value.reason == "quota-used"
    with pytest.raises(RemoteProtocolError), _naming(shelf, b"1" * 16):
        raise AssertionError
    with _naming(shelf, b"3" * 16, committee=b"o" * 32):
        pass
    shelf.burn_committee(COMMITTEE)
    assert list(shelf._named) == [b"o" * 32]


def test_the_serials_of_offers_that_are_remembered_are_limited(
    shelf: BundleShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "REMEMBERED_SERIALS", 2)
    for number in range(4):
        bundle = bundle_of(bytes([number]) * 16)
        with shelf.claim(bundle):
            shelf.put(bundle)
    assert len(shelf._serials) == 2
    with pytest.raises(RemoteProtocolError, match="second time"), shelf.claim(bundle_of(bytes([3]) * 16)):
        raise AssertionError


@pytest.mark.trio
async def test_another_dealer_s_bundle_of_the_same_serial_does_not_fit(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    shelf.put(bundle_of(dealer=OTHER))
    with pytest.raises(PeerTimeout):
        await _take(shelf, bundle_of())


def test_a_second_offer_of_one_serial_is_refused(shelf: BundleShelf) -> None:
    with shelf.claim(bundle_of()):
        pass
    with pytest.raises(RemoteProtocolError, match="second time") as caught, shelf.claim(bundle_of()):
        raise AssertionError
    assert caught.value.peer == DEALER
    with shelf.claim(bundle_of(dealer=OTHER)):
        pass


@pytest.mark.trio
@pytest.mark.parametrize(("committee", "batch"), [(b"o" * 32, 4), (COMMITTEE, 2)])
async def test_a_bundle_of_another_committee_or_batch_is_burned(
    shelf: BundleShelf, committee: bytes, batch: int, autojump_clock: MockClock
) -> None:
    bundle = bundle_of()
    shelf.put(bundle)
    with pytest.raises(RemoteProtocolError, match="another committee or batch") as caught:
        await shelf.take(DEALER, bundle.serial, committee, batch, QUERIER, 5)
    assert caught.value.peer == DEALER
    assert bundle.ended.is_set()
    with pytest.raises(RemoteProtocolError, match="another session took"):
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
    await _is_refused_as_burned(shelf, ours)
    assert not shelf.burn(ours)


@pytest.mark.trio
async def test_a_session_that_ends_burns_the_bundle_it_named_if_it_is_its_committee_s(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    bundle = bundle_of()
    shelf.put(bundle)
    with _naming(shelf, committee=b"o" * 32):
        pass
    assert not bundle.ended.is_set()
    with _naming(shelf):
        pass
    assert bundle.ended.is_set()
    await _is_refused_as_burned(shelf, bundle)


@pytest.mark.trio
async def test_a_bundle_that_nobody_takes_is_burned_with_its_claim(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    bundle = bundle_of()
    with shelf.claim(bundle):
        shelf.put(bundle)
    assert bundle.ended.is_set()
    await _is_refused_as_burned(shelf, bundle)


@pytest.mark.trio
async def test_a_bundle_that_was_lost_here_is_not_waited_for_and_not_laid_to_the_dealer(
    shelf: BundleShelf, autojump_clock: MockClock
) -> None:
    bundle = bundle_of()
    shelf.put(bundle)
    shelf.burn(bundle, Fate.WORKER_DIED)
    began = trio.current_time()
    with pytest.raises(WorkerDied):
        await _take(shelf, bundle)
    assert trio.current_time() == began


@pytest.mark.trio
async def test_one_dealer_cannot_fill_the_shelf(shelf: BundleShelf) -> None:
    """What is on its way counts like what lies here; what a session took does not."""
    bundles = [bundle_of(bytes([number]) * 16, ahead=False) for number in range(MAX_OF_ONE_DEALER)]
    with ExitStack() as held:
        for bundle in bundles:
            held.enter_context(shelf.claim(bundle))
        with pytest.raises(RemoteProtocolError, match="nobody asked for"), shelf.claim(bundle_of(ahead=False)):
            raise AssertionError
        with shelf.claim(bundle_of(ahead=False, dealer=OTHER)), shelf.claim(bundle_of(b"a" * 16)):
            pass
        shelf.put(bundles[0])
        await _take(shelf, bundles[0])
        with shelf.claim(bundle_of(b"x" * 16, ahead=False)):
            pass
    with shelf.claim(bundle_of(b"y" * 16, ahead=False)):
        pass


def test_room_is_limited_by_number_and_by_memory_for_what_nobody_asked_for(shelf: BundleShelf) -> None:
    with ExitStack() as held:
        for index in range(2):
            bundle = bundle_of(bytes([index]) * 16)
            held.enter_context(shelf.claim(bundle))
            shelf.admit(bundle, 1000)
        with pytest.raises(PeerRefused, match="2 bundles dealt ahead") as caught, shelf.claim(bundle_of()):
            raise AssertionError
        assert caught.value.reason == "busy"
        other = bundle_of(b"o" * 16, committee=b"o" * 32)
        held.enter_context(shelf.claim(other))
        with pytest.raises(PeerRefused, match="memory"):
            shelf.admit(other, 501)
        shelf.admit(other, 500)
        asked = bundle_of(b"a" * 16, ahead=False)
        held.enter_context(shelf.claim(asked))
        shelf.admit(asked, 1 << 40)
    again = bundle_of(b"x" * 16)
    with shelf.claim(again):
        shelf.admit(again, 2500)


def test_a_bundle_s_repr_shows_no_secret() -> None:
    assert "seed" not in repr(bundle_of())
