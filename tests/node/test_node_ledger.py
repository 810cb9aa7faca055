"""Whole nodes keep a ledger: in their home, across restarts, and with what it proves about a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finode.errors import CommitteeError
from finode.identity import Identity
from finode.net.standing import LOWEST
from finode.node.interface import QueryProgress, QueryRequest
from finode.wire.receipts import Equivocation, Receipt, Work
from tests.fakes.federation import federation_of, until
from tests.ledger.making import proof_of, receipt_of

pytestmark = [pytest.mark.trio, pytest.mark.slow]
LAYOUT: dict[str, dict[str, Any]] = {
    "owner": {"roles": ["owner"], "models": [1]},
    "east": {"roles": ["party"]},
    "west": {"roles": ["party"]},
    "dealer": {"roles": ["dealer"]},
    "asks": {"roles": ["querier"]},
}
REQUEST = QueryRequest(service="toy", inputs=np.zeros((1, 4)), deadline_s=5.0)


async def ignore(progress: QueryProgress) -> None:
    """A query's caller that shows no progress."""


def contradiction_of(cheat: Identity) -> Equivocation:
    """Return the proof that a dealer signed two receipts of one session."""
    parties = receipt_of().work[:2]
    dealt = Work(peer=cheat.peer_id, rounds=0, bytes_sent=0, bundle_bytes=1, milliseconds=1)
    one, other = (
        receipt_of(federation="finode", dealer=cheat.peer_id, count=count, work=(*parties, dealt)) for count in (2, 3)
    )
    return proof_of(cheat, one.encode(), other.encode(), Receipt)


async def test_a_condemned_member_is_chosen_no_more(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        await members["asks"].node.query(REQUEST, ignore)
        cheat = members["dealer"].identity

        await members["east"].node.keeper.file(contradiction_of(cheat))

        await until(lambda: all(m.node.keeper.ledger.condemned() == {cheat.peer_id} for m in members.values()))
        honest = [member for name, member in members.items() if name != "dealer"]
        await until(lambda: all(member.network.standing(cheat.peer_id) == LOWEST for member in honest))
        with pytest.raises(CommitteeError):
            await members["asks"].node.query(REQUEST, ignore)
    assert all((tmp_path / name / "ledger.sqlite").exists() for name in LAYOUT)
