"""What the emulated links carry during a benchmark: how much, and when they are quiet again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import trio

from finode.config import Role
from finode.testnet.emulation import Emulation
from finode.testnet.network import Network

Traffic = Mapping[tuple[str, str], int]
"""Bytes from one node to another since the start."""

LONGEST_PAUSE_S: Final = 5.0
LONGEST_WAIT_S: Final = 60.0
LOOK_S: Final = 0.3
QUIET_BYTES: Final = 40_000
"""What heartbeats, records and gossip of a few nodes come to in `LOOK_S`, and no bundle does."""


async def wait_until_quiet(emulation: Emulation, dealing_s: float) -> None:
    """Wait as long as dealing took, since it may compute before it sends, and then until the links are quiet."""
    await trio.sleep(min(LONGEST_PAUSE_S, 1.5 * dealing_s))
    with trio.move_on_after(LONGEST_WAIT_S):
        before = sum((await emulation.traffic()).values())
        while True:
            await trio.sleep(LOOK_S)
            after = sum((await emulation.traffic()).values())
            if after - before < QUIET_BYTES:
                return
            before = after


def busiest(network: Network, before: Traffic, after: Traffic) -> int:
    """Return the most that one party sent to one other between two counts."""
    parties = [node.name for node in network.with_role(Role.PARTY)]
    return max(after[one, other] - before[one, other] for one in parties for other in parties if one != other)
