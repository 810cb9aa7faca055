"""Weighted votes through all roles: what a querier asks for is what the committee computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finode.errors import CommitteeError, InputError
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from tests.fakes.federation import federation_of, toy_probabilities
from tests.node.test_query import LAYOUT

COUNTS = {1: (300, 20, 5), 2: (0, 200, 9), 3: (7, 0, 150)}


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


@pytest.mark.slow
@pytest.mark.trio
async def test_a_querier_weighs_the_owners(tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(3, 4))
    p = [toy_probabilities([model], x) for model in (1, 2, 3)]

    async with federation_of(tmp_path, LAYOUT) as (_, members):
        node = members["asker"].node

        async def ask(vote: str = "weighted", **changes: Any) -> QueryAnswer:
            return await node.query(QueryRequest(service="toy", inputs=x, vote=vote, **changes), _no_progress)

        answer = await ask(weights={"alpha": 3, members["beta"].models[0].version.hex()[:10]: 1, "*": 0})
        with pytest.raises(CommitteeError, match="no weight"):
            await ask(weights={"alpha": 3})
        for changes in ({}, {"vote": "soft", "weights": {"*": 1.0}}, {"weights": {"*": -1.0}}, {"copies": 2}):
            with pytest.raises(InputError, match=r"weight|copies"):
                await ask(**changes)
        with pytest.raises(CommitteeError, match="training counts of every model"):
            await ask("prior")

    assert np.abs(np.array(answer.probabilities) - (3 * p[0] + p[1]) / 4).max() < 0.002


@pytest.mark.slow
@pytest.mark.trio
async def test_an_augmented_vote_cuts_its_inputs_with_their_copies_into_sessions(tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(9, 4))
    p = np.stack([toy_probabilities([model], x) for model in (1, 2, 3)])
    layout = LAYOUT | {"asker": {"roles": ["querier"], "querier": {"max_batch": 18, "noise": 0.0, "deadline_s": 30}}}

    async with federation_of(tmp_path, layout) as (_, members):
        request = QueryRequest(service="toy", inputs=x, vote="augmented", copies=3, gamma=-1.0)
        calm = await members["asker"].node.query(request, _no_progress)

    # Copies without noise are their inputs: no model moves, and all weigh the same.
    assert np.abs(np.array(calm.probabilities) - p.mean(0)).max() < 0.002
    assert len(calm.labels) == 9


@pytest.mark.slow
@pytest.mark.trio
async def test_a_prior_vote_weighs_by_the_owners_counts(tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(5, 4))
    n = np.array([COUNTS[model] for model in (1, 2, 3)])[:, None] + 1
    p = np.stack([toy_probabilities([model], x) for model in (1, 2, 3)]) / n
    score = (n * p / p.sum(-1, keepdims=True)).sum(0) / n.sum(0)
    layout = {name: what | {"counts": COUNTS} for name, what in LAYOUT.items()}

    async with federation_of(tmp_path, layout) as (_, members):
        node = members["asker"].node
        answer = await node.query(QueryRequest(service="toy", inputs=x, vote="prior"), _no_progress)
        soft = await node.query(QueryRequest(service="toy", inputs=x), _no_progress)

    assert np.abs(np.array(answer.probabilities) - score / score.sum(-1, keepdims=True)).max() < 0.003
    assert np.abs(np.array(soft.probabilities) - toy_probabilities([1, 2, 3], x)).max() < 0.002
