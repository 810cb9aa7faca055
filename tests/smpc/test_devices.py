"""Runs on a device give the very bytes that the processor gives: dealer, frames of every round, output shares; and
what comes after the answer, statistics, ballots and feedback.

`accelerator` is the device that is not there (tests/fakes/accelerator.py): it shows that nothing is mixed and that no
integer matrices are multiplied. `cuda` is a real GPU, and skipped without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from finode.errors import ConfigError
from finode.smpc import ring_products
from finode.smpc.devices import CPU, check_products, open_device
from finode.smpc.engine import Program
from finode.smpc.gates.base import Gate
from finode.smpc.gates.maximum import ArgMax, Winners
from finode.smpc.gates.product import MatrixProduct
from finode.smpc.labels import share_labels
from finode.smpc.lowering import lower
from finode.smpc.native import NativeEngine
from finode.smpc.plan import Op
from finode.smpc.session import Run
from finode.smpc.simulation import Exchanged, exchange, simulate, simulate_program
from finode.smpc.voting import VOTES, WHOLE_BATCH
from finode.smpc.weights import DealerWeights
from tests.fakes.accelerator import Accelerated, accelerator
from tests.smpc import models
from tests.smpc.models import Floats, PlanMaker
from tests.smpc.parties import Committee, committee_of
from tests.smpc.test_contribution import Counted
from tests.smpc.test_random_plans import ANYWHERE, IMAGES, build

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["accelerator", pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        yield open_device("cuda")
        return
    with accelerator() as fake:
        yield fake


def _inputs(batch: int, shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(batch).uniform(0, 1, size=(batch, *shape))


def _run_of(committee: Committee, party: int, device: torch.device, count: int | None) -> Run:
    engine, own = NativeEngine(device), committee.arguments[party]
    holding = engine.hold(committee.program, party, own["constants"], own["mask_seeds"], own["weight_shares"])
    corrections = bytearray(own["corrections"])  # it may be used in place
    prepared = engine.prepare(committee.program, party, holding, own["bundle_seed"], corrections)
    return engine.run(prepared, own["input_share"], own["zero_keys"], count=count)


def _runs(committee: Committee, on: Sequence[torch.device], count: int | None = None) -> list[Exchanged]:
    """The answer, and what follows it."""
    done = [exchange([_run_of(committee, party, device, count) for party, device in enumerate(on)])]
    return [*done, exchange(done[0].rests)] if done[0].rests else done


def _dealt(program: Program, secret: bytes, device: torch.device) -> bytes:
    """The corrections of a bundle of known seeds."""
    parties = range(program.parties)
    masks = [[NativeEngine().mask_seed(secret, name, party) for party in parties] for name in program.deployments]
    seeds = [bytes([party]) * 32 for party in parties]
    answer, weights = lower(program), DealerWeights(program.plans, masks, device)
    circuits = [answer] if answer.rest is None else [answer, answer.rest]
    return b"".join(piece.tobytes() for circuit in circuits for piece in circuit.deal(seeds, weights, device))


def _compare(
    makers: Sequence[PlanMaker], device: torch.device, *, count: int | None = None, **changes: object
) -> tuple[Committee, list[Exchanged]]:
    """Return what ran on the processor, after it was the same on the device."""
    program = models.program_of(makers, **changes)
    committee = committee_of(program, makers, _inputs(program.batch, program.plans[0].input_shape))
    expected = _runs(committee, [CPU] * program.parties, count)

    # Party 0 on the device, the others on the processor: they cannot tell.
    for on in ([device] * program.parties, [device] + [CPU] * (program.parties - 1)):
        for found, same in zip(_runs(committee, on, count), expected, strict=True):
            assert found.frames == same.frames
            assert found.values == same.values
            assert found.costs == same.costs
            assert found.transcripts == same.transcripts
    assert _dealt(program, committee.secret, device) == _dealt(program, committee.secret, CPU)
    return committee, expected


MODELS: dict[str, Callable[[], list[PlanMaker]]] = {
    "lane-of-two": lambda: [models.small_cnn(1), models.small_cnn(2)],
    "average-pool": lambda: [models.average_cnn(1)],
    "mixed": lambda: [models.mlp(1), models.residual_cnn(2)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("parties", "profile"), [(2, "throughput"), (3, "latency")])
@pytest.mark.parametrize("name", MODELS)
def test_models_run_as_on_the_processor(name: str, parties: int, profile: str, device: torch.device) -> None:
    _compare(MODELS[name](), device, batch=2, parties=parties, profile=profile)


VOTING: dict[str, dict[str, Any]] = {
    "weighted": {"vote_weights": (3, 1)},
    "augmented": {"batch": 6, "copies": 2, "gamma": -256},
}
"""What a vote asks of a program of two models for two inputs, beside its name."""


def _voters(vote: str, makers: list[PlanMaker]) -> list[PlanMaker]:
    """Give the models of a prior vote their counts."""
    if vote != "prior":
        return makers
    return [cast(PlanMaker, Counted(maker, list(range(k, 10 + k)))) for k, maker in enumerate(makers)]


@pytest.mark.slow
@pytest.mark.parametrize("reveal", ["probabilities", "top1", "label"])
@pytest.mark.parametrize("vote", VOTES)
def test_votes_run_as_on_the_processor(vote: str, reveal: str, device: torch.device) -> None:
    makers = _voters(vote, [models.mlp(1), models.mlp(2)])
    _compare(makers, device, vote=vote, reveal=reveal, **{"batch": 2, **VOTING.get(vote, {})})


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("vote", VOTES)
def test_statistics_and_feedback_run_as_on_the_processor(vote: str, parties: int, device: torch.device) -> None:
    makers = _voters(vote, [models.mlp(1), models.average_cnn(2)])  # two lanes
    reveal = ("probabilities", "top1", "label")[VOTES.index(vote) % 3]
    changes = {"batch": 2, **VOTING.get(vote, {}), "vote": vote, "reveal": reveal, "parties": parties}
    count = 2 if vote in WHOLE_BATCH else 1

    committee, (_, rest) = _compare(makers, device, statistics=True, count=count, **changes)

    shares = share_labels([3] * count, 10, parties)

    def feedback(engine: NativeEngine) -> Exchanged:
        runs = [
            engine.feedback(committee.program, i, rest.values[i].ballots, shares[i], own["zero_keys"], count=count)
            for i, own in enumerate(committee.arguments)
        ]
        return exchange(runs)

    assert feedback(NativeEngine(device)).values == feedback(NativeEngine()).values


@pytest.mark.slow
def test_statistics_of_more_classes_than_a_block_run_as_on_the_processor(device: torch.device) -> None:
    makers = [models.mlp(1, classes=40), models.mlp(2, classes=40)]
    _compare(makers, device, batch=2, reveal="probabilities", statistics=True)


@pytest.mark.slow
@pytest.mark.parametrize(("vote", "reveal"), [("soft", "top1"), ("hard", "probabilities")])
def test_more_classes_than_a_block_run_as_on_the_processor(vote: str, reveal: str, device: torch.device) -> None:
    _compare([models.mlp(1, classes=40)], device, vote=vote, reveal=reveal)


@pytest.mark.slow
@pytest.mark.parametrize("op", [*ANYWHERE, *IMAGES], ids=lambda op: op.value)
def test_every_operator_runs_as_on_the_processor(op: Op, device: torch.device) -> None:
    place = [*ANYWHERE, *IMAGES].index(op)
    _compare([build(0, [(place, 0), (place, 1)])], device)


@pytest.mark.parametrize(
    ("gate", "shapes"),
    [
        (MatrixProduct((2, 3, 5), (1, 5, 4)), [(2, 3, 5), (1, 5, 4)]),
        (ArgMax((2, 33), 0, 28, Winners.INDEX), [(2, 33)]),
    ],
    ids=["matrix-product", "tournament"],
)
def test_gates_run_alone(gate: Gate[object], shapes: list[tuple[int, ...]], device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(-(1 << 20), 1 << 20, shape, generator=generator) for shape in shapes]

    assert torch.equal(
        simulate(gate, *inputs, parties=2, device=device).opened, simulate(gate, *inputs, parties=2).opened
    )


@pytest.mark.slow
def test_a_whole_simulation_runs_on_the_device(device: torch.device) -> None:
    makers, x = [models.lenet(0)], _inputs(1, (3, 32, 32))
    program, weights = models.program_of(makers), [maker.weights for maker in makers]

    done = simulate_program(program, weights, x, device=device)

    oracle = NativeEngine(device).plaintext(program, weights, x)
    assert done.output.probabilities is not None
    assert oracle.probabilities is not None
    assert np.abs(done.output.probabilities - oracle.probabilities).max() < 0.0002


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize(("rows", "inner", "columns"), [(64, 147, 12544), (512, 4608, 16), (1000, 2048, 1)])
def test_products_of_real_layers_are_exact_on_the_gpu(rows: int, inner: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(inner)
    a, b = (
        torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)
        for shape in ((rows, inner), (inner, columns))
    )

    assert torch.equal(ring_products.matmul(a.cuda(), b.cuda()).cpu(), a @ b)


def test_the_pretended_device_has_the_rules_of_a_gpu() -> None:
    with accelerator() as device:
        a, b = torch.arange(6).reshape(2, 3).to(device), torch.arange(6).reshape(3, 2)
        assert isinstance(a, Accelerated)
        assert a.device == device
        assert (a + 1 << 2).cpu().tolist() == [[4, 8, 12], [16, 20, 24]]

        with pytest.raises(RuntimeError, match="a tensor of the processor"):
            a + b.T
        with pytest.raises(RuntimeError, match="a tensor of the processor"):
            b[a]
        with pytest.raises(RuntimeError, match="not implemented for integers"):
            a @ b.to(device)
        with pytest.raises(RuntimeError, match="numpy"):
            a.numpy()
        assert torch.equal(ring_products.matmul(a, b.to(device)).cpu(), a.cpu() @ b)


def test_a_missing_gpu_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match="finds no GPU") as caught:
        open_device("cuda")

    assert 'device = "cpu"' in caught.value.hint
    assert open_device("cpu") == CPU
    with pytest.raises(ConfigError, match="one of cpu, cuda"):
        open_device("tpu")


def test_a_device_whose_products_are_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_products(CPU)

    exact = ring_products.by_limbs
    monkeypatch.setattr(ring_products, "by_limbs", lambda a, b: exact(a, b) + (a[:, :1] == -(1 << 63)).long())
    with pytest.raises(ConfigError, match="does not multiply float64 exactly"):
        check_products(CPU)
