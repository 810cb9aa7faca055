"""From inputs to sessions and back."""

from __future__ import annotations

import numpy as np
import pytest

from finode.node.batches import SHARED_AT_ONCE, SharedInput, filled, is_row_wise, joined, session_batch
from finode.smpc.engine import Output
from finode.smpc.voting import VOTES, WHOLE_BATCH


@pytest.mark.parametrize(
    ("inputs", "most", "batch"),
    [(1, 64, 1), (2, 64, 2), (3, 64, 4), (33, 64, 64), (33, 48, 48), (5, 5, 5), (64, 64, 64)],
)
def test_a_batch_is_a_power_of_two_or_the_most(inputs: int, most: int, batch: int) -> None:
    assert session_batch("soft", inputs, most) == batch
    assert session_batch("hard", inputs, most) == batch


def test_a_vote_that_looks_at_the_whole_batch_gets_its_own_batch() -> None:
    assert session_batch("spectral", 5, 64) == 5


def test_inputs_are_filled_up_with_zeros() -> None:
    x = np.ones((3, 2, 2))

    padded = filled(x, 4)

    assert padded.shape == (4, 2, 2)
    assert np.array_equal(padded[:3], x)
    assert not padded[3].any()
    assert filled(x, 3) is x


def test_answers_are_joined_in_their_order_whatever_they_reveal() -> None:
    one = Output(labels=np.array([1]), probabilities=None, top=np.array([0.5]))
    two = Output(labels=np.array([2, 3]), probabilities=None, top=np.array([0.25, 0.75]))

    whole = joined([one, two])

    assert whole.labels.tolist() == [1, 2, 3]
    assert whole.probabilities is None
    assert whole.top is not None
    assert whole.top.tolist() == [0.5, 0.25, 0.75]
    assert joined([one]) is one


@pytest.mark.trio
@pytest.mark.parametrize("values", [6, SHARED_AT_ONCE + 1])
async def test_an_input_is_shared_once_for_all_parties(values: int) -> None:
    x = np.random.default_rng(0).normal(size=(1, values))
    shared = SharedInput(x, 3, 16)

    pieces = [np.frombuffer(await shared.piece(index), dtype="<i8") for index in range(3)]

    assert np.array_equal(pieces[0] + pieces[1] + pieces[2], np.rint(x[0] * 65536).astype(np.int64))
    assert await shared.piece(1) == pieces[1].tobytes()


def test_batches_are_filled_up_for_the_votes_whose_padding_the_engine_takes() -> None:
    assert {vote for vote in VOTES if is_row_wise(vote)} == set(VOTES) - set(WHOLE_BATCH)
