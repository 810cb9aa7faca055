"""What each side sees: frames and shares uniform whatever the input, the dealer apart from everything secret."""

from __future__ import annotations

import inspect
from itertools import permutations

import numpy as np
import pytest
import torch

from finode.smpc.engine import Program
from finode.smpc.lowering import lower
from finode.smpc.material import Bundle
from finode.smpc.native import NativeEngine
from finode.smpc.randomness import Stream, fresh_seed
from finode.smpc.simulation import exchange, simulate_program
from finode.smpc.weights import DealerWeights
from finode.smpc.zero import zero_share
from tests.smpc import models
from tests.smpc.openings import opened, payload
from tests.smpc.parties import committee_of
from tests.smpc.statistics import IMPROBABLE, chi_square


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_frames_and_what_they_open_are_uniform_whatever_the_input(parties: int, level: float) -> None:
    makers = [models.small_cnn(seed) for seed in range(2)]
    program = models.program_of(makers, parties=parties, batch=16)

    done = simulate_program(program, [maker.weights for maker in makers], np.full((16, 1, 8, 8), level))

    for sender in range(parties):
        sent = [payload(frames[sender]) for frames in done.frames]
        assert chi_square(b"".join(sent)) < IMPROBABLE
        assert all(chi_square(data) < IMPROBABLE for data in sent if len(data) > 4096)
    # What is opened, the sum of all parties' shares, is masked: uniform as well, round by round.
    assert all(chi_square(data) < IMPROBABLE for data in opened(done.frames) if len(data) > 4096)


def test_frames_of_equal_queries_never_repeat() -> None:
    maker, x = models.mlp(1), np.zeros((2, 1, 8, 8))
    program = models.program_of([maker], batch=2)

    words = [
        word
        for _ in range(4)
        for frames in simulate_program(program, [maker.weights], x).frames
        for frame in frames
        for word in _words(payload(frame))
    ]

    assert len(words) > 1000
    assert len(set(words)) == len(words)


def _words(data: bytes) -> list[bytes]:
    return [data[i : i + 8] for i in range(0, len(data) - 7, 8)]


def test_the_dealer_is_given_nothing_but_the_public_program_and_its_own_secret() -> None:
    assert list(inspect.signature(NativeEngine.deal).parameters) == ["self", "program", "secret"]
    assert list(inspect.signature(NativeEngine.correction_bytes).parameters) == ["self", "program"]
    assert list(inspect.signature(DealerWeights.__init__).parameters) == ["self", "plans", "mask_seeds", "device"]
    assert set(Program.__slots__) == {
        "plans", "deployments", "parties", "batch", "fractional_bits", "vote", "vote_weights", "reveal", "profile",
        "copies", "gamma", "statistics",
    }  # fmt: skip


def test_corrections_and_seeds_are_uniform() -> None:
    program = models.program_of([models.small_cnn(0)], batch=4)

    dealing = NativeEngine().deal(program, fresh_seed())
    data = b"".join(dealing.corrections)

    # Pieces end in padding to 8 bytes, some hundred zeros among a megabyte.
    assert len(data) > 500_000
    assert chi_square(data) < IMPROBABLE


@pytest.mark.parametrize("zero_shared", [False, True])
def test_dealer_and_querier_together_learn_the_answer_alone(zero_shared: bool) -> None:
    """The attack that the zero-sharing prevents, on real output shares, with and without it.

    A party's share of the label is read from dealt tables at opened places, and the dealer knows tables and masks. If
    the querier showed it a bare share, it could try which losses of the classes give that share, and so find the whole
    ranking of the classes where only the label was to be revealed.
    """
    maker = models.mlp(3, classes=4)
    program = models.program_of([maker], parties=3, reveal="label")
    committee = committee_of(program, [maker], np.full((1, 1, 8, 8), 0.5))
    values = exchange([committee.run(i) for i in range(3)]).values
    share = int(np.frombuffer(values[1], dtype="<i8")[0])
    if not zero_shared:
        share -= int(zero_share(committee.arguments[1]["zero_keys"], 1, 1)[0])

    # The dealer's knowledge: every party's material of the last gate, from the seeds and corrections it made.
    circuit = lower(program)
    node = circuit.nodes[-1]
    materials = []
    for party in range(3):
        last = party == 2
        bundle = Bundle(
            committee.dealing.seeds[party],
            circuit.correction_sizes(),
            committee.corrections if last else b"",
            last,
            None,
        )
        materials.append(node.gate.material(bundle.take(node.name)).blocks[0])
    rho = sum(block.rho for block in materials)[0, 0]
    table = materials[1].one_hot[0, 0]
    explained = []
    for losses in permutations(range(4)):
        places = (rho + torch.tensor(losses)) % 4
        guess = int((table[torch.arange(4), places] * torch.arange(4)).sum())
        if (guess - share) % 2**64 == 0:
            explained.append(losses)

    ranking = models.float_logits(maker, np.full((1, 1, 8, 8), 0.5))[0].argsort(descending=True).argsort().tolist()
    assert explained == ([] if zero_shared else [tuple(ranking)])


def test_output_shares_of_equal_answers_are_fresh_and_uniform() -> None:
    maker, x = models.mlp(3), np.full((64, 1, 8, 8), 0.5)
    program = models.program_of([maker], batch=64)

    shares = [share for _ in range(2) for share in simulate_program(program, [maker.weights], x).output_shares]

    assert len(set(shares)) == len(shares)
    assert all(chi_square(share) < IMPROBABLE for share in shares)


def test_nothing_that_holds_secrets_shows_them() -> None:
    maker = models.mlp(0)
    program = models.program_of([maker])
    committee = committee_of(program, [maker], np.zeros((1, 1, 8, 8)))
    done = simulate_program(program, [maker.weights], np.zeros((1, 1, 8, 8)))

    shown = [repr(thing) for thing in (committee.dealing, done, committee.run(0), Stream(fresh_seed()))]

    assert all("tensor" not in text and "\\x" not in text for text in shown)
