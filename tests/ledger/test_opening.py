"""When sums may be opened, and what opened sums cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finode.identity import Identity
from finode.ledger.opening import Part, contradiction_in, largest_opening, may_open
from finode.wire.committee import Vote
from finode.wire.receipts import EpochStatement, ModelUse, StatementKind

ONE, TWO, THREE = (Identity.from_seed(bytes([index] * 32)).peer_id for index in range(3))
MEMBERS = tuple(Identity.from_seed(bytes([index] * 32)).peer_id for index in range(10, 13))
STATEMENT = EpochStatement(
    federation="test",
    kind=StatementKind.AGREEMENT,
    epoch=1,
    models=tuple(ModelUse(version=bytes([k] * 32), owner=ONE, deployment=bytes([k] * 32)) for k in range(2)),
    parties=MEMBERS[:2],
    dealer=MEMBERS[2],
    vote=Vote.SOFT,
    classes=2,
    sessions=(bytes(16), bytes([1] * 16)),
    samples=10,
    sigma_milli=0,
    joint=(4, 1, 2, 3),
    counts=(5, 5, 6, 4),
    agreement=(5 << 16, 4 << 16),
    entropy=(6 << 16, 4 << 16),
)


def parts(*given: tuple[str, int]) -> list[Part]:
    """Return one part for each (querier, count)."""
    return [
        Part(session=index.to_bytes(16, "big"), querier=querier, count=count, ended_ms=index)  # type: ignore[arg-type]
        for index, (querier, count) in enumerate(given)
    ]


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ([(ONE, 50)], False),
        ([(ONE, 49)], False),
        ([(ONE, 25), (ONE, 24)], False),
        ([(ONE, 25), (ONE, 25)], True),
        ([(ONE, 25), (TWO, 25)], True),
        ([(ONE, 26), (TWO, 25)], False),
        ([(ONE, 20), (TWO, 20), (THREE, 10)], True),
        ([(ONE, 40), (TWO, 20), (THREE, 10)], False),
    ],
)
def test_what_may_be_opened(given: list[tuple[str, int]], allowed: bool) -> None:
    assert may_open(parts(*given), 50) is allowed


def test_a_querier_that_asked_most_is_cut_back_to_the_others() -> None:
    chosen = largest_opening(parts((ONE, 30), (ONE, 30), (TWO, 20), (THREE, 15), (ONE, 5)), 50)

    assert [part.count for part in chosen] == [30, 20, 15, 5]
    assert may_open(chosen, 50)


def test_where_the_rest_is_too_little_everything_waits() -> None:
    assert largest_opening(parts((ONE, 100), (TWO, 10)), 50) == ()
    assert largest_opening(parts((ONE, 60)), 50) == ()
    assert largest_opening([], 50) == ()


@given(st.lists(st.tuples(st.sampled_from([ONE, TWO, THREE]), st.integers(1, 64)), max_size=30), st.integers(1, 200))
def test_whatever_is_chosen_may_be_opened(given: list[tuple[str, int]], least: int) -> None:
    chosen = largest_opening(parts(*given), least)

    assert not chosen or may_open(chosen, least)
    assert len({part.session for part in chosen}) == len(chosen)


def test_a_true_statement_has_no_contradiction() -> None:
    assert contradiction_in(STATEMENT) == ""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"counts": (5, 6, 6, 4)}, "once on each input"),
        ({"counts": (-1, 11, 6, 4)}, "negative or larger"),
        ({"joint": (5, 0, 2, 3)}, "joint votes of models 0 and 1"),
        ({"joint": (4, 1, 1, 4)}, "joint votes of models 0 and 1"),
        ({"agreement": (11 << 16, 0)}, "agreement"),
        ({"entropy": (6 << 16, 6 << 16)}, "entropy"),
        ({"entropy": (-1 << 16, 6 << 16)}, "entropy"),
    ],
)
def test_sums_that_cannot_be(change: dict[str, tuple[int, ...]], found: str) -> None:
    assert found in contradiction_in(replace(STATEMENT, **change))  # type: ignore[arg-type]


def test_correct_counts_that_cannot_be() -> None:
    nothing: dict[str, tuple[int, ...]] = {"joint": (), "counts": (), "agreement": (), "entropy": ()}
    labels = replace(STATEMENT, kind=StatementKind.LABELS, correct=(10, 0), **nothing)  # type: ignore[arg-type]

    assert contradiction_in(labels) == ""
    assert "larger" in contradiction_in(replace(labels, correct=(11, 0)))


def test_with_noise_nothing_is_certain() -> None:
    assert contradiction_in(replace(STATEMENT, sigma_milli=2000, counts=(5, 9, 6, 4))) == ""
