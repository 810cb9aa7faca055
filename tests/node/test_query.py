"""A query through all roles: negotiation, deployment, dealing, rounds, answer; on memory links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from finode.errors import CommitteeError, InputError, PeerRefused, TooFewParties, UnknownService
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from tests.fakes.federation import federation_of, toy_probabilities

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner", "party"], "models": [1]},
    "beta": {"roles": ["owner", "party"], "models": [2]},
    "gamma": {"roles": ["owner", "party", "dealer"], "models": [3]},
    "delta": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}


async def _no_progress(progress: QueryProgress) -> None:
    return None


def _inputs(batch: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(7).normal(size=(batch, 4))


@pytest.mark.trio
@pytest.mark.parametrize("parties", [2, 3])
async def test_a_query_gives_the_soft_vote_of_all_models(tmp_path: Path, parties: int) -> None:
    x = _inputs(5)
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        seen: list[QueryProgress] = []

        async def on_progress(progress: QueryProgress) -> None:
            seen.append(progress)

        answer = await members["asker"].node.query(QueryRequest(service="toy", inputs=x, parties=parties), on_progress)

    assert answer.committee.left_out == ()
    assert len(answer.committee.owners) == 3
    expected = toy_probabilities([1, 2, 3], x)
    assert answer.probabilities is not None
    assert np.abs(np.array(answer.probabilities) - expected).max() < 0.002
    assert answer.label_indices == tuple(expected.argmax(axis=1))
    assert len(answer.committee.parties) == parties
    assert answer.committee.dealer not in answer.committee.parties
    assert answer.traffic.rounds > 0
    assert all(sent > 0 for sent in answer.traffic.bytes_sent_per_party)
    assert answer.traffic.offline_bytes > 0
    assert [progress.phase for progress in seen[:3]] == ["committee", "deployment", "preprocessing"]
    assert answer.attempts == 1


@pytest.mark.trio
async def test_a_second_query_reuses_committee_and_deployments(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        node = members["asker"].node
        first = await node.query(QueryRequest(service="toy", inputs=_inputs(2)), _no_progress)
        before = [len(member.pool.worker.requests) for member in members.values()]
        second = await node.query(QueryRequest(service="toy", inputs=_inputs(3)), _no_progress)
        kinds = {
            request["kind"]
            for member, count in zip(members.values(), before, strict=True)
            for request in member.pool.worker.requests[count:]
        }

    assert second.committee.id == first.committee.id
    assert "open" not in kinds
    assert "run" in kinds


@pytest.mark.trio
async def test_queries_at_the_same_time_share_one_committee(tmp_path: Path) -> None:
    answers: list[QueryAnswer] = []
    async with federation_of(tmp_path, LAYOUT) as (_, members):

        async def ask(batch: int) -> None:
            request = QueryRequest(service="toy", inputs=_inputs(batch))
            answers.append(await members["asker"].node.query(request, _no_progress))

        async with trio.open_nursery() as nursery:
            for batch in (1, 2, 3):
                nursery.start_soon(ask, batch)

    assert len({answer.committee.id for answer in answers}) == 1
    for answer in answers:
        expected = toy_probabilities([1, 2, 3], _inputs(len(answer.labels)))
        assert np.abs(np.array(answer.probabilities) - expected).max() < 0.002


@pytest.mark.trio
@pytest.mark.parametrize("reveal", ["top1", "label"])
async def test_less_is_revealed_when_less_is_asked(tmp_path: Path, reveal: str) -> None:
    x = _inputs(4)
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        answer = await members["asker"].node.query(QueryRequest(service="toy", inputs=x, reveal=reveal), _no_progress)

    expected = toy_probabilities([1, 2, 3], x)
    assert answer.probabilities is None
    assert answer.label_indices == tuple(expected.argmax(axis=1))
    if reveal == "label":
        assert answer.top is None
    else:
        assert answer.top is not None
        assert np.abs(np.array(answer.top) - expected.max(axis=1)).max() < 0.002


@pytest.mark.trio
async def test_an_owner_that_refuses_is_left_out_and_named(tmp_path: Path) -> None:
    layout = LAYOUT | {"beta": LAYOUT["beta"] | {"owner": {"allow_queriers": ("alpha",)}}}
    x = _inputs(3)
    async with federation_of(tmp_path, layout) as (_, members):
        answer = await members["asker"].node.query(QueryRequest(service="toy", inputs=x), _no_progress)
        owners = set(answer.committee.owners)
        assert owners == {members["alpha"].peer, members["gamma"].peer}
        (missing,) = answer.committee.left_out
        assert (missing.owner, missing.version) == (members["beta"].peer, members["beta"].models[0].version.hex())
        assert missing.reason.startswith("refused (querier-not-allowed")
        assert answer.committee.organizations[missing.owner] == "beta"
        again = await members["asker"].node.query(QueryRequest(service="toy", inputs=x), _no_progress)
        assert (again.committee.id, again.committee.left_out) == (answer.committee.id, (missing,))

    assert answer.probabilities is not None
    assert np.abs(np.array(answer.probabilities) - toy_probabilities([1, 3], x)).max() < 0.002


@pytest.mark.trio
async def test_owners_that_all_refuse_are_named_with_their_rule(tmp_path: Path) -> None:
    rule = {"owner": {"reveal_at_most": "label"}}
    layout = {name: what | (rule if "models" in what else {}) for name, what in LAYOUT.items()}
    async with federation_of(tmp_path, layout) as (_, members):
        with pytest.raises((CommitteeError, PeerRefused)) as caught:
            await members["asker"].node.query(QueryRequest(service="toy", inputs=_inputs(1)), _no_progress)
        assert "reveals-too-much" in str(caught.value)
        answer = await members["asker"].node.query(
            QueryRequest(service="toy", inputs=_inputs(1), reveal="label"), _no_progress
        )
    assert len(answer.labels) == 1


@pytest.mark.trio
async def test_what_cannot_be_asked_is_said_clearly(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        node = members["asker"].node
        with pytest.raises(UnknownService, match="unheard"):
            await node.query(QueryRequest(service="unheard", inputs=_inputs(1)), _no_progress)
        with pytest.raises(InputError, match=r"shape \(4,\), got \(5,\)"):
            await node.query(QueryRequest(service="toy", inputs=np.zeros((1, 5))), _no_progress)
        with pytest.raises(InputError, match="NaN"):
            await node.query(QueryRequest(service="toy", inputs=np.full((1, 4), np.nan)), _no_progress)
        with pytest.raises(TooFewParties):
            await node.query(QueryRequest(service="toy", inputs=_inputs(1), parties=5), _no_progress)
        with pytest.raises(PeerRefused, match="role of a querier"):
            await members["alpha"].node.query(QueryRequest(service="toy", inputs=_inputs(1)), _no_progress)
