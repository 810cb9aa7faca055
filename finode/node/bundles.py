"""Bundles on their way from a dealer into a session: in memory only, used once.

A bundle belongs to one session of one committee, and so to one dealer: no other's can take its place. The bundle and
the querier's input may come in either order; whichever is first waits for the other, up to a deadline. The serial of
a bundle that was offered once is remembered: a second offer of it is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from finode.errors import PeerTimeout, RemoteProtocolError
from finode.identity import PeerId

REMEMBERED_SERIALS = 65_536
"""Far more than a dealer makes while a committee lives; a new committee means new session ids anyway."""
MAX_OF_ONE_DEALER = 32
"""Bundles of one dealer that are on their way or wait for a session; more than a node's sessions is misuse."""


@dataclass(frozen=True, slots=True)
class BundleKey:
    """Which session of which committee a bundle is for, and of how many inputs."""

    dealer: PeerId
    committee: bytes
    session: bytes
    batch: int


@dataclass(frozen=True, slots=True)
class PartyBundle:
    """One party's bundle of one run: its seed, and the corrections if it is the last party."""

    seed: bytes = field(repr=False)
    corrections: bytearray = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.seed) + len(self.corrections)


class BundleShelf:
    """Bundles that wait for their sessions."""

    def __init__(self) -> None:
        self._waiting: dict[BundleKey, PartyBundle] = {}
        self._held: dict[PeerId, int] = {}
        self._serials: OrderedDict[tuple[PeerId, bytes], None] = OrderedDict()
        self._changed = trio.Event()

    @contextmanager
    def claim(self, key: BundleKey, serial: bytes) -> Iterator[None]:
        """Burn a serial before the bundle is read, and hold the dealer's place until the bundle is taken or burned.

        Raises `RemoteProtocolError` when the serial came before, or when the dealer sends more than sessions could use.
        """
        if (key.dealer, serial) in self._serials:
            raise RemoteProtocolError("the dealer offered the same bundle a second time", peer=key.dealer)
        if self._held.get(key.dealer, 0) >= MAX_OF_ONE_DEALER:
            raise RemoteProtocolError("the dealer sends bundles that nobody asked for", peer=key.dealer)
        self._serials[key.dealer, serial] = None
        while len(self._serials) > REMEMBERED_SERIALS:
            self._serials.popitem(last=False)
        self._held[key.dealer] = self._held.get(key.dealer, 0) + 1
        try:
            yield
        finally:
            self._waiting.pop(key, None)
            self._held[key.dealer] -= 1
            if not self._held[key.dealer]:
                del self._held[key.dealer]

    def put(self, key: BundleKey, bundle: PartyBundle) -> None:
        """Lay a bundle out for its session; raise `RemoteProtocolError` when the session has one."""
        if key in self._waiting:
            raise RemoteProtocolError("the dealer sent a second bundle for one session", peer=key.dealer)
        self._waiting[key] = bundle
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def take(self, key: BundleKey, timeout_s: float) -> PartyBundle:
        """Take the session's bundle off the shelf; raise `PeerTimeout` naming the dealer."""
        with trio.move_on_after(timeout_s):
            while key not in self._waiting:
                await self._changed.wait()
        if key not in self._waiting:
            raise PeerTimeout(f"the dealer {key.dealer} sent no bundle within {timeout_s:.0f} s", peer=key.dealer)
        bundle = self._waiting.pop(key)
        self._wake()
        return bundle

    def burn(self, key: BundleKey) -> None:
        """Burn the bundle of a session that ended without it."""
        if self._waiting.pop(key, None) is not None:
            self._wake()

    async def keep(self, key: BundleKey, timeout_s: float) -> None:
        """Return when the session's bundle was taken or burned, or at the deadline."""
        with trio.move_on_after(timeout_s):
            while key in self._waiting:
                await self._changed.wait()
