"""From queries to an epoch statement and to counted labels, through whole nodes on memory links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from finode.errors import InputError, PeerRefused
from finode.ledger.records import VerifiedReceipt, VerifiedStatement
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from finode.wire.receipts import Outcome, StatementKind
from tests.fakes.federation import SERVICE, Member, federation_of, toy_plan, toy_weights, until

FAST = {"epoch_s": 1, "min_queries": 6}
LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1], "federation": FAST},
    "beta": {"roles": ["owner"], "models": [2], "federation": FAST},
    "p1": {"roles": ["party"], "federation": FAST},
    "p2": {"roles": ["party"], "federation": FAST},
    "d1": {"roles": ["dealer"], "federation": FAST},
    "asker": {"roles": ["querier"], "federation": FAST},
}
INPUTS = np.random.default_rng(3).normal(size=(7, 4))


async def _silent(progress: QueryProgress) -> None:
    return None


async def _ask(members: dict[str, Member], x: np.ndarray[Any, Any]) -> QueryAnswer:
    return await members["asker"].node.query(QueryRequest(service="toy", inputs=x), _silent)


def _labels_of(seed: int, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    weights = toy_weights(toy_plan(), seed)
    hidden = np.maximum(x @ weights["w1"].T + weights["b1"], 0)
    return np.asarray((hidden @ weights["w2"].T + weights["b2"]).argmax(axis=1))


def _seeds(members: dict[str, Member], statement: VerifiedStatement) -> list[int]:
    """Return whose models stand in a statement, as the seeds of their weights."""
    owners = {members["alpha"].peer: 1, members["beta"].peer: 2}
    return [owners[model.owner] for model in statement.statement.models]


async def _statements(members: dict[str, Member], kind: StatementKind) -> list[VerifiedStatement]:
    def found() -> list[VerifiedStatement]:
        filed = [one for member in members.values() for one in member.filing.statements]
        return [one for one in filed if one.statement.kind is kind]

    await until(lambda: bool(found()), within_s=20.0)
    return found()


@pytest.mark.slow
@pytest.mark.trio
async def test_the_votes_of_an_epoch_are_opened_as_sums_only(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        first = await _ask(members, INPUTS[:3])  # of a batch of 4: padding counts for nothing
        second = await _ask(members, INPUTS[3:])

        (verified,) = await _statements(members, StatementKind.AGREEMENT)

        statement = verified.statement
        assert statement.samples == 7
        assert {session.hex() for session in statement.sessions} == {first.session, second.session}
        votes = [_labels_of(seed, INPUTS) for seed in _seeds(members, verified)]
        joint = np.zeros((3, 3), dtype=int)
        np.add.at(joint, (votes[0], votes[1]), 1)
        assert statement.joint == tuple(joint.reshape(-1))
        assert statement.counts == tuple(np.concatenate([np.bincount(vote, minlength=3) for vote in votes]))
        assert abs(sum(statement.entropy) - (7 << 16)) < 100


@pytest.mark.slow
@pytest.mark.trio
async def test_labels_are_counted_without_being_seen(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        answers = [await _ask(members, INPUTS[:3]), await _ask(members, INPUTS[3:])]
        truth = np.array([0, 1, 2, 0, 1, 2, 0])
        asker = members["asker"].node

        with pytest.raises(InputError, match="2 labels for 3 inputs"):
            await asker.feedback(answers[0].session, (0, 1))
        with pytest.raises(InputError, match="the classes are 0 to 2"):
            await asker.feedback(answers[0].session, (0, 1, 3))
        with pytest.raises(InputError, match="none of the sessions"):
            await asker.feedback("00", (0, 1, 2))
        view = await asker.feedback(answers[0].session, tuple(int(label) for label in truth[:3]))
        assert (view.count, view.labelled) == (3, 3)
        await asker.feedback(answers[1].session[:20], (-1, *(int(label) for label in truth[4:])))
        with pytest.raises(PeerRefused, match="does not keep the votes"):
            await asker.feedback(answers[0].session, (0, 0, 0))

        (verified,) = await _statements(members, StatementKind.LABELS)

        labelled = np.array([True, True, True, False, True, True, True])
        expected = [int((_labels_of(seed, INPUTS) == truth)[labelled].sum()) for seed in _seeds(members, verified)]
        assert list(verified.statement.correct) == expected
        assert verified.statement.samples == 6
        assert len(SERVICE.classes) == verified.statement.classes


@pytest.mark.slow
@pytest.mark.trio
async def test_what_fails_after_an_answer_costs_nobody_the_next(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        worker = members["p2"].pool.worker
        handle = worker.request

        async def request(header: dict[str, Any], *rest: Any, **options: Any) -> Any:
            if header["kind"] == "rest":
                await trio.lowlevel.checkpoint()
                raise InputError("no statistics today")
            return await handle(header, *rest, **options)

        worker.request = request  # type: ignore[method-assign]
        first, second = await _ask(members, INPUTS[:3]), await _ask(members, INPUTS[3:])

        def receipts() -> list[VerifiedReceipt]:
            filed = members["asker"].filing
            return [one for answer in (first, second) for one in filed.of(answer.session)]

        everybody = {members[name].peer for name in ("p1", "p2", "d1", "asker")}
        await until(lambda: [{one.peer for one in found.signed.signatures} for found in receipts()] == [everybody] * 2)
        assert first.committee.id == second.committee.id
        assert (first.attempts, second.attempts) == (1, 1)
        assert [found.receipt.outcome for found in receipts()] == [Outcome.ANSWERED] * 2
        assert members["p2"].node.ballots_kept == 0


@pytest.mark.slow
@pytest.mark.trio
async def test_labels_that_come_before_the_votes_are_kept_wait_for_them(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        worker, kept = members["p2"].pool.worker, trio.Event()
        handle = worker.request

        async def request(header: dict[str, Any], *rest: Any, **options: Any) -> Any:
            if header["kind"] == "rest":
                await kept.wait()
            return await handle(header, *rest, **options)

        worker.request = request  # type: ignore[method-assign]
        answer = await _ask(members, INPUTS[:3])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(members["asker"].node.feedback, answer.session, (0, 1, 2))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert members["p2"].node.ballots_kept == 0
            kept.set()

        assert members["p2"].node.ballots_kept == 0  # counted and wiped
