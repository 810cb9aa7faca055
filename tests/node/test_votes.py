"""Weighted votes through all roles: what a querier asks for is what the committee computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finode.node.interface import QueryProgress, QueryRequest
from tests.fakes.federation import federation_of, toy_probabilities
from tests.node.test_query import LAYOUT


async def _no_progress(progress: QueryProgress) -> None:
    return None


@pytest.mark.slow
@pytest.mark.trio
async def test_a_querier_chooses_the_vote(tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(5, 4))
    p = np.stack([toy_probabilities([model], x) for model in (1, 2, 3)])
    weights = np.exp((p * np.log(p)).sum(-1, keepdims=True))
    expected = {"soft": p.mean(0), "entropy": (weights * p).sum(0) / weights.sum(0)}

    async with federation_of(tmp_path, LAYOUT) as (_, members):
        node = members["asker"].node
        answers = {
            vote: await node.query(QueryRequest(service="toy", inputs=x, vote=vote), _no_progress)
            for vote in ("soft", "entropy", "spectral")
        }

    for vote, real in expected.items():
        assert answers[vote].probabilities is not None
        assert np.abs(np.array(answers[vote].probabilities) - real).max() < 0.002
    assert answers["spectral"].probabilities is not None
    assert np.abs(np.array(answers["spectral"].probabilities).sum(1) - 1).max() < 0.001
    # Another vote is other terms, so another committee.
    assert len({answer.committee.id for answer in answers.values()}) == 3
