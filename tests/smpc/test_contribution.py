"""Statistics and feedback after the answer: against their definition in the clear, at their stated cost, unseen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from finode.errors import InputError, LocalError, LocalProtocolError
from finode.smpc import ring, sharing
from finode.smpc import session as session_module
from finode.smpc.circuit import Circuit, Node
from finode.smpc.counts import with_counts
from finode.smpc.engine import Exchange, Output, Program
from finode.smpc.gates.linear import Mask
from finode.smpc.gates.statistics import Agreement, Ballots, Flat, JointVotes
from finode.smpc.labels import UNLABELLED, label_bits, share_labels
from finode.smpc.lowering import lower
from finode.smpc.material import Bundle
from finode.smpc.native import NativeEngine
from finode.smpc.plaintext import run_plain_statistics
from finode.smpc.plan import Plan
from finode.smpc.randomness import fresh_seed
from finode.smpc.session import Cost, Run
from finode.smpc.share import Share
from finode.smpc.simulation import Exchanged, exchange
from finode.smpc.statistics_layout import (
    ballot_bytes,
    open_statistics,
    plain_statistics,
    split_statistics,
    statistics_bytes,
)
from finode.smpc.voting import WHOLE_BATCH
from finode.smpc.weights import PlainWeights
from finode.smpc.zero import zero_share
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker
from tests.smpc.openings import opened as values_opened
from tests.smpc.openings import payload
from tests.smpc.parties import Committee, committee_of
from tests.smpc.statistics import IMPROBABLE, chi_square
from tests.smpc.test_random_plans import build

CLOSE = 2**16 * 2.0**-12
"""Of an entropy sum, per input."""
WEIGHTS = (1, 0, 5)


@dataclass(frozen=True)
class Session:
    """A session that ran to the end of its statistics."""

    committee: Committee
    answer: Exchanged
    rest: Exchanged
    count: int

    @property
    def output(self) -> Output:
        return sharing.reconstruct(self.committee.program, self.answer.values, self.count)

    @property
    def sums(self) -> list[bytes]:
        return [value.sums for value in self.rest.values]

    @property
    def ballots(self) -> list[bytes]:
        return [value.ballots for value in self.rest.values]

    def feedback(self, labels: list[int]) -> Exchanged:
        """Share labels and count the votes for them."""
        program = self.committee.program
        shares = share_labels(labels, program.classes, program.parties)
        return exchange(
            [
                NativeEngine().feedback(program, i, self.ballots[i], shares[i], own["zero_keys"], count=self.count)
                for i, own in enumerate(self.committee.arguments)
            ]
        )


def run(program: Program, makers: list[PlanMaker], x: Floats, count: int | None = None) -> Session:
    committee = committee_of(program, makers, x)
    answer = exchange([committee.run(i, count=count) for i in range(program.parties)])
    return Session(committee, answer, exchange(answer.rests), program.batch if count is None else count)


def mixed() -> list[PlanMaker]:
    """Models whose lanes are not in the order of the program."""
    return [models.mlp(0), models.small_cnn(1), models.mlp(2)]


def inputs(batch: int) -> Floats:
    x = np.random.default_rng(batch).uniform(0, 1, size=(batch, 1, 8, 8))
    return x * np.linspace(0.05, 4, batch).reshape(-1, 1, 1, 1)


def probabilities(makers: list[PlanMaker], x: Floats) -> Floats:
    return np.stack([models.float_logits(maker, x).softmax(-1).numpy() for maker in makers])


def opened(shares: list[bytes]) -> npt.NDArray[np.int64]:
    total: npt.NDArray[np.int64] = np.sum([np.frombuffer(share, "<i8") for share in shares], axis=0)
    return total


def check(session: Session, p: Floats) -> None:
    """Compare the opened statistics with those of float probabilities (K, inputs, C) and the answer's labels."""
    program, count = session.committee.program, session.count
    shape = program.models, program.classes
    found = open_statistics(*shape, session.sums)
    elements = plain_statistics(p.argmax(-1)[:, :count], session.output.labels[:count], p[:, :count])
    expected = split_statistics(*shape, elements)
    assert found.joint is not None
    assert expected.joint is not None
    assert (found.joint == expected.joint).all()
    assert (found.labels == expected.labels).all()
    assert (found.agreement == expected.agreement).all()
    assert np.abs(found.entropy - expected.entropy).max() < CLOSE * count


