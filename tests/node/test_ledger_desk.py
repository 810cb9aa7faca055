"""A node's answers follow its ledger: receipts, exports, balances, and what an owner knows of a querier's credit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from finode.daemon.receipts import verify_file
from finode.errors import InputError, UnknownRecord
from finode.identity import PeerId
from finode.ledger.envelopes import Record, verify
from finode.ledger.store import Ledger
from finode.node.balances import PAGE, Balances
from finode.node.ledger_desk import LedgerDesk
from tests.fakes.records import (
    DEALER_KEY,
    ORGANIZATIONS,
    PARTY_KEYS,
    QUERIER_KEY,
    deployment,
    proof,
    receipt,
    signed_receipt,
    statement,
)

FIRST, SECOND = receipt(1), receipt(2, epochs_later=1)
STATEMENT = statement([FIRST.session], epoch=FIRST.epoch, samples=32)


def organization_of(peer: PeerId) -> str:
    return ORGANIZATIONS.get(peer, "")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def add(ledger: Ledger, *records: Record, to: Balances | None = None) -> None:
    added = ledger.add_all([verify(record) for record in records])
    if to is not None:
        to.note(added)


@asynccontextmanager
async def serving(ledger: Ledger) -> AsyncIterator[tuple[Balances, LedgerDesk]]:
    balances = Balances(ledger, organization_of, structlog.get_logger())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(balances.follow)
        yield balances, LedgerDesk(ledger, balances, organization_of)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_what_was_there_at_the_start_and_what_comes_later_counts_once(ledger: Ledger) -> None:
    add(ledger, signed_receipt(FIRST), deployment(0))
    async with serving(ledger) as (balances, desk):
        before = await desk.rewards(None)
        assert (before.receipts, before.paid_in, before.pending, before.statements) == (1, 32_000, 22_400, 0)

        add(ledger, STATEMENT, signed_receipt(SECOND, PARTY_KEYS), to=balances)
        add(ledger, signed_receipt(SECOND, (DEALER_KEY, *PARTY_KEYS)), signed_receipt(FIRST), to=balances)

        after = await desk.rewards(None)
        assert (after.receipts, after.paid_in, after.pending, after.statements) == (2, 64_000, 22_400, 1)
        assert (await desk.rewards(FIRST.epoch)).statements == 1
        assert (await desk.rewards(SECOND.epoch)).statements == 0
        assert (await desk.explain("Clinic South", None)).balance == -64_000

    async with serving(ledger) as (_, again):
        assert await again.rewards(None) == after


@pytest.mark.trio
async def test_receipts_say_what_is_settled_and_whose_deployment_is_here(ledger: Ledger) -> None:
    add(ledger, signed_receipt(FIRST), signed_receipt(SECOND), deployment(0))
    async with serving(ledger) as (balances, desk):
        latest, first = await desk.receipts(None, 10)
        assert (latest.id, first.id) == (SECOND.id.hex(), FIRST.id.hex())
        assert [view.id for view in await desk.receipts(FIRST.epoch, 10)] == [first.id]
        assert len(await desk.receipts(None, 1)) == 1
        assert [model.signed for model in first.models] == [True, False]
        assert not first.settled

        add(ledger, STATEMENT, deployment(1), to=balances)

        first = await desk.receipt(FIRST.session.hex()[:10])
        assert first.settled
        assert all(model.signed for model in first.models)
        assert not (await desk.receipt(SECOND.id.hex())).settled
        with pytest.raises(UnknownRecord):
            await desk.receipt("00" * 32)
        with pytest.raises(InputError):
            await desk.receipt("no digits")


@pytest.mark.trio
async def test_an_export_verifies_and_is_the_same_wherever_the_records_are(tmp_path: Path) -> None:
    records: Sequence[Record] = (
        deployment(0),
        signed_receipt(FIRST),
        deployment(1),
        STATEMENT,
        signed_receipt(SECOND),
        proof(FIRST, receipt(1, count=31)),
        deployment(2),
    )
    exports = []
    for number, order in enumerate((records, records[::-1])):
        ledger = Ledger.open(tmp_path / f"{number}.sqlite")
        for record in order:
            add(ledger, record)
        async with serving(ledger) as (_, desk):
            exports.append((await desk.export_receipts(None), await desk.export_receipts(SECOND.epoch)))
            with pytest.raises(InputError, match=f"no records of epoch {SECOND.epoch + 1}"):
                await desk.export_receipts(SECOND.epoch + 1)
        ledger.close()
    assert exports[0] == exports[1]

    reports = []
    for data in exports[0]:
        (tmp_path / "export").write_bytes(data)
        reports.append(verify_file(tmp_path / "export"))

    whole, epoch = reports
    assert (whole.records, whole.receipts, whole.deployments, whole.statements, whole.proofs) == (7, 2, 3, 1, 1)
    assert (epoch.records, epoch.receipts, epoch.deployments, epoch.statements, epoch.proofs) == (4, 1, 2, 0, 1)
    assert whole.problems == epoch.problems == ()
    assert (epoch.unsigned_models, epoch.epochs) == (0, (SECOND.epoch,))


@pytest.mark.trio
async def test_credit_is_the_organizations(ledger: Ledger) -> None:
    add(ledger, signed_receipt(FIRST), STATEMENT)
    async with serving(ledger) as (balances, desk):
        lines = {line.organization: line.balance for line in (await desk.rewards(None)).balances}

        assert balances.credit_of(QUERIER_KEY.peer_id) == lines["Clinic South"] == -32_000
        assert balances.credit_of(PARTY_KEYS[0].peer_id) == lines["Clinic East"] > 3_200
        assert balances.credit_of(PeerId("12D3KooWStranger")) == 0

        add(ledger, signed_receipt(SECOND), to=balances)
        await desk.rewards(None)
        assert balances.credit_of(QUERIER_KEY.peer_id) == -64_000


@pytest.mark.slow
@pytest.mark.trio
async def test_a_ledger_of_several_pages_is_read_whole(ledger: Ledger) -> None:
    count = PAGE + 40
    add(ledger, *(signed_receipt(receipt(number, count=1)) for number in range(count)))
    async with serving(ledger) as (_, desk):
        view = await desk.rewards(None)

    assert (view.receipts, view.paid_in) == (count, 1000 * count)
