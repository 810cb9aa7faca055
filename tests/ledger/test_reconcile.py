"""Reconciliation: whatever two sides have, both end with all of it, and what is said follows the difference."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finode.errors import RemoteProtocolError
from finode.ledger.elements import Elements, hash_of, key_of
from finode.ledger.envelopes import Place
from finode.ledger.reconcile import FEW, PAGE, WAYS, Comparison, answer, top
from finode.wire.reconciliation import Compare, Compared, KeyRange, RecordKind


def key(number: int, epochs: int = 4) -> bytes:
    digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
    place = Place(kind=list(RecordKind)[number % 3], id=digest, epoch=1000 + number % epochs, time_ms=0)
    return key_of(place, digest)


class Traffic:
    """What a sync said, but for the records."""

    def __init__(self) -> None:
        self.bytes = 0
        self.round_trips = 0
        self.passes = 0


def sync(ours: Elements, theirs: Elements) -> Traffic:
    """Bring both sides to agree as the keeper does, handing over keys in place of records."""
    traffic, start = Traffic(), b""
    keys = {hash_of(key): key for key in (*ours, *theirs)}
    while True:
        traffic.passes += 1
        comparison = Comparison.begin(ours, start)
        while comparison.request is not None:
            request = Compare.encode(comparison.request)
            compared = answer(theirs, comparison.request)
            traffic.bytes += len(request) + len(compared.encode())
            traffic.round_trips += 1
            comparison.receive(ours, compared)
        for hash in comparison.fetch:
            ours.add(keys[hash])
        for hash in comparison.push:
            theirs.add(keys[hash])
        if not comparison.until:
            return traffic
        assert comparison.until > start
        start = comparison.until


@pytest.mark.slow
@given(st.data())
def test_the_sums_are_those_of_the_keys(data: st.DataObject) -> None:
    """Whatever was added and removed, each range has the count and the fingerprint that a new set of its keys has."""
    numbers = data.draw(st.lists(st.integers(0, 60)))
    elements = Elements([key(number) for number in numbers[::2]])
    for number in numbers:
        if number % 5:
            elements.add(key(number))
        else:
            elements.remove(hash_of(key(number)))
    start, until = sorted(data.draw(st.tuples(st.binary(max_size=12), st.binary(max_size=12))))
    start, until = (bytes(7) + b"\x03" + bound for bound in (start, until))

    expected = [one for one in elements if start <= one < until]

    assert list(elements) == sorted(elements)
    assert elements.keys(start, until) == expected
    assert elements.count(start, until) == len(expected)
    if start < until:
        assert elements.fingerprint(start, until) == Elements(expected).fingerprint()


def test_blocks_are_cut_and_dropped() -> None:
    keys = [key(number) for number in range(3000)]
    elements = Elements()
    for one in keys:
        elements.add(one)

    assert list(elements) == sorted(keys)
    assert elements.fingerprint() == Elements(keys).fingerprint()
    for one in keys[:2900]:
        elements.remove(hash_of(one))
    assert list(elements) == sorted(keys[2900:])
    assert elements.fingerprint() == Elements(keys[2900:]).fingerprint()
    assert elements.keys(limit=7) == sorted(keys[2900:])[:7]


def test_a_split_covers_all_and_shares_it_out() -> None:
    elements = Elements(key(number) for number in range(1000))

    parts = elements.split(b"", b"", WAYS)

    assert parts[0][0] == parts[-1][1] == b""
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    assert {elements.count(*part) for part in parts} <= {62, 63}
    assert max(len(bound) for bound, _ in parts) <= 12


@settings(deadline=None)
@given(
    st.sets(st.integers(0, 400)),
    st.sets(st.integers(0, 400)),
    st.sets(st.integers(0, 400)),
    st.sampled_from([1, 4, 90]),
)
def test_both_sides_end_with_all(shared: set[int], ours: set[int], theirs: set[int], epochs: int) -> None:
    one = Elements(key(number, epochs) for number in shared | ours)
    other = Elements(key(number, epochs) for number in shared | theirs)

    sync(one, other)

    assert list(one) == list(other) == sorted(key(number, epochs) for number in shared | ours | theirs)
    assert sync(one, other).round_trips == 1


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), [(0, 9000), (9000, 0), (6000, 9000)])
def test_large_differences_come_in_pages(ours: int, theirs: int) -> None:
    one = Elements(key(number) for number in range(ours))
    other = Elements(key(number) for number in range(9000 - theirs, 9000))
    lacking = 9000 - min(ours, theirs)

    traffic = sync(one, other)

    assert list(one) == list(other)
    assert len(one) == 9000
    assert traffic.passes >= lacking // (PAGE + 1)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 12])
def test_the_cost_follows_the_difference(epochs: int) -> None:
    """10,000 records that differ by 10: 5 new ones on each side, scattered over all."""
    keys = [key(number, epochs) for number in range(10_000)]
    ours, theirs = Elements(keys[:-5]), Elements([*keys[:-10], *keys[-5:]])

    traffic = sync(ours, theirs)

    assert list(ours) == list(theirs) == sorted(keys)
    # 10 receipts of five signatures and five models weigh 30 kB: with them it stays under 100 kB.
    assert traffic.bytes < 60_000
    assert traffic.round_trips <= 3


@pytest.mark.slow
def test_round_trips_grow_with_the_logarithm() -> None:
    trips = []
    for count in (100, 1_600, 25_600):
        keys = [key(number, 1) for number in range(count)]
        trips.append(sync(Elements(keys), Elements(keys[1:])).round_trips)

    assert trips == sorted(trips)
    assert trips[-1] <= 4


def test_the_top_is_by_epoch() -> None:
    elements = Elements(key(number, 90) for number in range(4000))

    ranges = top(elements)

    assert len(ranges) == 16
    assert [int.from_bytes(one.start, "big") for one in ranges[1:]] == list(range(1075, 1090))
    assert sum(one.count for one in ranges) == 4000
    assert len(Compare(ranges=tuple(ranges)).encode()) < 1500


def test_a_few_are_listed_at_once() -> None:
    (only,) = top(Elements(key(number) for number in range(FEW)))

    assert (only.fingerprint, len(only.hashes)) == (b"", FEW)


def range_of(start: bytes, until: bytes) -> KeyRange:
    return KeyRange(start=start, until=until, count=0, fingerprint=b"")


@pytest.mark.parametrize(
    ("compared", "match"),
    [
        (Compared(ranges=(), have=(), want=(), until=bytes(1)), "looked at nothing"),
        (Compared(ranges=(range_of(b"", b"\xff"),), have=(), want=(), until=b""), "not asked about"),
    ],
)
def test_an_answer_to_something_else_is_a_fault(compared: Compared, match: str) -> None:
    elements = Elements(key(number) for number in range(100))
    comparison = Comparison(Compare(ranges=(range_of(b"\x01", b"\x02"),)))

    with pytest.raises(RemoteProtocolError, match=match):
        comparison.receive(elements, compared)


def test_an_answer_that_nobody_asked_for_is_a_fault() -> None:
    nothing = Compared(ranges=(), have=(), want=(), until=b"")
    comparison = Comparison.begin(Elements())
    comparison.receive(Elements(), nothing)
    assert comparison.request is None

    with pytest.raises(RemoteProtocolError, match="nobody asked"):
        comparison.receive(Elements(), nothing)


def test_a_listener_that_never_agrees_is_left() -> None:
    elements = Elements(key(number, 1) for number in range(5000))
    comparison = Comparison.begin(elements)

    never = Compared(
        ranges=(KeyRange(start=b"", until=b"\xff", count=7, fingerprint=bytes(16)),), have=(), want=(), until=b""
    )

    def insist() -> None:
        while comparison.request is not None:
            comparison.request = Compare(ranges=(KeyRange(start=b"", until=b"", count=7, fingerprint=bytes(16)),))
            comparison.receive(elements, never)

    with pytest.raises(RemoteProtocolError, match="not compared after"):
        insist()


def test_hashes_that_are_known_or_unknown_already_are_left_out() -> None:
    elements = Elements([key(1)])
    comparison = Comparison.begin(elements)

    comparison.receive(elements, Compared(ranges=(), have=(hash_of(key(1)),), want=(hash_of(key(2)),), until=b""))

    assert (comparison.fetch, comparison.push) == ([], [])
