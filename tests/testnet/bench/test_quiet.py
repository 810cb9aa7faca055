"""When a benchmark asks again: once the links carry no bundle any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from finode.testnet.bench.quiet import LONGEST_PAUSE_S, LONGEST_WAIT_S, LOOK_S, QUIET_BYTES, wait_until_quiet
from finode.testnet.emulation import Emulation

pytestmark = pytest.mark.trio


@dataclass
class Links:
    """Links on which a bundle flows until `until_s`, and heartbeats always."""

    until_s: float
    began: float = field(default_factory=trio.current_time)

    async def traffic(self) -> Mapping[tuple[str, str], int]:
        now = trio.current_time() - self.began
        return {("dealer", "party-1"): int(1e7 * min(now, self.until_s)), ("party-1", "party-2"): int(1000 * now)}


@pytest.mark.parametrize(("until_s", "dealing_s"), [(0.0, 0.0), (2.0, 0.0), (2.0, 1.0), (0.0, 100.0)])
async def test_it_waits_for_the_dealer_and_no_longer(
    until_s: float, dealing_s: float, autojump_clock: MockClock
) -> None:
    links = Links(until_s)

    await wait_until_quiet(cast(Emulation, links), dealing_s)

    waited = trio.current_time() - links.began
    pause = min(LONGEST_PAUSE_S, 1.5 * dealing_s)
    assert max(until_s, pause) <= waited <= max(until_s, pause) + 2 * LOOK_S
    assert LOOK_S * 1000 < QUIET_BYTES  # heartbeats are no bundle


async def test_it_gives_up_on_links_that_are_never_quiet(autojump_clock: MockClock) -> None:
    links = Links(1e9)

    await wait_until_quiet(cast(Emulation, links), 0.0)

    assert trio.current_time() - links.began == pytest.approx(LONGEST_WAIT_S)