@pytest.mark.parametrize("reveal", ["probabilities", "top1", "label"])
@pytest.mark.parametrize(
    ("vote", "rounds"), [("soft", 10), ("hard", 17), ("entropy", 7), ("spectral", 10), ("weighted", 10)]
)
def test_statistics_are_what_they_say_after_every_vote(vote: str, rounds: int, reveal: str) -> None:
    makers, x = mixed(), inputs(8)
    weights = WEIGHTS if vote == "weighted" else ()
    program = models.program_of(makers, batch=8, vote=vote, reveal=reveal, vote_weights=weights, statistics=True)

    session = run(program, makers, x)

    check(session, probabilities(makers, x))
    assert session.rest.costs[0].rounds == rounds
    assert [len(share) for share in session.sums] == [statistics_bytes(3, 10)] * 2


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_inputs_are_not_counted(copies: int) -> None:
    makers, originals = mixed(), inputs(4)
    x = np.repeat(originals, 1 + copies, axis=0)
    x += np.random.default_rng(copies).normal(scale=0.05, size=x.shape)
    x[:: 1 + copies] = originals
    gamma = {"gamma": -256, "copies": copies}
    program = models.program_of(makers, batch=len(x), vote="augmented", statistics=True, **gamma)

    session = run(program, makers, x, 3)

    check(session, probabilities(makers, originals))


class Counted:
    """A model with training counts."""

    def __init__(self, maker: PlanMaker, counts: list[int]) -> None:
        self._plan, self.weights = with_counts(maker.plan(), maker.weights, counts)

    def plan(self) -> Plan:
        return self._plan


def test_a_prior_vote_changes_no_models_own_votes() -> None:
    makers, x = mixed(), inputs(4)
    counted = [cast(PlanMaker, Counted(maker, list(range(k, 10 + k)))) for k, maker in enumerate(makers)]
    program = models.program_of(counted, batch=4, vote="prior", statistics=True)

    session = run(program, counted, x)

    check(session, probabilities(makers, x))


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_padding_is_not_counted(count: int, parties: int) -> None:
    makers, x = mixed(), inputs(8)
    program = models.program_of(makers, batch=8, parties=parties, statistics=True)

    session = run(program, makers, x, count)

    check(session, probabilities(makers, x))
    assert [len(share) for share in session.ballots] == [ballot_bytes(3, 10, count)] * parties


@pytest.mark.parametrize("reveal", ["probabilities", "top1", "label"])
def test_padding_is_not_answered(reveal: str) -> None:
    """A querier pays for `count` inputs: what it puts into the rest of the batch must tell it nothing."""
    makers, x = mixed(), inputs(4)
    program = models.program_of(makers, batch=4, parties=3, reveal=reveal, statistics=True)

    session = run(program, makers, x, 3)
    whole = run(program, makers, x)

    shown = opened(session.answer.values).reshape(4, -1)
    assert not shown[3].any()
    assert np.abs(shown[:3] - opened(whole.answer.values).reshape(4, -1)[:3]).max() <= 64
    for share in session.answer.values:  # zeros in the sum alone
        assert np.frombuffer(share, dtype="<i8").reshape(4, -1)[3].all()


@pytest.mark.parametrize("vote", ["soft", "hard", "spectral"])
def test_the_answer_waits_for_nothing(vote: str) -> None:
    makers, x = mixed(), inputs(4)
    plain = models.program_of(makers, batch=4, vote=vote)
    program = replace(plain, statistics=True)
    without = committee_of(plain, makers, x)
    before = exchange([without.run(i) for i in range(2)])

    session = run(program, makers, x)

    assert before.rests == []
    assert session.answer.costs == before.costs
    assert session.answer.bytes_sent == before.bytes_sent
    # The same gates, dealt and prepared before all of the statistics'.
    assert lower(program).nodes == lower(plain).nodes
    assert len(session.committee.corrections) > len(without.corrections)


def test_only_the_answers_material_is_prepared_before_it() -> None:
    makers = [models.mlp(0)]
    program = models.program_of(makers, statistics=True)
    engine, own = NativeEngine(), committee_of(program, makers, inputs(1)).arguments[0]
    holding = engine.hold(program, 0, own["constants"], own["mask_seeds"], own["weight_shares"])
    prepared = engine.prepare(program, 0, holding, own["bundle_seed"], own["corrections"])

    engine.run(prepared, own["input_share"], own["zero_keys"])
    left = 0
    while prepared.advance():
        left += 1

    # A run takes what the answer needs, and leaves the rest to be prepared whenever there is time.
    rest = lower(program).rest
    assert rest is not None
    assert left == len(rest.nodes)


