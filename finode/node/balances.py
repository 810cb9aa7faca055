"""The accounts of a running node: they follow its ledger, off the event loop.

`note` is told of every record that the ledger added, and only keeps it; `follow` first takes what the ledger held at
the start, page by page, and then what was noted, in the order in which it came. Each step runs in a thread under one
lock, since accounts are for one thread at a time, and no step takes long, so that a daemon can stop between two.

After each step the balances of all peers are kept here, so that `credit_of` answers without waiting: an owner asks
while it looks at terms. Until the whole ledger was read once it counts what was read so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final, TypeVar

import trio
from structlog.typing import FilteringBoundLogger

from finode.committee.organizations import organization_key
from finode.identity import PeerId
from finode.ledger.accounts import Accounts
from finode.ledger.records import Verified, VerifiedReceipt, VerifiedStatement
from finode.ledger.store import Added, Ledger

T = TypeVar("T")
PAGE: Final = 512
"""Records taken in one step: some 40 ms of a thread."""


class Balances:
    """The accounts that follow from a ledger. Run `follow` for as long as the node lives."""

    def __init__(self, ledger: Ledger, organization_of: Callable[[PeerId], str], log: FilteringBoundLogger) -> None:
        self._ledger = ledger
        self._organization_of = organization_of
        self._log = log
        self._accounts = Accounts()
        self._lock = trio.Lock()
        self._noted: list[Verified] = []
        self._wake = trio.Event()
        self._loaded = trio.Event()
        self._by_peer: Mapping[PeerId, int] = {}

    def note(self, added: Iterable[Added]) -> None:
        """Keep what the ledger added, for `follow` to take. To be called on the event loop, in the ledger's order."""
        self._noted += [one.record for one in added]
        self._wake.set()

    async def follow(self) -> None:
        """Take the ledger's records and then whatever is noted, for ever."""
        stored = self._ledger.records()
        while page := await trio.to_thread.run_sync(_page, stored):
            await self._take(page)
        self._loaded.set()
        self._log.info("balances", receipts=(await self.ask(Accounts.totals)).receipts)
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._take_noted()

    async def ask(self, question: Callable[[Accounts], T]) -> T:
        """Return the answer of a function of the accounts, in a thread; all that was added before is in them."""
        await self._loaded.wait()
        await self._take_noted()
        async with self._lock:
            return await trio.to_thread.run_sync(question, self._accounts)

    def credit_of(self, peer: PeerId) -> int:
        """Return the balance of a peer's organization, in micro-credits; of the peer alone if it has none."""
        key = organization_key(self._organization_of(peer))
        if not key:
            return self._by_peer.get(peer, 0)
        return sum(
            balance
            for other, balance in self._by_peer.items()
            if other == peer or organization_key(self._organization_of(other)) == key
        )

    async def _take_noted(self) -> None:
        while self._noted:
            async with self._lock:
                # Under one hold of the lock: else a later version could overtake an earlier one. What was put in is
                # forgotten only then: a question may be cancelled, and what it was about to put in must not be lost.
                page = self._noted[:PAGE]
                await self._put(page)
                del self._noted[: len(page)]

    async def _take(self, page: list[Verified]) -> None:
        async with self._lock:
            await self._put(page)

    async def _put(self, page: list[Verified]) -> None:
        self._by_peer = await trio.to_thread.run_sync(_put, self._accounts, page)


def _page(records: Iterable[Verified]) -> list[Verified]:
    return list(islice(records, PAGE))


def _put(accounts: Accounts, page: Iterable[Verified]) -> Mapping[PeerId, int]:
    for record in page:
        if isinstance(record, VerifiedReceipt):
            accounts.put_receipt(record)
        elif isinstance(record, VerifiedStatement):
            accounts.put_statement(record)
    return {peer: one.balance for peer, one in accounts.balances().items()}
