"""What a node answers of its ledger: receipts, exports, balances and why they are what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import trio

from finode.errors import InputError
from finode.identity import PeerId
from finode.ledger.accounts import Accounts
from finode.ledger.elements import hash_of, key_of
from finode.ledger.envelopes import envelope, place_of
from finode.ledger.export import write_entries
from finode.ledger.records import Verified, VerifiedReceipt, VerifiedStatement
from finode.ledger.store import Ledger
from finode.node.balances import Balances
from finode.node.interface import ExplanationView, ReceiptView, RewardsView
from finode.node.ledger_views import explanation_view, receipt_view, rewards_view
from finode.wire.receipts import ModelUse
from finode.wire.reconciliation import Envelope, RecordKind

_PAGE: Final = 256
"""Records read at once for an export."""


class LedgerDesk:
    """Implements the ledger's part of `NodeService` on a ledger and the balances that follow it."""

    def __init__(self, ledger: Ledger, balances: Balances, organization_of: Callable[[PeerId], str]) -> None:
        self._ledger = ledger
        self._balances = balances
        self._organization_of = organization_of

    async def receipts(self, epoch: int | None, limit: int) -> tuple[ReceiptView, ...]:
        """Return the latest receipts of an epoch, or of all."""
        found = await trio.to_thread.run_sync(self._ledger.receipts, epoch, limit)
        return await self._balances.ask(partial(self._views, found))

    async def receipt(self, id: str) -> ReceiptView:
        """Return the one receipt whose id or session begins with `id`."""
        found = await trio.to_thread.run_sync(self._ledger.receipt, id)
        (view,) = await self._balances.ask(partial(self._views, (found,)))
        return view

    async def export_receipts(self, epoch: int | None) -> bytes:
        """Return the ledger, or what belongs to one epoch, as a file: equal bytes on nodes that have the same.

        Raises `InputError` for an epoch of which there is nothing.
        """

        def file() -> bytes:
            if epoch is not None and next(iter(self._ledger.records(epoch)), None) is None:
                raise InputError(
                    f"the ledger has no records of epoch {epoch}", hint="`finode receipts show ID` says which it is of"
                )
            return b"".join(write_entries(exported(self._ledger, epoch)))

        return await trio.to_thread.run_sync(file)

    async def rewards(self, epoch: int | None) -> RewardsView:
        """Return the balances of all organizations."""

        def view(accounts: Accounts) -> RewardsView:
            statements = self._ledger.counts()[RecordKind.STATEMENT]
            if epoch is not None:
                statements = sum(one.statement.epoch == epoch for one in self._ledger.statements())
            return rewards_view(accounts, epoch, statements=statements, organization_of=self._organization_of)

        return await self._balances.ask(view)

    async def explain(self, organization: str, epoch: int | None) -> ExplanationView:
        """Return why an organization has its balance."""

        def view(accounts: Accounts) -> ExplanationView:
            return explanation_view(accounts, organization, epoch, organization_of=self._organization_of)

        return await self._balances.ask(view)

    def _views(self, found: tuple[VerifiedReceipt, ...], accounts: Accounts) -> tuple[ReceiptView, ...]:
        # Most receipts of a listing are of a few committees, and so of the same deployments.
        models = {model for one in found for model in one.receipt.models}
        deployed = {model: self._is_deployed(model) for model in models}
        return tuple(
            receipt_view(
                one,
                organization_of=self._organization_of,
                is_deployed=deployed.__getitem__,
                settled=accounts.settled(one.id),
            )
            for one in found
        )

    def _is_deployed(self, model: ModelUse) -> bool:
        found = self._ledger.deployment(model.deployment)
        return found is not None and (found.deployment.version, found.deployment.owner) == (model.version, model.owner)


def exported(ledger: Ledger, epoch: int | None) -> Iterator[Envelope]:
    """Yield the records of an export in the order of their keys: all, or those of an epoch with the deployments that
    its receipts name, and all proofs."""
    with ledger.elements() as elements:
        keys = list(elements)
    if epoch is not None:
        chosen = {key_of(place_of(one), envelope(one.signed).hash()) for one in _of_epoch(ledger, epoch)}
        keys = [key for key in keys if key in chosen]
    for at in range(0, len(keys), _PAGE):
        yield from (one for one in ledger.envelopes([hash_of(key) for key in keys[at : at + _PAGE]]) if one)


def _of_epoch(ledger: Ledger, epoch: int) -> Iterator[Verified]:
    used: set[bytes] = set()
    for one in ledger.records(epoch):
        if isinstance(one, VerifiedReceipt):
            used |= {model.deployment for model in one.receipt.models}
        if isinstance(one, VerifiedReceipt | VerifiedStatement):
            yield one
    for id in used:
        if (deployment := ledger.deployment(id)) is not None:
            yield deployment
    yield from ledger.proofs()
