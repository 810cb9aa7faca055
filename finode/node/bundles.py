"""Bundles between the dealer and a session, at a party: kept in its worker's memory only, used once.

The dealer's bundle and the querier's session may come in either order: whichever is first waits for the other, up to a
deadline. A bundle that was dealt ahead waits until its committee ends, its dealer is lost, or its worker dies; then it
is burned. The serial of a bundle that was offered once is remembered: a second offer of it is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from finode.errors import PeerRefused, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.node.pool import WorkerProcess
from finode.wire.committee import RefusalReason

REMEMBERED_SERIALS = 65_536
"""Far more than a dealer makes while a committee lives; a new committee means new serials anyway."""
MAX_ASKED = 32
"""Bundles kept for sessions that have not begun here, beside those dealt ahead."""


@dataclass(slots=True, eq=False)
class PartyBundle:
    """One party's bundle of one run, which lies in `worker` under its `name`."""

    dealer: PeerId
    serial: bytes
    committee: bytes
    batch: int
    ahead: bool
    size: int
    """Bytes that the dealer sent."""
    memory_bytes: int
    worker: WorkerProcess
    ended: trio.Event = field(default_factory=trio.Event)
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
        self._waiting: dict[tuple[PeerId, bytes], PartyBundle] = {}
        self._serials: OrderedDict[tuple[PeerId, bytes], None] = OrderedDict()
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def claim(self, dealer: PeerId, serial: bytes) -> None:
        """Burn a serial before the bundle is read; raise `RemoteProtocolError` when it came before."""
        if (dealer, serial) in self._serials:
            raise RemoteProtocolError("the dealer offered the same bundle a second time", peer=dealer)
        self._serials[dealer, serial] = None
        while len(self._serials) > REMEMBERED_SERIALS:
            self._serials.popitem(last=False)

    def admit(self, committee: bytes, ahead: bool, memory_bytes: int) -> None:
        """Raise `PeerRefused` (BUSY) when there is no room for one more bundle."""
        kept = [bundle for bundle in self._waiting.values() if bundle.ahead == ahead]
        if not ahead:
            if len(kept) >= MAX_ASKED:
                raise _full(f"{len(kept)} bundles wait here for sessions that do not begin")
        elif sum(bundle.committee == committee for bundle in kept) >= self._ahead_per_committee:
            raise _full(f"{self._ahead_per_committee} bundles dealt ahead are all that this party keeps of a committee")
        elif sum(bundle.memory_bytes for bundle in kept) + memory_bytes > self._ahead_bytes:
            raise _full("bundles dealt ahead take all the memory that this party gives them")

    def put(self, bundle: PartyBundle) -> None:
        """Lay a bundle out for its session."""
        self._waiting[bundle.dealer, bundle.serial] = bundle
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def take(self, dealer: PeerId, serial: bytes, committee: bytes, batch: int, timeout_s: float) -> PartyBundle:
        """Take a bundle off the shelf for its one session.

        Raises `PeerTimeout` naming the dealer when it does not come, `RemoteProtocolError` when it is another
        committee's or for another number of inputs: it is burned then.
        """
        key = (dealer, serial)
        with trio.move_on_after(timeout_s):
            while key not in self._waiting:
                await self._changed.wait()
        bundle = self._waiting.pop(key, None)
        if bundle is None:
            raise PeerTimeout(f"the dealer {dealer} sent no bundle within {timeout_s:.0f} s", peer=dealer)
        if bundle.committee != committee or bundle.batch != batch:
            bundle.ended.set()
            raise RemoteProtocolError("the session names a bundle of another committee or batch")
        return bundle

    def burn(self, bundle: PartyBundle) -> bool:
        """Burn a bundle that no session took; False if one did."""
        if self._waiting.get((bundle.dealer, bundle.serial)) is not bundle:
            return False
        del self._waiting[bundle.dealer, bundle.serial]
        bundle.ended.set()
        return True

    def burn_committee(self, committee: bytes) -> int:
        """Burn all bundles of a committee that no session took; return how many."""
        kept = [bundle for bundle in self._waiting.values() if bundle.committee == committee]
        return sum(self.burn(bundle) for bundle in kept)


def _full(message: str) -> PeerRefused:
    return PeerRefused(message, reason=RefusalReason.BUSY.value, hint="raise [party] pool_bundles or pool_memory_mb")