def test_rounds_go_on_where_the_answer_stopped() -> None:
    makers = [models.mlp(0)]
    committee = committee_of(models.program_of(makers, statistics=True), makers, inputs(1))
    answer = exchange([committee.run(i) for i in range(2)])

    outcomes = [rest.start() for rest in answer.rests]

    assert all(isinstance(outcome, Exchange) and outcome.round == answer.costs[0].rounds for outcome in outcomes)
    with pytest.raises(LocalProtocolError):
        answer.rests[0].start()


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("classes", [2, 40])
def test_few_and_many_classes(classes: int, parties: int) -> None:
    makers, x = [models.mlp(seed, classes) for seed in range(2)], inputs(6)
    for vote in ("soft", "hard"):
        program = models.program_of(makers, batch=6, parties=parties, vote=vote, statistics=True)
        check(run(program, makers, x), probabilities(makers, x))


def test_one_model_gets_everything() -> None:
    makers, x = [models.mlp(3)], inputs(4)

    session = run(models.program_of(makers, batch=4, statistics=True), makers, x)

    found = open_statistics(1, 10, session.sums)
    assert found.agreement.tolist() == [4 << 16]
    assert abs(int(found.entropy[0]) - (4 << 16)) < 4 * CLOSE


def test_too_many_joint_votes_are_left_out() -> None:
    makers, x = [models.mlp(seed, 600) for seed in range(2)], inputs(2)
    p = probabilities(makers, x)

    session = run(models.program_of(makers, batch=2, vote="hard", statistics=True), makers, x)

    found = open_statistics(2, 600, session.sums)
    assert found.joint is None
    assert (found.labels == [np.bincount(row, minlength=600) for row in p.argmax(-1)]).all()


def test_the_meter_is_what_the_gates_state() -> None:
    makers, x = mixed(), inputs(4)
    program = models.program_of(makers, batch=4, statistics=True)
    rest = lower(program).rest
    assert rest is not None

    session = run(program, makers, x)

    stated = sum(node.gate.cost().bits for node in rest.nodes)
    assert session.rest.costs == [Cost(10, stated)] * 2
    # By hand. Per model and input: argmax 1085, e^t_j t_j 2 * 640, digits of their sum 64, mean 128, power 64, digits
    # of 1 / S 64, product 128, its digits 64, masked votes 640, and an operand of either matrix product.
    per_model = 1085 + 2 * 640 + 64 + 128 + 64 + 64 + 128 + 64 + 640 + 2 * 64
    # Per input: argmax of numbers of 20 bits 995, masked label 640, n mod 4, 1 / sum and its digits, two operands.
    per_input = 995 + 640 + 2 + 2 * 64 + 2 * 64
    assert stated == 4 * (3 * per_model + per_input) + 3 * 64


@dataclass(frozen=True)
class Parts:
    """A circuit that ran: its opened output, what it kept at every party, its cost and its corrections."""

    opened: Tensor
    kept: list[dict[str, Any]]
    costs: list[Cost]
    sizes: dict[str, int]
    frames: list[list[bytes]]


def simulated(circuit: Circuit, values: dict[str, Tensor], parties: int) -> Parts:
    """Share the inputs, deal, and run a circuit among all parties."""
    seeds = [fresh_seed() for _ in range(parties)]
    corrections = b"".join(chunk.tobytes() for chunk in circuit.deal(seeds, None))
    shares = {name: sharing.share_elements(x.numpy(), parties) for name, x in values.items()}
    kept: list[dict[str, Any]] = [{} for _ in seeds]

    def run_of(party: int) -> Run:
        last = party == parties - 1
        bundle = Bundle(seeds[party], circuit.correction_sizes(), corrections if last else b"", last, None)

        async def body(session: session_module.Session) -> Tensor:
            own = {
                name: Share(ring.from_bytes(pieces[party], tuple(values[name].shape)), session.first)
                for name, pieces in shares.items()
            }
            return (await circuit.run(session, circuit.prepare(session, bundle, None), own, kept[party])).data

        return Run(body, party, parties)

    done = exchange([run_of(party) for party in range(parties)])
    sizes = dict(circuit.correction_sizes())
    return Parts(torch.stack(done.values).sum(0), kept, done.costs, sizes, done.frames)


