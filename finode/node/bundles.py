"""Bundles between the dealer and a session, at a party: kept in its worker's memory only, used once.

A bundle belongs to one committee and so to one dealer: no other's can take its place. The dealer's bundle and the
querier's session may come in either order: whichever is first waits for the other, up to a deadline. A bundle that was
dealt ahead waits until its committee ends, its dealer is lost, or its worker dies; then it is burned. The serial of a
bundle that was offered once is remembered: a second offer of it is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from finode.errors import FinodeError, PeerRefused, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.node.pool import WorkerProcess
from finode.wire.committee import RefusalReason

REMEMBERED_SERIALS = 65_536
"""Far more than a dealer makes while a committee lives; a new committee means new serials anyway."""
MAX_OF_ONE_DEALER = 32
"""Bundles of one dealer that are on their way or wait for sessions which asked for them; more than a node's sessions
is misuse. Those dealt ahead have limits of their own."""


@dataclass(slots=True, eq=False)
class PartyBundle:
    """One party's bundle of one run, which lies in `worker` under its `name`."""

    dealer: PeerId
    serial: bytes
    committee: bytes
    batch: int
    ahead: bool
    size: int
    """Bytes that the dealer sends."""
    worker: WorkerProcess = field(repr=False)
    memory_bytes: int = 0
    """What it takes in the worker, once `BundleShelf.admit` has let it in."""
    ended: trio.Event = field(default_factory=trio.Event, repr=False)
    """Set when it was used up or burned."""

    @property
    def name(self) -> bytes:
        """Unique at this party, whatever serials its dealers choose."""
        return self.dealer.encode() + self.serial


class BundleShelf:
    """A party's bundles by (dealer, serial), within the limits for those that nobody asked for yet."""

    def __init__(self, ahead_per_committee: int, ahead_bytes: int) -> None:
        self._ahead_per_committee = ahead_per_committee
        self._ahead_bytes = ahead_bytes
        self._held: dict[tuple[PeerId, bytes], PartyBundle] = {}
        self._waiting: dict[tuple[PeerId, bytes], PartyBundle] = {}
        self._serials: OrderedDict[tuple[PeerId, bytes], FinodeError | None] = OrderedDict()
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def claim(self, bundle: PartyBundle) -> Iterator[None]:
        """Burn a serial before the bundle is read, and hold the dealer's place until it is taken or the body ends.

        What no session took by then is burned. Raises `RemoteProtocolError` when the serial came before, or when the
        dealer sends more than sessions could ask for, and `PeerRefused` (BUSY) for one more ahead than are kept.
        """
        key = (bundle.dealer, bundle.serial)
        if key in self._serials:
            raise RemoteProtocolError("the dealer offered the same bundle a second time", peer=bundle.dealer)
        alike = [held for held in self._held.values() if held.ahead == bundle.ahead]
        if not bundle.ahead:
            if sum(held.dealer == bundle.dealer for held in alike) >= MAX_OF_ONE_DEALER:
                raise RemoteProtocolError("the dealer sends bundles that nobody asked for", peer=bundle.dealer)
        elif sum(held.committee == bundle.committee for held in alike) >= self._ahead_per_committee:
            raise _full(f"{self._ahead_per_committee} bundles dealt ahead are all that this party keeps of a committee")
        self._serials[key] = None
        while len(self._serials) > REMEMBERED_SERIALS:
            self._serials.popitem(last=False)
        self._held[key] = bundle
        try:
            yield
        finally:
            self.burn(bundle)
            self._release(bundle)

    def admit(self, bundle: PartyBundle, memory_bytes: int) -> None:
        """Say what a claimed bundle will take; raise `PeerRefused` (BUSY) for one ahead that there is no room for."""
        if bundle.ahead:
            taken = sum(held.memory_bytes for held in self._held.values() if held.ahead)
            if taken + memory_bytes > self._ahead_bytes:
                raise _full("bundles dealt ahead take all the memory that this party gives them")
        bundle.memory_bytes = memory_bytes

    def put(self, bundle: PartyBundle) -> None:
        """Lay a claimed bundle out for its session."""
        self._waiting[bundle.dealer, bundle.serial] = bundle
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def take(self, dealer: PeerId, serial: bytes, committee: bytes, batch: int, timeout_s: float) -> PartyBundle:
        """Take a bundle off the shelf for its one session.

        Raises what it was lost by if that was this node's doing, `PeerTimeout` naming the dealer when it does not come,
        `RemoteProtocolError` when it is another
        committee's or for another number of inputs: it is burned then.
        """
        key = (dealer, serial)
        with trio.move_on_after(timeout_s):
            while key not in self._waiting and self._serials.get(key) is None:
                await self._changed.wait()
        bundle = self._waiting.pop(key, None)
        if bundle is None:
            if (why := self._serials.get(key)) is not None:
                raise why
            raise PeerTimeout(f"the dealer {dealer} sent no bundle within {timeout_s:.0f} s", peer=dealer)
        self._release(bundle)
        if bundle.committee != committee or bundle.batch != batch:
            bundle.ended.set()
            raise RemoteProtocolError("the bundle is of another committee or batch than its session", peer=dealer)
        return bundle

    def burn(self, bundle: PartyBundle, why: FinodeError | None = None) -> bool:
        """Burn a bundle that no session took; False if one did. A session that names it is told `why` at once."""
        if self._waiting.get((bundle.dealer, bundle.serial)) is not bundle:
            return False
        del self._waiting[bundle.dealer, bundle.serial]
        bundle.ended.set()
        if why is not None:
            self._serials[bundle.dealer, bundle.serial] = why
            self._wake()
        return True

    def burn_of(self, dealer: PeerId, serial: bytes, committee: bytes) -> None:
        """Burn the bundle that a session of this committee named and ended without."""
        bundle = self._waiting.get((dealer, serial))
        if bundle is not None and bundle.committee == committee:
            self.burn(bundle)

    def burn_committee(self, committee: bytes) -> int:
        """Burn all bundles of a committee that no session took; return how many."""
        kept = [bundle for bundle in self._waiting.values() if bundle.committee == committee]
        return sum(self.burn(bundle) for bundle in kept)

    def _release(self, bundle: PartyBundle) -> None:
        if self._held.get((bundle.dealer, bundle.serial)) is bundle:
            del self._held[bundle.dealer, bundle.serial]


def _full(message: str) -> PeerRefused:
    return PeerRefused(message, reason=RefusalReason.BUSY.value, hint="raise [party] pool_bundles or pool_memory_mb")
