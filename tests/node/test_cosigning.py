"""From the end of a session to its co-signed receipt, on memory links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finode.ledger.records import VerifiedReceipt
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from finode.wire.receipts import Outcome
from tests.fakes.federation import Member, federation_of, until

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1]},
    "beta": {"roles": ["owner"], "models": [2]},
    "p1": {"roles": ["party"]},
    "p2": {"roles": ["party"]},
    "p3": {"roles": ["party"]},
    "d1": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}


async def _silent(progress: QueryProgress) -> None:
    return None


async def _ask(members: dict[str, Member], count: int = 3, **wanted: Any) -> QueryAnswer:
    x = np.random.default_rng(3).normal(size=(count, 4))
    return await members["asker"].node.query(QueryRequest(service="toy", inputs=x, **wanted), _silent)


def _of(members: dict[str, Member], peer: str) -> Member:
    return next(member for member in members.values() if member.peer == peer)


async def _receipt(member: Member, session: str, signers: int) -> VerifiedReceipt:
    """Return the receipt of a session at a member, once it has so many signatures."""
    await until(lambda: any(len(one.signers) == signers for one in member.filing.of(session)))
    (receipt,) = member.filing.of(session)
    return receipt


@pytest.mark.trio
@pytest.mark.parametrize("parties", [2, 3])
async def test_all_members_sign_what_was_answered(tmp_path: Path, parties: int) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        answer = await _ask(members, parties=parties)
        everywhere = (*answer.committee.parties, answer.committee.dealer, members["asker"].peer)
        found = [await _receipt(_of(members, peer), answer.session, parties + 2) for peer in everywhere]

        receipt = found[0].receipt
        assert {one.id for one in found} == {receipt.id}
        assert not found[0].withheld
        assert receipt.outcome is Outcome.ANSWERED
        assert receipt.count == 3  # of a batch of 4
        assert {work.rounds for work in receipt.work[:-1]} == {answer.traffic.rounds}
        assert tuple(work.bytes_sent for work in receipt.work[:-1]) == answer.traffic.bytes_sent_per_party
        assert receipt.work[-1].bundle_bytes == sum(work.bundle_bytes for work in receipt.work[:-1])
        assert receipt.work[-1].bundle_bytes == answer.traffic.offline_bytes
        deployments = {model.deployment: model.owner for model in receipt.models}
        for peer in (*answer.committee.parties, answer.committee.dealer, *deployments.values()):
            kept = _of(members, peer).filing.deployments
            assert kept
            assert {one: kept[one].deployment.owner for one in kept}.items() <= deployments.items()