SHAPE = (3, 4, 5)
BILINEAR = Circuit(
    ("x", "y"),
    (
        Node("d", Mask(SHAPE), ("x",)),
        Node("e", Mask(SHAPE[1:]), ("y",)),
        Node("joint", JointVotes(SHAPE), ("d",)),
        Node("agrees", Agreement(SHAPE), ("d", "e")),
        Node("ballots", Ballots(SHAPE, 8), ("d",)),
        Node("flat", Flat(), ("joint", "agrees")),
    ),
    "flat",
    ("ballots",),
)


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_gates_of_masked_votes_at_their_stated_cost(parties: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randint(-(2**63), 2**63 - 1, size, generator=generator) for size in (SHAPE, SHAPE[1:]))

    done = simulated(BILINEAR, {"x": x, "y": y}, parties)

    joint = torch.stack([x[k].mT @ x[other] for k, other in ((0, 1), (0, 2), (1, 2))])
    assert torch.equal(done.opened, torch.cat([joint.reshape(-1), (x * y).sum(-1).reshape(-1)]))
    assert done.costs == [Cost(1, 64 * (60 + 20))] * parties
    assert done.sizes == {"d": 0, "e": 0, "joint": 8 * 75, "agrees": 8 * 12, "ballots": 8 * 4 * 8 * (3 + 1), "flat": 0}
    assert torch.equal(BILINEAR.plain(PlainWeights([]), {"x": x, "y": y}), done.opened)
    turned = torch.stack([own["ballots"].turned for own in done.kept]).sum(0)
    rho = torch.stack([own["ballots"].rho for own in done.kept]).sum(0) & 7
    for i in range(4):
        for place in range(8):
            chosen = (place + int(rho[i])) & 7
            assert turned[:, i, place].tolist() == (x[:, i, chosen].tolist() if chosen < 5 else [0, 0, 0])


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("classes", [2, 8, 10, 15])
def test_feedback_counts_correct_votes(classes: int, parties: int) -> None:
    makers, x = [models.mlp(seed, classes) for seed in range(3)], inputs(8)
    program = models.program_of(makers, batch=8, parties=parties, statistics=True)
    session, votes = run(program, makers, x, 6), probabilities(makers, x).argmax(-1)[:, :6]
    labels = [int(votes[0, 0]), int(votes[1, 1]), int(votes[2, 2]), 0, UNLABELLED, classes - 1]

    done = session.feedback(labels)

    assert opened(done.values).tolist() == (votes == labels).sum(1).tolist()
    assert done.costs == [Cost(1, label_bits(classes) * 6)] * parties
    assert len(set(done.transcripts)) == 1


def test_feedback_of_what_does_not_fit_is_refused() -> None:
    makers, x = [models.mlp(0)], inputs(2)
    program = models.program_of(makers, batch=2, statistics=True)
    session, keys = run(program, makers, x), {1: fresh_seed()}
    engine, ballots = NativeEngine(), session.ballots[0]

    with pytest.raises(InputError, match="label share has 2 bytes instead of 4"):
        engine.feedback(program, 0, ballots, b"ab", keys, count=2)
    with pytest.raises(InputError, match="ballots of 1 inputs"):
        engine.feedback(program, 0, ballots, b"ab", keys, count=1)
    with pytest.raises(LocalError, match="3 labels for a batch that answers 2"):
        engine.feedback(program, 0, ballots, b"abcdef", keys, count=3)
    with pytest.raises(LocalError, match="zero-sharing keys"):
        engine.feedback(program, 0, ballots, b"abcd", {}, count=2)
    with pytest.raises(LocalError, match="0 true inputs"):
        session.committee.run(0, count=0)


