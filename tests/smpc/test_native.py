"""The engine's interface: sizes, single use, misuse, and a party that sends garbage."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from finode.errors import InputError, LocalError, LocalProtocolError, RemoteProtocolError
from finode.smpc import circuit, sharing
from finode.smpc.engine import Engine, Exchange
from finode.smpc.material import DealerSource
from finode.smpc.native import CHUNK_BYTES, NativeEngine
from finode.smpc.randomness import fresh_seed
from finode.smpc.simulation import exchange
from finode.smpc.weights import masked_weights
from finode.smpc.zero import zero_share
from tests.smpc import models
from tests.smpc.parties import Committee, committee_of

PARTIES = 3


@pytest.fixture
def committee() -> Committee:
    makers = [models.mlp(0), models.mlp(1)]
    program = models.program_of(makers, parties=PARTIES, batch=2)
    return committee_of(program, makers, np.random.default_rng(0).uniform(size=(2, 1, 8, 8)))


def test_it_is_an_engine() -> None:
    engine: Engine = NativeEngine()

    assert engine.name == "native"


def test_mask_seeds_are_deterministic_and_differ_by_each_argument() -> None:
    engine, secret = NativeEngine(), fresh_seed()

    seeds = {
        engine.mask_seed(s, d, i) for s in (secret, fresh_seed()) for d in (b"a" * 32, b"b" * 32) for i in range(3)
    }

    assert len(seeds) == 12
    assert engine.mask_seed(secret, b"a" * 32, 1) in seeds


def test_a_bundle_is_a_seed_each_and_corrections_for_the_last_party(committee: Committee) -> None:
    size = NativeEngine().correction_bytes(committee.program)

    assert len(committee.corrections) == committee.dealing.correction_bytes == size
    assert [len(seed) for seed in committee.dealing.seeds] == [32] * PARTIES
    again = NativeEngine().deal(committee.program, fresh_seed())
    assert not set(again.seeds) & set(committee.dealing.seeds)
    assert repr(committee.dealing).count("bytes") == 1  # only the number of them is shown


def test_dealing_is_streamed_in_chunks() -> None:
    program = models.program_of([models.small_cnn(0)], batch=16)
    dealing = NativeEngine().deal(program, fresh_seed())

    sizes = [len(memoryview(chunk).cast("B")) for chunk in dealing.corrections]

    assert sum(sizes) == dealing.correction_bytes
    assert len(sizes) >= 5
    # Small pieces are gathered, and what is large is not.
    assert all(a + b > CHUNK_BYTES for a, b in pairwise(sizes))
    assert max(sizes) < dealing.correction_bytes / 2


def test_gates_are_dealt_as_their_chunks_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt: list[int] = []

    class Counted(DealerSource):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            dealt.append(len(dealt))

    monkeypatch.setattr(circuit, "DealerSource", Counted)
    program = models.program_of([models.small_cnn(0)], batch=16)
    dealing = NativeEngine().deal(program, fresh_seed())

    assert not dealt
    counts = [len(dealt) for _ in dealing.corrections]

    assert 0 < counts[0] < counts[len(counts) // 2] < counts[-1]


def test_a_run_answers_and_every_frame_is_as_large_as_announced(committee: Committee) -> None:
    runs = [committee.run(i) for i in range(PARTIES)]
    outcomes = [run.start() for run in runs]
    rounds = 0
    while isinstance(outcomes[0], Exchange):
        sent = [outcome for outcome in outcomes if isinstance(outcome, Exchange)]
        for outcome in sent:
            assert outcome.round == rounds
            assert all(len(frame) == sent[0].expected_bytes for frame in outcome.frames.values())
        outcomes = [run.resume({j: sent[j].frames[i] for j in range(PARTIES) if j != i}) for i, run in enumerate(runs)]
        rounds += 1
    output = sharing.reconstruct(committee.program, [outcome.value for outcome in outcomes])  # type: ignore[union-attr]

    assert rounds == 15
    assert output.probabilities is not None
    assert np.abs(output.probabilities.sum(1) - 1).max() < 0.001


def test_constants_are_the_masked_weights(committee: Committee) -> None:
    sizes = [8 * sum(spec.numel for spec in masked_weights(plan)) for plan in committee.program.plans]

    assert [len(data) for data in committee.arguments[0]["constants"]] == sizes
    assert committee.arguments[0]["constants"] == committee.arguments[2]["constants"]


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"corrections": b"\0" * 8}, LocalError, "bundle's corrections"),
        ({"input_share": b"\0" * 8}, InputError, "input share has 8 bytes"),
        ({"constants": [b"", b""]}, LocalError, "constants of model 0"),
        ({"weight_shares": [b"", b""]}, LocalError, "weight share of model 0"),
        ({"zero_keys": {}}, LocalError, "zero-sharing keys"),
        ({"zero_keys": {1: bytes(32), 3: bytes(32)}}, LocalError, "zero-sharing keys"),
        ({"bundle_seed": b"short"}, LocalError, "32 bytes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    committee: Committee, changes: dict[str, object], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        committee.run(0, **changes).start()


def test_a_bundle_is_prepared_in_pieces_and_serves_one_run(committee: Committee) -> None:
    engine, own = NativeEngine(), committee.arguments[0]
    holding = engine.hold(committee.program, 0, own["constants"], own["mask_seeds"], own["weight_shares"])
    prepared = engine.prepare(committee.program, 0, holding, own["bundle_seed"], own["corrections"])

    pieces = 0
    while prepared.advance():
        pieces += 1
    outcome = engine.run(prepared, own["input_share"], own["zero_keys"]).start()

    assert isinstance(outcome, Exchange)
    assert pieces > 5
    assert holding.size_bytes > 0
    assert prepared.size_bytes > committee.dealing.correction_bytes
    assert engine.memory_bytes(committee.program) >= prepared.size_bytes
    assert not prepared.advance()
    with pytest.raises(LocalProtocolError, match="taken before"):
        engine.run(prepared, own["input_share"], own["zero_keys"])


def test_what_a_party_holds_serves_many_runs(committee: Committee) -> None:
    engine, program = NativeEngine(), committee.program
    holdings = [
        engine.hold(program, i, own["constants"], own["mask_seeds"], own["weight_shares"])
        for i, own in enumerate(committee.arguments)
    ]
    answers = []
    for _ in range(2):
        dealing = engine.deal(program, committee.secret)
        corrections = b"".join(dealing.corrections)
        runs = [
            engine.run(
                engine.prepare(program, i, holdings[i], dealing.seeds[i], corrections if i == PARTIES - 1 else b""),
                own["input_share"],
                own["zero_keys"],
            )
            for i, own in enumerate(committee.arguments)
        ]
        answers.append(sharing.reconstruct(program, exchange(runs).values).probabilities)

    assert answers[0] is not None
    assert answers[1] is not None
    assert np.abs(answers[0] - answers[1]).max() < 0.001


def test_seats_outside_of_the_committee_are_refused(committee: Committee) -> None:
    with pytest.raises(LocalError, match="party 3 of 3"):
        NativeEngine().hold(committee.program, PARTIES, [], [], [])
    with pytest.raises(LocalError, match="party 0 of 1"):
        NativeEngine().open_weights((), (), (), 0, 1)


@pytest.mark.parametrize("round_", [0, 1, 7])
@pytest.mark.parametrize("spoil", [lambda f: f[:-1], lambda f: bytes(len(f)), lambda f: b"\xff" * 3])
def test_garbage_in_any_round_names_the_party_and_burns_the_run(
    committee: Committee, round_: int, spoil: Callable[[bytes], bytes]
) -> None:
    runs = [committee.run(i) for i in range(PARTIES)]
    outcomes = [run.start() for run in runs]
    for _ in range(round_):
        sent = [outcome for outcome in outcomes if isinstance(outcome, Exchange)]
        outcomes = [run.resume({j: sent[j].frames[i] for j in range(PARTIES) if j != i}) for i, run in enumerate(runs)]
    frames = {j: bytes(outcomes[j].frames[0]) for j in (1, 2)}  # type: ignore[union-attr]

    with pytest.raises(RemoteProtocolError, match=f"round {round_}") as caught:
        runs[0].resume(frames | {2: spoil(frames[2])})

    assert caught.value.peer == "2"
    with pytest.raises(LocalProtocolError):
        runs[0].resume(frames)


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_zero_shares_sum_to_zero_and_are_not_zero(parties: int) -> None:
    keys = {frozenset((i, j)): fresh_seed() for i in range(parties) for j in range(i)}

    shares = [zero_share({j: keys[frozenset((i, j))] for j in range(parties) if j != i}, i, 50) for i in range(parties)]

    assert not sum(share.numpy() for share in shares).any()  # type: ignore[union-attr]
    assert all(len(np.unique(share.numpy())) == 50 for share in shares)


@pytest.mark.parametrize("vote", ["spectral", "entropy"])
def test_only_votes_that_answer_row_by_row_take_padding(vote: str) -> None:
    makers = [models.mlp(0), models.mlp(1)]
    program = models.program_of(makers, batch=2, vote=vote)
    committee = committee_of(program, makers, np.zeros((2, 1, 8, 8)))

    committee.run(0, count=2)
    if vote == "spectral":
        with pytest.raises(LocalError, match="none of them is padding"):
            committee.run(0, count=1)
    else:
        committee.run(0, count=1)
