"""Bundles between the dealer and a session, at a party: kept in its worker's memory only, used once.

A bundle belongs to one committee and so to one dealer: no other's can take its place. The dealer's bundle and the
querier's session may come in either order: whichever is first waits for the other, up to a deadline. A bundle that was
dealt ahead waits until its committee ends, its dealer is lost, or its worker dies; then it is burned.

Serials are remembered: a second offer of one is the dealer's fault, a second session that names one the querier's. Both
are refused at once, and so is a session whose bundle was burned, which is nobody's fault.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

import trio

from finode.errors import FinodeError, PeerRefused, PeerTimeout, RemoteProtocolError, WorkerDied
from finode.identity import PeerId
from finode.node.pool import WorkerProcess
from finode.wire.committee import RefusalReason

REMEMBERED_SERIALS = 65_536
"""Of offers, in all: far more than a dealer makes while a committee lives; a new committee means new serials anyway. Of
those that sessions named, for each committee that is open here: one that has named so many is used up."""
MAX_OF_ONE_DEALER = 32
"""Bundles of one dealer that are on their way or wait for sessions which asked for them; more than a node's sessions
is misuse. Those dealt ahead have limits of their own."""


class Fate(Enum):
    """Why a bundle that came is not here any more."""

    USED = auto()
    BURNED = auto()
    WORKER_DIED = auto()


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
        self._serials: OrderedDict[tuple[PeerId, bytes], Fate | None] = OrderedDict()
        self._named: dict[bytes, set[bytes]] = {}
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
        self._remember(key, None)
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

    @contextmanager
    def naming(self, dealer: PeerId, serial: bytes, committee: bytes, querier: PeerId) -> Iterator[None]:
        """Give a serial to the session that names it first; when the body ends, burn what it has not taken.

        Raises `RemoteProtocolError` naming the querier when a session named it before, whatever came of that one, and
        `PeerRefused` (QUOTA_USED) when the committee's sessions named more than are remembered.
        """
        named = self._named.setdefault(committee, set())
        if serial in named:
            raise RemoteProtocolError("the querier named the same bundle for a second session", peer=querier)
        if len(named) >= REMEMBERED_SERIALS:
            detail = f"{REMEMBERED_SERIALS} bundles are all that this party counts for one committee"
            raise PeerRefused(detail, reason=RefusalReason.QUOTA_USED.value, hint="agree on a new committee")
        named.add(serial)
        try:
            yield
        finally:
            bundle = self._waiting.get((dealer, serial))
            if bundle is not None and bundle.committee == committee:
                self.burn(bundle)

    async def take(
        self, dealer: PeerId, serial: bytes, committee: bytes, batch: int, querier: PeerId, timeout_s: float
    ) -> PartyBundle:
        """Take a bundle off the shelf for its one session, which is `naming` it for `querier`.

        Raises `PeerTimeout` naming the dealer when it does not come; at once, when it came and is gone,
        `RemoteProtocolError` naming the querier if it was used, `PeerRefused` (NOT_SEALED) if it was burned, and
        `WorkerDied` if it was lost with its worker; `RemoteProtocolError` when it is another committee's or for another
        number of inputs: it is burned then.
        """
        key = (dealer, serial)
        with trio.move_on_after(timeout_s):
            while key not in self._waiting and self._serials.get(key) is None:
                await self._changed.wait()
        bundle = self._waiting.pop(key, None)
        if bundle is None:
            if (fate := self._serials.get(key)) is not None:
                raise _gone(fate, querier)
            raise PeerTimeout(f"the dealer {dealer} sent no bundle within {timeout_s:.0f} s", peer=dealer)
        self._release(bundle)
        self._end(bundle, Fate.USED)
        if bundle.committee != committee or bundle.batch != batch:
            bundle.ended.set()
            raise RemoteProtocolError("the bundle is of another committee or batch than its session", peer=dealer)
        return bundle

    def burn(self, bundle: PartyBundle, fate: Fate = Fate.BURNED) -> bool:
        """Burn a bundle that no session took; False if one did. A session that names it later is told at once."""
        key = (bundle.dealer, bundle.serial)
        if self._waiting.get(key) is not bundle:
            return False
        del self._waiting[key]
        bundle.ended.set()
        self._end(bundle, fate)
        return True

    def burn_committee(self, committee: bytes) -> int:
        """Burn all bundles of a committee that is over and that no session took; return how many."""
        self._named.pop(committee, None)
        kept = [bundle for bundle in self._waiting.values() if bundle.committee == committee]
        return sum(self.burn(bundle) for bundle in kept)

    def _end(self, bundle: PartyBundle, fate: Fate) -> None:
        """Remember what became of a bundle, and tell the sessions that wait for it."""
        self._remember((bundle.dealer, bundle.serial), fate)
        self._wake()

    def _remember(self, key: tuple[PeerId, bytes], fate: Fate | None) -> None:
        self._serials[key] = fate
        while len(self._serials) > REMEMBERED_SERIALS:
            self._serials.popitem(last=False)

    def _release(self, bundle: PartyBundle) -> None:
        if self._held.get((bundle.dealer, bundle.serial)) is bundle:
            del self._held[bundle.dealer, bundle.serial]


def _gone(fate: Fate, querier: PeerId) -> FinodeError:
    match fate:
        case Fate.USED:
            return RemoteProtocolError("the querier named a bundle that another session took", peer=querier)
        case Fate.WORKER_DIED:
            return WorkerDied("the worker process that kept a bundle ended")
        case Fate.BURNED:
            detail = "the bundle was burned before its session took it"
            return PeerRefused(detail, reason=RefusalReason.NOT_SEALED.value, hint="agree on a new committee")


def _full(message: str) -> PeerRefused:
    return PeerRefused(message, reason=RefusalReason.BUSY.value, hint="raise [party] pool_bundles or pool_memory_mb")
