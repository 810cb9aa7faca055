"""Comparing classes: near ties do not count, slow engines are asked less, and the models are really trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from finode.client import Answer
from finode.errors import SessionAborted
from finode.node.interface import CommitteeView, Timings, Traffic
from finode.testnet.bench.agreement import BATCH, Agreement, Digits, compare, train

Floats = npt.NDArray[np.float64]


def digits(count: int) -> Digits:
    """Digits of two classes; the plaintext prefers class 0 clearly, but for every tenth, which is a near tie."""
    probabilities = np.tile([0.75, 0.25], (count, 1))
    probabilities[::10] = [0.501, 0.499]
    return Digits((), np.zeros((count, 1, 8, 8)), probabilities)


def answer(probabilities: Floats) -> Answer:
    labels = probabilities.argmax(axis=1)
    return Answer(
        session="00",
        service="digits",
        labels=tuple(map(str, labels)),
        label_indices=labels,
        probabilities=probabilities,
        top=None,
        classes=("0", "1"),
        committee=CommitteeView(id="00", parties=(), dealer="", owners=(), organizations={}),
        timings=Timings(negotiation_s=0, deployment_s=0, offline_s=0, online_s=0, total_s=0),
        traffic=Traffic(rounds=0, bytes_sent_per_party=(), offline_bytes=0),
        engine="native",
        attempts=1,
    )


async def compared(what: Digits, private: Floats, goes_on: Callable[[], bool] = lambda: True) -> Agreement:
    asked = 0

    async def ask(inputs: Floats) -> Answer:
        nonlocal asked
        asked += len(inputs)
        return answer(private[asked - len(inputs) : asked])

    return await compare(what, ask, goes_on, engine="native", link="lan", on_step=lambda done, total: None)


@pytest.mark.trio
async def test_near_ties_are_left_out_and_all_others_count() -> None:
    what = digits(200)
    private = what.probabilities.copy()
    private[::10] = private[::10, ::-1]

    found = await compared(what, private)

    assert (found.asked, found.compared, found.agreeing, found.left_out) == (200, 180, 180, 20)
    assert found.max_error == pytest.approx(0.002)
    assert found.holds


@pytest.mark.trio
async def test_one_other_class_is_noticed() -> None:
    what = digits(200)
    private = what.probabilities.copy()
    private[77] = [0.25, 0.75]

    found = await compared(what, private)

    assert (found.compared, found.agreeing, found.holds) == (180, 179, False)


@pytest.mark.trio
async def test_an_engine_that_takes_too_long_is_asked_once() -> None:
    what = digits(200)

    found = await compared(what, what.probabilities, lambda: False)

    assert found.asked == BATCH
    assert found.compared + found.left_out == BATCH


@pytest.mark.trio
async def test_a_query_that_fails_is_told_and_proves_nothing() -> None:
    async def ask(inputs: Floats) -> Answer:
        raise SessionAborted("party 2 was lost")

    found = await compare(digits(5), ask, lambda: True, engine="native", link="lan", on_step=lambda done, total: None)

    assert found.error == "party 2 was lost"
    assert not found.holds


@pytest.mark.slow
def test_a_thousand_digits_and_five_models_are_there(tmp_path: Path) -> None:
    found = train(tmp_path, 1000)

    assert len(found.models) == 5
    assert all(path.stat().st_size for path in found.models)
    assert found.inputs.shape == (1000, 1, 8, 8)
    assert len(np.unique(found.inputs.reshape(1000, -1), axis=0)) > 990  # different digits
    assert np.allclose(found.probabilities.sum(axis=1), 1)
