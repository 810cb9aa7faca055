"""What a whole session opens, from the query to the feedback, is uniform jointly: no two gates of any model, of the
vote, of the statistics or of the feedback share a mask."""

from __future__ import annotations

import numpy as np
import pytest

from finode.smpc.labels import share_labels
from finode.smpc.native import NativeEngine
from finode.smpc.simulation import exchange
from tests.smpc import models
from tests.smpc.joint import SITES, leaks, recorded
from tests.smpc.models import PlanMaker
from tests.smpc.parties import committee_of


def tiny(seed: int) -> PlanMaker:
    maker = PlanMaker((2,), seed)
    maker.linear(2)
    maker.relu()
    maker.linear(2)
    return maker


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_no_mask_serves_two_gates_of_a_session(level: float) -> None:
    makers = [tiny(0), tiny(1)]
    program = models.program_of(makers, batch=SITES, statistics=True)
    committee = committee_of(program, makers, np.full((SITES, 2), level))

    with recorded() as seen:
        answer = exchange([committee.run(i) for i in range(2)])
        rest = exchange(answer.rests)
        shares = share_labels([1] * SITES, program.classes, 2)
        exchange(
            [
                NativeEngine().feedback(program, i, rest.values[i].ballots, shares[i], own["zero_keys"], count=SITES)
                for i, own in enumerate(committee.arguments)
            ]
        )

    assert sum(opening.bits for opening in seen) == answer.costs[0].bits + rest.costs[0].bits + SITES * 2
    # Only the two sums of entropy weights are opened (to be truncated) without an axis of inputs.
    of_sites = [opening for opening in seen if SITES in opening.values.shape]
    assert [opening.values.numel() for opening in seen if opening not in of_sites] == [2]
    assert leaks(of_sites, most=5) == []
