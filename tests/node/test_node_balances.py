"""Whole nodes and the ledger: equal balances everywhere, and owners that give no more credit than was agreed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from finode.errors import PeerRefused, SessionAborted
from finode.node.interface import QueryProgress, QueryRequest, RewardsView
from tests.fakes.federation import Member, federation_of
from tests.fakes.records import ORGANIZATIONS, QUERIER_KEY, receipt, signed_receipt, statement

LIMIT = 2_000_000
FEDERATION = {"credit_limit": LIMIT}
LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner", "party"], "models": [1], "federation": FEDERATION},
    "beta": {"roles": ["party"], "federation": FEDERATION},
    "gamma": {"roles": ["dealer"], "federation": FEDERATION},
    "asker": {"roles": ["querier"], "federation": FEDERATION},
}


def know_the_records_members(members: dict[str, Member], querier_is: str = "Clinic South") -> None:
    """Put the members of the test records on every node's roster."""
    for member in members.values():
        member.network._organizations.update(ORGANIZATIONS | {QUERIER_KEY.peer_id: querier_is})


async def agreed(members: dict[str, Member], receipts: int, statements: int = 0) -> RewardsView:
    """Return the balances when all nodes have the same ones, from so many records."""
    with trio.fail_after(5):
        while True:
            view, *others = [await member.node.rewards() for member in members.values()]
            if all(other == view for other in others) and (view.receipts, view.statements) == (receipts, statements):
                return view
            await trio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.trio
async def test_what_one_node_files_counts_alike_on_all(tmp_path: Path) -> None:
    bodies = [receipt(number) for number in range(3)]
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        know_the_records_members(members)
        await members["alpha"].node.keeper.file(signed_receipt(bodies[0]))
        await members["beta"].node.keeper.file(signed_receipt(bodies[1]))
        await members["gamma"].node.keeper.file(signed_receipt(bodies[2]))

        view = await agreed(members, 3)
        assert (view.paid_in, view.pending) == (96_000, 3 * 22_400)

        sums = statement([body.session for body in bodies], epoch=bodies[0].epoch, samples=96)
        await members["asker"].node.keeper.file(sums)
        view = await agreed(members, 3, statements=1)
        assert (view.paid_in, view.paid_out, view.pending) == (96_000, 96_000, 0)
        exports = {await member.node.export_receipts() for member in members.values()}
        assert len(exports) == 1
        why = await members["beta"].node.explain("Clinic North")
        assert why.balance == next(line.balance for line in view.balances if line.organization == "Clinic North") > 0
        assert (await members["asker"].node.receipts())[0].settled
        assert (await members["asker"].node.receipt(bodies[1].session.hex())).id == bodies[1].id.hex()


async def _no_progress(_: QueryProgress) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.trio
@pytest.mark.parametrize(("count", "trusted"), [(1700, True), (1800, False)])
async def test_owners_refuse_a_querier_whose_organization_owes_too_much(
    tmp_path: Path, count: int, trusted: bool
) -> None:
    request = QueryRequest(service="toy", inputs=np.ones((1, 4)))
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        # The debt is that of another node of its organization. A committee may cost it 256 inputs more.
        know_the_records_members(members, querier_is="asker")
        await members["gamma"].node.keeper.file(signed_receipt(receipt(count=count)))
        await agreed(members, 1)
        asker = members["asker"].node

        if trusted:
            assert (await asker.query(request, _no_progress)).labels
            return
        with pytest.raises(PeerRefused, match="its balance is -1800000 micro-credits") as caught:
            await asker.query(request, _no_progress)
        assert caught.value.reason == "no-credit"


@pytest.mark.trio
async def test_open_committees_count_against_the_credit_as_well(tmp_path: Path) -> None:
    request = QueryRequest(service="toy", inputs=np.ones((1, 4)))
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        know_the_records_members(members, querier_is="asker")
        await members["gamma"].node.keeper.file(signed_receipt(receipt(count=1500)))
        await agreed(members, 1)
        asker = members["asker"].node

        assert (await asker.query(request, _no_progress)).labels
        with pytest.raises(PeerRefused) as caught:
            await asker.query(replace(request, vote="hard"), _no_progress)  # another committee
        assert caught.value.reason == "no-credit"


@pytest.mark.trio
async def test_a_query_that_ends_in_the_middle_says_what_was_answered_and_is_charged(tmp_path: Path) -> None:
    small = {**LAYOUT, "asker": {**LAYOUT["asker"], "querier": {"max_batch": 2, "quota": 2}}}
    async with federation_of(tmp_path, small) as (_, members):
        know_the_records_members(members, querier_is="asker")
        await members["gamma"].node.keeper.file(signed_receipt(receipt(count=LIMIT // 1000 - 3)))
        await agreed(members, 1)

        with pytest.raises(SessionAborted, match=r"2 of 4 inputs were answered, and are charged; then: .*no-credit"):
            await members["asker"].node.query(QueryRequest(service="toy", inputs=np.ones((4, 4))), _no_progress)
