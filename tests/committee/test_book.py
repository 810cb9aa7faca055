"""The book of sealed committees: what a session takes, and what it is refused for; the querier's reuse."""

from __future__ import annotations

import dataclasses

import pytest

from finode.committee.agreement import Agreement
from finode.committee.book import CommitteeBook, QuerierCache
from finode.committee.sealed import SealedCommittee
from finode.errors import LocalProtocolError, PeerRefused
from finode.wire.committee import RefusalReason
from tests.committee.conftest import NOW, SERVICE, World


def reason_of(refused: pytest.ExceptionInfo[PeerRefused]) -> str:
    return refused.value.reason


def test_a_session_takes_quota_and_a_seat_and_gives_back_the_seat_alone(world: World) -> None:
    book, committee = CommitteeBook(2), world.sealed(quota=100, max_batch=64)
    book.add(committee)

    assert book.begin(committee.id, b"one", 60, NOW) is committee
    assert (book.left(committee.id, NOW), book.seats_in_use) == (40, 1)
    assert book.sessions_of(committee.id) == (b"one",)
    book.end(b"one")

    assert (book.left(committee.id, NOW), book.seats_in_use) == (40, 0)


def test_what_is_not_sealed_or_has_expired_is_refused(world: World) -> None:
    book, committee = CommitteeBook(1), world.sealed()

    with pytest.raises(PeerRefused) as unknown:
        book.get(committee.id, NOW)
    book.add(committee)
    with pytest.raises(PeerRefused) as expired:
        book.begin(committee.id, b"one", 1, committee.terms.expires_ms)

    assert reason_of(unknown) == RefusalReason.NOT_SEALED
    assert reason_of(expired) == RefusalReason.EXPIRED
    assert book.get(committee.id, committee.terms.expires_ms - 1) is committee


@pytest.mark.parametrize(
    ("batch", "reason"),
    [(0, RefusalReason.BATCH_TOO_LARGE), (65, RefusalReason.BATCH_TOO_LARGE), (64, RefusalReason.QUOTA_USED)],
)
def test_a_batch_beyond_the_terms_takes_nothing(world: World, batch: int, reason: RefusalReason) -> None:
    book, committee = CommitteeBook(1), world.sealed(quota=100, max_batch=64)
    book.add(committee)
    book.spend(committee.id, 60, NOW)

    with pytest.raises(PeerRefused) as refused:
        book.begin(committee.id, b"one", batch, NOW)

    assert reason_of(refused) == reason
    assert (book.left(committee.id, NOW), book.seats_in_use) == (40, 0)


def test_beyond_its_capacity_the_node_is_busy(world: World) -> None:
    book, committee = CommitteeBook(1), world.sealed()
    book.add(committee)
    book.begin(committee.id, b"one", 1, NOW)

    with pytest.raises(PeerRefused) as busy:
        book.begin(committee.id, b"two", 1, NOW)
    with pytest.raises(PeerRefused) as same:
        book.begin(committee.id, b"one", 1, NOW)

    assert reason_of(busy) == RefusalReason.BUSY
    assert reason_of(same) == RefusalReason.BAD_TERMS
    assert book.left(committee.id, NOW) == committee.terms.quota - 1


def test_a_seat_is_given_back_once(world: World) -> None:
    book, committee = CommitteeBook(1), world.sealed()
    book.add(committee)
    book.begin(committee.id, b"one", 1, NOW)
    book.end(b"one")

    with pytest.raises(LocalProtocolError):
        book.end(b"one")


def test_a_committee_entered_again_keeps_what_is_left_of_it(world: World) -> None:
    book, committee = CommitteeBook(1), world.sealed()
    book.add(committee)
    book.spend(committee.id, 10, NOW)

    book.add(world.sealed())

    assert len(book) == 1
    assert book.left(committee.id, NOW) == committee.terms.quota - 10


def test_committees_are_dropped_by_name_and_by_expiry(world: World) -> None:
    book = CommitteeBook(1)
    first, second = world.sealed(), world.sealed(world.terms(parties=("eden", "flux")), expires_ms=NOW + 1)
    book.add(first)
    book.add(second)

    assert book.drop_expired(NOW + 1) == (second,)
    assert book.drop(first.id) is first
    assert book.drop(first.id) is None
    assert len(book) == 0


def _agreed(committee: SealedCommittee) -> Agreement:
    return Agreement(committee, SERVICE)


def test_the_cache_reuses_a_committee_for_the_same_request_while_its_quota_lasts(world: World) -> None:
    cache, request, committee = QuerierCache(), world.request(), _agreed(world.sealed(quota=100, max_batch=64))
    cache.put(request, committee, batch=30)

    assert cache.take(request, 64, NOW) is committee
    assert cache.take(request, 7, NOW) is None
    assert cache.take(request, 6, NOW) is committee
    assert cache.take(request, 1, NOW) is None


@pytest.mark.parametrize("change", [{"parties": 3}, {"vote": "hard"}, {"exclude": frozenset({"acme"})}])
def test_the_cache_has_nothing_for_another_request(world: World, change: dict[str, object]) -> None:
    cache, request = QuerierCache(), world.request()
    cache.put(request, _agreed(world.sealed()))

    assert cache.take(dataclasses.replace(request, **change), 1, NOW) is None  # type: ignore[arg-type] # any field


def test_the_cache_leaves_out_what_is_about_to_expire(world: World) -> None:
    cache, request, committee = QuerierCache(margin_ms=5_000), world.request(), _agreed(world.sealed())
    cache.put(request, committee)

    assert cache.take(request, 1, committee.committee.terms.expires_ms - 5_000) is None
    assert cache.take(request, 1, committee.committee.terms.expires_ms - 5_001) is committee
    assert cache.take(request, 1, committee.committee.terms.expires_ms) is None
    assert len(cache) == 0


def test_the_cache_forgets_the_committees_of_a_lost_member(world: World) -> None:
    cache, request = QuerierCache(), world.request()
    first, second = world.sealed(), world.sealed(world.terms(owners=("eden",)))
    for committee in (first, second, second):
        cache.put(request, _agreed(committee))

    assert cache.drop_member(world.peer("eden")) == (second,)
    assert first.id in cache
    assert second.id not in cache
    assert cache.drop(first.id) is first
    assert cache.drop(first.id) is None
    assert len(cache) == 0
