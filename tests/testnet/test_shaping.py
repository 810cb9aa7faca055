"""The arithmetic of a link: when bytes arrive, and how many may be under way. No clock and no sockets."""

from __future__ import annotations

import pytest

from finode.testnet.links import Link
from finode.testnet.shaping import FIRST_WINDOW, MAX_CHUNK, SEGMENT, STEP_S, WINDOW_LIMIT, Pipe, Window

LINK = Link(rtt_ms=40, mbit=200)  # 25 MB/s, 20 ms in each direction


def test_bytes_arrive_when_the_last_has_left_and_crossed() -> None:
    assert Pipe(LINK).carry(25_000, now=5.0) == pytest.approx(5.0 + 0.001 + 0.020)


def test_what_is_sent_together_leaves_one_after_the_other_and_all_share_the_rate() -> None:
    pipe = Pipe(LINK)

    arrivals = [pipe.carry(25_000, now=0.0) for _ in range(4)]

    assert arrivals == pytest.approx([0.021, 0.022, 0.023, 0.024])
    assert pipe.carried == 100_000


def test_a_pause_is_not_made_up_for() -> None:
    pipe = Pipe(LINK)
    pipe.carry(25_000, now=0.0)

    assert pipe.carry(25_000, now=1.0) == pytest.approx(1.021)


def test_a_link_may_change_between_two_sends() -> None:
    pipe = Pipe(LINK)
    pipe.link = Link(rtt_ms=100, mbit=8)

    assert pipe.carry(1_000, now=0.0) == pytest.approx(0.001 + 0.050)


@pytest.mark.parametrize(("mbit", "chunk"), [(1, SEGMENT), (200, 25_000), (1_000, 125_000), (10_000, MAX_CHUNK)])
def test_a_step_is_a_millisecond_of_the_rate_within_bounds(mbit: float, chunk: int) -> None:
    assert Pipe(Link(1, mbit)).chunk == chunk


def test_no_more_than_the_window_is_under_way_until_it_is_acknowledged() -> None:
    window = Window()
    window.sent(FIRST_WINDOW, now=0.0, round_trip_s=0.0)
    assert window.room(0.0) == 0
    assert window.room_at() is None

    window.arrived(FIRST_WINDOW, acknowledged_at=0.040)

    assert window.room_at() == 0.040
    window.hear(0.039)
    assert window.room(0.039) == 0
    window.hear(0.040)
    assert window.room(0.040) == 2 * FIRST_WINDOW


def test_a_window_doubles_with_each_round_trip_that_fills_it_up_to_its_limit() -> None:
    window = Window()
    sizes = []
    for turn in range(8):
        sizes.append(window.room(float(turn)))
        window.sent(sizes[-1], now=float(turn), round_trip_s=0.040)
        window.arrived(sizes[-1], acknowledged_at=turn + 0.040)
        window.hear(turn + 0.040)

    assert sizes == [min(FIRST_WINDOW << turn, WINDOW_LIMIT) for turn in range(8)]


def test_a_window_doubles_however_its_acknowledgements_come() -> None:
    window = Window()
    window.sent(FIRST_WINDOW, now=0.0, round_trip_s=0.0)
    for step in range(7):
        window.arrived(SEGMENT, acknowledged_at=0.040 + step / 1000)
        window.hear(0.040 + step / 1000)

    assert window.size == 2 * FIRST_WINDOW


def test_a_window_that_is_not_half_used_does_not_grow() -> None:
    window = Window()
    window.sent(FIRST_WINDOW // 4, now=0.0, round_trip_s=0.040)
    window.arrived(FIRST_WINDOW // 4, acknowledged_at=0.040)
    window.hear(0.040)

    assert window.size == FIRST_WINDOW


def test_a_window_is_not_sent_at_once_but_paced() -> None:
    window = Window()
    window.sent(FIRST_WINDOW // 2, now=1.0, round_trip_s=0.040)

    assert window.room(1.0) == 0
    again = window.room_at()
    assert again is not None
    assert again == pytest.approx(1.0 + 0.020 / 2 - STEP_S)
    assert window.room(again) == FIRST_WINDOW // 2


def test_on_a_short_link_nothing_is_paced() -> None:
    window = Window()
    window.sent(FIRST_WINDOW // 2, now=1.0, round_trip_s=0.0003)

    assert window.room(1.0) == FIRST_WINDOW // 2


def test_less_than_a_segment_of_room_is_none() -> None:
    window = Window()
    window.sent(FIRST_WINDOW - SEGMENT + 1, now=0.0, round_trip_s=0.0)

    assert window.room(0.0) == 0
