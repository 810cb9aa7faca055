"""Standing: lowered by faults, recovering with time, never under -100."""

from __future__ import annotations

import pytest

from finode.identity import Identity
from finode.net.standing import GRAYLIST, LOWEST, RECOVERY_PER_HOUR, PeerFault, Standing

PEER, OTHER = (Identity.generate().peer_id for _ in range(2))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_newcomer_stands_at_zero_and_faults_add_up() -> None:
    standing = Standing(Clock())
    assert standing.of(PEER) == 0
    assert standing.lower(PEER, PeerFault.BAD_RECORD.value) == -10
    assert standing.lower(PEER, PeerFault.FLOOD.value) == -30
    assert standing.of(PEER) == -30
    assert standing.of(OTHER) == 0


def test_there_is_a_lowest_standing() -> None:
    standing = Standing(Clock())
    assert standing.lower(PEER, 1e9) == LOWEST
    assert standing.graylisted(PEER)


def test_standing_comes_back_slowly_and_not_above_zero() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.lower(PEER, -GRAYLIST + 1)
    assert standing.graylisted(PEER)
    clock.now += 3600
    assert standing.of(PEER) == pytest.approx(GRAYLIST - 1 + RECOVERY_PER_HOUR)
    assert not standing.graylisted(PEER)
    standing.lower(PEER, 1)
    assert standing.of(PEER) == pytest.approx(GRAYLIST - 2 + RECOVERY_PER_HOUR)
    clock.now += 24 * 3600
    assert standing.of(PEER) == 0


@pytest.mark.parametrize("points", [-1.0, float("nan")])
def test_a_fault_gives_no_points(points: float) -> None:
    with pytest.raises(ValueError, match="costs points"):
        Standing(Clock()).lower(PEER, points)


def test_every_fault_costs_something() -> None:
    assert all(fault.value > 0 for fault in PeerFault)
    assert len(set(PeerFault)) == len(PeerFault.__members__)


def test_what_is_proven_does_not_come_back() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.condemn(PEER)
    clock.now += 1000 * 3600
    assert standing.of(PEER) == LOWEST
    assert standing.lower(PEER, 1) == LOWEST
    assert standing.graylisted(PEER)
    assert standing.of(OTHER) == 0
