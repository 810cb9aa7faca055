"""Products with secret weights, and the layouts under them, against torch's own operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from finode.smpc import ring, sharing
from finode.smpc.circuit import Circuit, CircuitBuilder
from finode.smpc.gates.linear import AddWeight, Convolution, Form, Mask, Matmul, PerChannel, Product
from finode.smpc.material import Bundle
from finode.smpc.native import NativeEngine
from finode.smpc.plan import INPUT, Op, Plan, Step, WeightSpec
from finode.smpc.randomness import fresh_seed
from finode.smpc.session import Cost, Run, Session
from finode.smpc.share import Share
from finode.smpc.simulation import Exchanged, exchange
from finode.smpc.weights import DealerWeights, PartyWeights, PlainWeights, WeightRef
from tests.smpc.statistics import IMPROBABLE, chi_square

MODELS = 3


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randint(-(2**20), 2**20, shape, generator=torch.Generator().manual_seed(seed))


def _plan(weight: tuple[int, ...], bias: tuple[int, ...]) -> Plan:
    """A plan of two weights, the first one multiplied; its graph is not run here."""
    step = Step(op=Op.LINEAR, name="l", inputs=(INPUT,), output="y", output_shape=(1,), weight="w", bias="b")
    specs = (WeightSpec(name="w", shape=weight), WeightSpec(name="b", shape=bias))
    return Plan(input_shape=(1,), classes=1, steps=(step,), weights=specs, output="y", softmax_at_end=False)


def _run(circuit: Circuit, plan: Plan, weights: list[dict[str, Tensor]], x: Tensor, parties: int) -> Exchanged:
    engine, secret, plans = NativeEngine(), fresh_seed(), [plan] * MODELS
    seeds = [[engine.mask_seed(secret, bytes([m]) * 32, party) for party in range(parties)] for m in range(MODELS)]
    flat = [torch.cat([model[spec.name].reshape(-1) for spec in plan.weights]).numpy() for model in weights]
    shares = [sharing.share_elements(elements, parties) for elements in flat]
    held = [([shares[m][i] for m in range(MODELS)], [seeds[m][i] for m in range(MODELS)]) for i in range(parties)]
    opened = exchange([engine.open_weights(plans, *held[i], i, parties) for i in range(parties)])
    assert opened.costs == [Cost(1, 64 * MODELS * plan.weights[0].numel)] * parties
    bundle_seeds = [fresh_seed() for _ in range(parties)]
    corrections = b"".join(raw.tobytes() for raw in circuit.deal(bundle_seeds, DealerWeights(plans, seeds)))
    inputs = [ring.from_bytes(share, tuple(x.shape)) for share in sharing.share_elements(x.numpy(), parties)]

    def run_of(party: int) -> Run:
        known = PartyWeights(plans, opened.values[party], held[party][1], held[party][0], party == 0)
        last = party == parties - 1
        sizes = circuit.correction_sizes()
        bundle = Bundle(bundle_seeds[party], sizes, corrections if last else b"", last, known)

        async def body(session: Session) -> Tensor:
            prepared = circuit.prepare(session, bundle, known)
            return (await circuit.run(session, prepared, {INPUT: Share(inputs[party], session.first)})).data

        return Run(body, party, parties)

    return exchange([run_of(party) for party in range(parties)])


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("lead", [1, MODELS])
@pytest.mark.parametrize(
    ("form", "sample", "weight", "output"),
    [
        (Matmul(), (7,), (4, 7), (4,)),
        (Convolution((1, 2), (1, 0, 2, 1), (1, 1), 1), (3, 6, 7), (4, 3, 3, 2), (4, 7, 4)),
        (Convolution((1, 1), (2, 2, 2, 2), (2, 2), 2), (4, 5, 5), (6, 2, 3, 3), (6, 5, 5)),
        (PerChannel(), (3, 4, 5), (3,), (3, 4, 5)),
    ],
)
def test_products_are_exact_and_cost_one_opening_of_the_input(
    parties: int, lead: int, form: Form, sample: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...]
) -> None:
    batch = 2
    x = _draw(1, lead, batch, *sample)
    weights = [{"w": _draw(10 + m, *weight), "b": _draw(20 + m, output[0])} for m in range(MODELS)]
    models = tuple(range(MODELS))
    builder = CircuitBuilder((INPUT,))
    masked = builder.add("mask", Mask(tuple(x.shape)), INPUT)
    shape = (MODELS, batch, *output)
    product = Product(shape, form, WeightRef(models, "w"), WeightRef(models, "b"), 5)
    lifted = AddWeight(WeightRef(models, "b"), len(output), 3)
    name = builder.add("product", product, masked)
    # A second reader of the same masked tensor opens nothing.
    builder.add("unused", product, masked)
    circuit = builder.build(name if len(output) > 1 else builder.add("lift", lifted, name))

    done = _run(circuit, _plan(weight, (output[0],)), weights, x, parties)

    expected = circuit.plain(PlainWeights(weights), {INPUT: x})
    assert torch.equal(torch.stack(done.values).sum(0), expected)
    assert done.costs == [Cost(1, 64 * x.numel())] * parties
    assert [node.name for node in circuit.nodes] == ["mask", "product"] + ([] if len(output) > 1 else ["lift"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "out", "kernel", "side", "stride", "dilation", "groups"),
    [
        (64, 64, 3, 32, 1, 1, 1),
        (64, 128, 3, 32, 2, 1, 1),
        (256, 512, 1, 8, 2, 1, 1),
        (512, 512, 3, 4, 1, 1, 1),
        (128, 128, 3, 16, 1, 1, 32),
        (128, 128, 3, 16, 2, 1, 128),
        (64, 64, 3, 16, 1, 2, 1),
        (64, 128, 3, 17, 2, 2, 4),
    ],
)
def test_convolutions_of_a_resnet_on_shares(
    inside: int, out: int, kernel: int, side: int, stride: int, dilation: int, groups: int
) -> None:
    pad = dilation * (kernel - 1) // 2
    form = Convolution((stride, stride), (pad,) * 4, (dilation, dilation), groups)
    x = _draw(1, 1, 1, inside, side, side)
    shape = (out, inside // groups, kernel, kernel)
    weights = [{"w": _draw(10 + m, *shape), "b": _draw(20 + m, out)} for m in range(MODELS)]
    real = torch.stack(
        [
            functional.conv2d(x[0].double(), w["w"].double(), None, stride, pad, dilation, groups).long()
            + w["b"][:, None, None]
            for w in weights
        ]
    )
    builder, models = CircuitBuilder((INPUT,)), tuple(range(MODELS))
    masked = builder.add("mask", Mask(tuple(x.shape)), INPUT)
    product = Product(tuple(real.shape), form, WeightRef(models, "w"), WeightRef(models, "b"))

    done = _run(builder.build(builder.add("product", product, masked)), _plan(shape, (out,)), weights, x, 2)

    # Sums of products of 2^20 stay below 2^53: float64 has them exactly.
    assert torch.equal(torch.stack(done.values).sum(0), real)


def test_the_opened_weights_are_uniform() -> None:
    plan, engine, secret = _plan((64, 64), (1,)), NativeEngine(), fresh_seed()
    shares = sharing.share_elements(np.zeros(64 * 64 + 1, dtype=np.int64), 2)

    runs = [engine.open_weights([plan], [shares[i]], [engine.mask_seed(secret, b"d" * 32, i)], i, 2) for i in range(2)]
    opened = exchange(runs).values

    assert opened[0] == opened[1]
    assert chi_square(opened[0][0]) < IMPROBABLE


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("stride", "pad"), [(1, 0), (2, 1), (3, 2)])
def test_convolution_is_that_of_torch(stride: int, pad: int, dilation: int, groups: int) -> None:
    x, weight = _draw(1, 1, 2, 4, 9, 8), _draw(2, 2, 6, 4 // groups, 3, 2)

    result = ring.convolve(x, weight, (stride, stride), (pad,) * 4, (dilation, dilation), groups)

    for model in range(2):
        real = torch.nn.functional.conv2d(x[0].double(), weight[model].double(), None, stride, pad, dilation, groups)
        assert torch.equal(result[model], real.long())


def test_high_part_is_the_unsigned_shift() -> None:
    x = torch.tensor([-1, -(2**63), 2**63 - 1, 5])

    assert ring.high_part(x, 16).tolist() == [2**48 - 1, 2**47, 2**47 - 1, 0]
    assert ring.high_part(x, 0).tolist() == x.tolist()
    assert ring.top_bit(x).tolist() == [1, 1, 0, 0]


def test_elements_travel_as_little_endian_bytes() -> None:
    x = torch.tensor([[1, -2], [2**40, 0]])

    assert ring.to_bytes(x.T) == np.array([1, 2**40, -2, 0], dtype="<i8").tobytes()
    assert torch.equal(ring.from_bytes(ring.to_bytes(x), (2, 2)), x)
