"""Bundles on their way from the dealer into a session: in memory only, used once.

The dealer's bundle and the querier's input may come in either order. Whichever is first waits for the other, up to a
deadline. The serial of a bundle that was offered once is remembered: a second offer of it is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from finode.errors import PeerTimeout, RemoteProtocolError
from finode.identity import PeerId

REMEMBERED_SERIALS = 65_536
"""Far more than a dealer makes while a committee lives; a new committee means new session ids anyway."""
MAX_WAITING = 32
"""Bundles kept for sessions that have not begun here."""


@dataclass(frozen=True, slots=True)
class PartyBundle:
    """One party's bundle of one run: its seed, and the corrections if it is the last party."""

    seed: bytes = field(repr=False)
    corrections: bytearray = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.seed) + len(self.corrections)


class BundleShelf:
    """Bundles by session id."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, PartyBundle] = {}
        self._serials: OrderedDict[tuple[PeerId, bytes], None] = OrderedDict()
        self._changed = trio.Event()

    def claim(self, dealer: PeerId, serial: bytes) -> None:
        """Burn a serial before the bundle is read; raise `RemoteProtocolError` when it came before."""
        if (dealer, serial) in self._serials:
            raise RemoteProtocolError("the dealer offered the same bundle a second time", peer=dealer)
        if len(self._waiting) >= MAX_WAITING:
            raise RemoteProtocolError("the dealer sends bundles that nobody asked for", peer=dealer)
        self._serials[dealer, serial] = None
        while len(self._serials) > REMEMBERED_SERIALS:
            self._serials.popitem(last=False)

    def put(self, dealer: PeerId, session: bytes, bundle: PartyBundle) -> None:
        """Lay a bundle out for its session; raise `RemoteProtocolError` when the session has one."""
        if session in self._waiting:
            raise RemoteProtocolError("the dealer sent a second bundle for one session", peer=dealer)
        self._waiting[session] = bundle
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def take(self, dealer: PeerId, session: bytes, timeout_s: float) -> PartyBundle:
        """Take the session's bundle off the shelf; raise `PeerTimeout` naming the dealer."""
        with trio.move_on_after(timeout_s):
            while session not in self._waiting:
                await self._changed.wait()
        if session not in self._waiting:
            raise PeerTimeout(f"the dealer {dealer} sent no bundle within {timeout_s:.0f} s", peer=dealer)
        bundle = self._waiting.pop(session)
        self._wake()
        return bundle

    async def keep(self, session: bytes, timeout_s: float) -> None:
        """Return when the session's bundle was taken; burn it when nobody does before the deadline."""
        with trio.move_on_after(timeout_s):
            while session in self._waiting:
                await self._changed.wait()
        self._waiting.pop(session, None)