@pytest.mark.parametrize("labels", [[3], [0, 1, 2]])
def test_whatever_a_querier_sends_counts_one_class_at_most(labels: list[int]) -> None:
    """Shares that are no honest sharing of labels: any residues at all."""
    count = len(labels)
    makers, x = [models.mlp(seed) for seed in range(2)], inputs(count)
    program = models.program_of(makers, batch=count, statistics=True)
    votes = probabilities(makers, x).argmax(-1)
    generator = np.random.default_rng(7)
    for _ in range(5):
        session = run(program, makers, x)
        sent = [generator.integers(0, 2**16, count, dtype=np.uint16) for _ in range(2)]
        done = exchange(
            [
                NativeEngine().feedback(
                    program, i, session.ballots[i], sent[i].tobytes(), own["zero_keys"], count=count
                )
                for i, own in enumerate(session.committee.arguments)
            ]
        )
        meant = (sent[0].astype(np.int64) + sent[1]) % 16
        assert opened(done.values).tolist() == (votes == meant).sum(1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3, 5])
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1000),
    choices=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=5),
    same=st.booleans(),
    vote=st.sampled_from(["soft", "hard", "entropy", "spectral"]),
    reveal=st.sampled_from(["probabilities", "top1", "label"]),
    count=st.integers(1, 3),
)
def test_any_plans_statistics_are_those_of_the_oracle(
    parties: int, seed: int, choices: list[tuple[int, int]], same: bool, vote: str, reveal: str, count: int
) -> None:
    makers = [build(seed, choices), build(seed + 1, choices if same else choices[:1]), build(seed + 2, choices)]
    x = np.random.default_rng(seed).normal(size=(3, *makers[0].input_shape))
    program = models.program_of(makers, batch=3, parties=parties, vote=vote, reveal=reveal, statistics=True)
    count = 3 if vote in WHOLE_BATCH else count

    session = run(program, makers, x, count)

    found = opened(session.sums)
    expected = run_plain_statistics(program, [maker.weights for maker in makers], x, count)
    # Where two logits lie within a unit in the last place, masks decide: few plans have such inputs.
    sums = len(found) - 3
    assert (found[:sums] == expected[:sums]).all()
    assert np.abs(found[sums:] - expected[sums:]).max() < CLOSE * count


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_what_the_statistics_open_is_uniform_whatever_the_votes(parties: int, level: float) -> None:
    makers = [models.mlp(seed) for seed in range(3)]
    program = models.program_of(makers, parties=parties, batch=32, statistics=True)

    session = run(program, makers, np.full((32, 1, 8, 8), level))

    for sender in range(parties):
        sent = [payload(frames[sender]) for frames in session.rest.frames]
        assert chi_square(b"".join(sent)) < IMPROBABLE
        assert all(chi_square(data) < IMPROBABLE for data in sent if len(data) > 4096)
    assert all(chi_square(data) < IMPROBABLE for data in values_opened(session.rest.frames) if len(data) > 4096)
    assert all(chi_square(share) < IMPROBABLE for share in session.sums)
    assert all(chi_square(share[: -2 * 32]) < IMPROBABLE for share in session.ballots)


def test_masked_votes_of_equal_queries_never_repeat() -> None:
    makers, x = [models.mlp(0), models.mlp(1)], np.zeros((4, 1, 8, 8))
    program = models.program_of(makers, batch=4, statistics=True)

    words = [
        word
        for session in (run(program, makers, x) for _ in range(3))
        for frames in session.rest.frames
        for frame in frames
        for word in (payload(frame)[i : i + 8] for i in range(0, len(payload(frame)) - 7, 8))
    ]

    assert len(words) > 1000
    assert len(set(words)) == len(words)


def test_sums_are_blinded_by_what_the_dealer_does_not_have() -> None:
    """Under other keys of the parties, the same bundle and query give other shares of the same sums."""
    makers, x = [models.mlp(0), models.mlp(1)], inputs(2)
    program = models.program_of(makers, batch=2, statistics=True)
    committee = committee_of(program, makers, x)
    runs = []
    for key in (fresh_seed(), fresh_seed()):
        answer = exchange([committee.run(i, zero_keys={1 - i: key}) for i in range(2)])
        runs.append([value.sums for value in exchange(answer.rests).values])

    first, second = (np.frombuffer(run[0], "<i8") for run in runs)
    assert (first != second).all()
    assert (opened(runs[0]) == opened(runs[1])).all()
    # Neither is the output's blinding used again, nor that of feedback.
    keys = {1: fresh_seed()}
    pads = [zero_share(keys, 0, 4, purpose).tolist() for purpose in ("zero", "statistics", "feedback")]
    assert len({tuple(pad) for pad in pads}) == 3


def test_nothing_of_the_statistics_shows_in_a_repr() -> None:
    makers = [models.mlp(0)]
    session = run(models.program_of(makers, statistics=True), makers, inputs(1))

    shown = [repr(value) for value in (*session.rest.values, session.rest, *session.rest.rests)]

    assert all("\\x" not in text and "tensor" not in text for text in shown)
