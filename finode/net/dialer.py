"""Dialing: all addresses of a peer, each under a deadline, and again later with growing pauses.

libp2p's own `connect` tries one address, takes 250 ms at least, and after a failure refuses the peer for a minute.
Here a second address is tried beside the first when that has not answered after `STAGGER_S`; the first connection that
proves to be the peer's wins.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID

from finode.errors import PeerUnreachable
from finode.identity import PeerId
from finode.net.addresses import AddressBook, parse
from finode.net.groups import only
from finode.net.hardening import close_quietly

STAGGER_S = 0.3
"""Head start of an address over the next one."""
FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 30.0
"""Pauses between attempts to reach a peer double from the first to the last."""
YIELD_S = 0.7
"""When two nodes learn of each other at the same time, the one with the larger peer id waits so long before it dials,
so that there is one connection and not two."""


class Dialer:
    """Opens connections."""

    def __init__(self, swarm: Any, book: AddressBook, *, dial_timeout_s: float) -> None:
        self._swarm = swarm
        self._book = book
        self._timeout_s = dial_timeout_s

    async def dial(self, peer: PeerId) -> SwarmConn:
        """Return a new connection to the peer; raise `PeerUnreachable` that lists what was tried."""
        addresses = self._book.of(peer)
        if not addresses:
            raise PeerUnreachable(
                f"no address of {peer} is known", peer=peer, hint="is it running, and connected to a bootstrap peer?"
            )
        won: list[SwarmConn] = []
        failures: dict[str, str] = {}
        failed = [trio.Event() for _ in addresses]

        async def attempt(index: int, address: str) -> None:
            if index:
                with trio.move_on_after(STAGGER_S * index):
                    await failed[index - 1].wait()
            try:
                connection = await self._attempt(peer, address)
            except (BaseLibp2pError, OSError, trio.TooSlowError) as error:
                failures[address] = _reason(error)
                failed[index].set()
                return
            if won:
                with trio.CancelScope(shield=True):
                    await close_quietly(connection)
                return
            won.append(connection)
            self._book.worked(peer, address)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for index, address in enumerate(addresses):
                nursery.start_soon(attempt, index, address)
        if not won:
            tried = "; ".join(f"{address}: {reason}" for address, reason in failures.items())
            raise PeerUnreachable(f"{peer} cannot be reached at any address ({tried})", peer=peer)
        return won[0]

    async def _attempt(self, peer: PeerId, address: str) -> SwarmConn:
        parsed = parse(address)
        if parsed is None:
            raise OSError(f"{address} is not an address")
        with trio.fail_after(self._timeout_s):
            return await self._swarm.dial_addr(parsed, ID.from_base58(peer))


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no answer"
    inner = only(error)
    while inner.__cause__ is not None:
        inner = only(inner.__cause__)
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner) or type(inner).__name__


@dataclass(slots=True)
class _Plan:
    pause_s: float
    due: float


class Backoff:
    """When to dial which peer again. `clock` gives seconds that never go back."""

    def __init__(self, own: PeerId, clock: Callable[[], float] = trio.current_time) -> None:
        self._own = own
        self._clock = clock
        self._plans: dict[PeerId, _Plan] = {}

    def is_due(self, peer: PeerId) -> bool:
        """Whether the peer may be dialed now. One seen for the first time may have to wait for it to dial us."""
        plan = self._plans.get(peer)
        if plan is None:
            wait = YIELD_S if self._own > peer else 0.0
            plan = self._plans[peer] = _Plan(FIRST_PAUSE_S, self._clock() + wait)
        return self._clock() >= plan.due

    def hurry(self, peer: PeerId) -> None:
        """Dial the peer at once: a person configured it, or it said a new address."""
        self._plans[peer] = _Plan(FIRST_PAUSE_S, self._clock())

    def failed(self, peer: PeerId) -> float:
        """Plan the next attempt after a failure, and return the pause until then."""
        plan = self._plans.setdefault(peer, _Plan(FIRST_PAUSE_S, 0.0))
        # Jitter, so that nodes which lost each other do not try in step for ever.
        pause = plan.pause_s * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        plan.due = self._clock() + pause
        plan.pause_s = min(2 * plan.pause_s, LAST_PAUSE_S)
        return pause

    def reached(self, peer: PeerId) -> None:
        """The peer was reached: begin with short pauses when it is lost."""
        self._plans[peer] = _Plan(FIRST_PAUSE_S, self._clock() + FIRST_PAUSE_S)

    def forget(self, peer: PeerId) -> None:
        self._plans.pop(peer, None)
