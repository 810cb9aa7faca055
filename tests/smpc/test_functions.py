"""The gates beyond a classifier's first ones, as tests/smpc/test_gates.py does it for those: against the oracle, at the
cost that their docstrings state, for 2, 3 and 5 parties, at the edges of their ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc.gates import spline
from finode.smpc.gates.base import Gate
from finode.smpc.gates.layout import Concat, Pad, Slice, Subtract, Times, Transpose
from finode.smpc.gates.log_softmax import LOG_BITS, Log, LogSoftmax
from finode.smpc.gates.piecewise import Pieces, PiecewiseLinear, clip, leaky
from finode.smpc.gates.product import MatrixProduct
from finode.smpc.gates.softmax import EXP_BITS
from finode.smpc.gates.spline import Curve, Spline
from finode.smpc.session import Cost
from finode.smpc.simulation import GateRun, simulate
from finode.smpc.weights import PlainWeights

F = 16
ONE = 1 << F
BITS = 28
PARTIES = pytest.mark.parametrize("parties", [2, 3, 5])
NO_WEIGHTS = PlainWeights([])


def run(gate: Gate[Any], *inputs: Tensor, parties: int, expected: Cost) -> tuple[GateRun, Tensor]:
    """Simulate a gate, hold the meter to its cost, and return what it gave and the oracle's value."""
    done = simulate(gate, *inputs, parties=parties)
    assert done.costs == [expected] * parties
    assert gate.cost() == expected
    plain = gate.plain(NO_WEIGHTS, *inputs)
    assert done.opened.shape == plain.shape
    return done, plain


def spread(limit: float, count: int, shift: int, f: int = F) -> Tensor:
    """`count` values in (-limit, limit), evenly and then of all magnitudes, at scale 2^(f + shift)."""
    generator = torch.Generator().manual_seed(count)
    even = torch.linspace(-limit, limit, count // 2, dtype=torch.float64)
    exponents = torch.rand(count - len(even), generator=generator, dtype=torch.float64) * (f + 11) - f
    signs = torch.randint(0, 2, exponents.shape, generator=generator) * 2 - 1
    x = (torch.cat((even, signs * 2**exponents)) * 2.0**f).long()
    largest = (2 ** (f + 11)) - 2
    x[:3] = torch.tensor([0, largest, -largest])
    digits = torch.randint(0, 1 << shift, x.shape, generator=generator) if shift else torch.zeros_like(x)
    return (x.clamp(-largest, largest) << shift) + digits


# ---- functions of straight pieces


@PARTIES
@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize(
    ("pieces", "raised", "knots", "real"),
    [
        (leaky(round(0.1 * ONE), ONE), F, 1, lambda x: torch.nn.functional.leaky_relu(x, round(0.1 * ONE) / ONE)),
        (clip(0, 6 * ONE), 0, 2, lambda x: x.clamp(0, 6)),
        (clip(-ONE, None), 0, 1, lambda x: x.clamp(min=-1)),
        (clip(None, ONE // 2), 0, 1, lambda x: x.clamp(max=0.5)),
        (clip(3 * ONE, ONE), 0, 2, lambda x: torch.full_like(x, 3)),
        (Pieces((0,), (-1, 1), 0), 0, 1, torch.abs),
    ],
    ids=["leaky", "relu6", "least", "most", "crossed", "absolute"],
)
def test_straight_pieces_are_exact_to_the_truncation(
    parties: int, shift: int, pieces: Pieces, raised: int, knots: int, real: Callable[[Tensor], Tensor]
) -> None:
    z = spread(8, 600, shift)

    gate = PiecewiseLinear((600,), shift, BITS, pieces)
    done, plain = run(gate, z, parties=parties, expected=Cost(3, (64 + 9 * knots) * 600))

    assert int((done.opened - plain).abs().max()) <= ((1 << raised) if shift else 0)
    assert float((plain.double() / 2.0 ** (F + raised) - real((z >> shift).double() / 2.0**F)).abs().max()) < 2.0**-F


def test_a_second_knot_costs_55_bytes_of_corrections() -> None:
    sizes = [
        simulate(PiecewiseLinear((1000,), F, BITS, pieces), spread(8, 1000, F), parties=2).correction_bytes / 1000
        for pieces in (clip(0, None), clip(0, 6 * ONE))
    ]

    assert sizes[0] < 66
    assert sizes[1] - sizes[0] < 56


def test_pieces_that_make_no_function_are_refused() -> None:
    for wrong in (partial(Pieces, (), (1,), 0), partial(Pieces, (2, 1), (0, 1, 0), 0), partial(clip, None, None)):
        with pytest.raises(LocalError):
            wrong()


# ---- smooth functions

REAL: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "exp": torch.exp,
}
OFF_BY = {"gelu": 2.3e-4, "gelu_tanh": 2.3e-4, "tanh": 1.2e-4, "sigmoid": 8e-5, "erf": 2e-4, "exp": 2.0**-11}
"""The largest error of the curve itself, at 16 digits; of exp where it is below 1."""
ALL_CURVES = [spline.SIGMOID, spline.TANH, spline.ERF, spline.GELU, spline.GELU_TANH, spline.EXP]


@PARTIES
@pytest.mark.parametrize(("f", "shift"), [(16, 16), (16, 0), (12, 12), (20, 20)])
@pytest.mark.parametrize("curve", ALL_CURVES, ids=lambda curve: curve.name)
def test_a_spline_is_close_everywhere_at_its_stated_cost(curve: Curve, f: int, shift: int, parties: int) -> None:
    count, bits = 400, f + 12
    z = spread(9, count, shift, f)
    digit_bits = 2 * (-(-bits // 6) - 1)

    gate = Spline((count,), shift, f, bits, curve)
    done, plain = run(gate, z, parties=parties, expected=Cost(3, count * (64 + 192 + 2 * digit_bits + 64 + 2)))

    x = (z >> shift).double() / 2.0**f
    real = REAL[curve.name](x.clamp(max=7.5) if curve is spline.EXP else x)
    opened = done.opened.double() / 2.0**f
    inside = x < 7.5 if curve is spline.EXP else torch.full_like(x, True, dtype=torch.bool)
    # Either truncation may be off by a unit, and the steepest of the curves makes 1.13 of that of x.
    tolerance = torch.full_like(real, OFF_BY[curve.name] + 3 * 2.0**-f)
    if curve is spline.EXP:
        tolerance += 2.0**-f + real * (2.0**-12 + 2.0 ** (1 - f))
    assert bool(((opened - real).abs() <= tolerance)[inside].all())
    assert bool(((opened - plain.double() / 2.0**f).abs() <= tolerance)[inside].all())


@pytest.mark.parametrize("curve", ALL_CURVES[:-1], ids=lambda curve: curve.name)
def test_what_a_spline_is_off_by(curve: Curve) -> None:
    x = torch.arange(-10 * ONE, 10 * ONE, 7)

    value = Spline(tuple(x.shape), 0, F, BITS, curve).plain(NO_WEIGHTS, x)

    assert float((value.double() / 2.0**F - REAL[curve.name](x.double() / 2.0**F)).abs().max()) < OFF_BY[curve.name]


@pytest.mark.parametrize(("curve", "stated"), [(spline.GELU, 446), (spline.SIGMOID, 692), (spline.TANH, 692)])
def test_a_spline_costs_a_few_hundred_bytes_of_corrections(curve: Curve, stated: int) -> None:
    done = simulate(Spline((1000,), F, F, BITS, curve), spread(8, 1000, F), parties=2)

    assert abs(done.correction_bytes / 1000 - stated) < 5


def test_gelu_on_a_real_layers_shape() -> None:
    x = torch.randn((1, 1, 16, 256), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2

    done = simulate(Spline(tuple(x.shape), F, F, BITS, spline.GELU), (x * 2.0 ** (2 * F)).long(), parties=2)

    assert float((done.opened.double() / 2.0**F - torch.nn.functional.gelu(x)).abs().max()) < 2.5e-4


@PARTIES
@pytest.mark.parametrize("largest", [1, 10, 31])
def test_log_is_close_from_one_to_the_number_of_classes(parties: int, largest: int) -> None:
    generator = torch.Generator().manual_seed(largest)
    x = (1 + torch.rand(500, generator=generator) * (largest - 1)).mul(2**EXP_BITS).long()
    x[:4] = torch.tensor([1 << EXP_BITS, (1 << EXP_BITS) - 3, largest << EXP_BITS, (largest << EXP_BITS) + 9])

    done, plain = run(Log((500,), largest), x, parties=parties, expected=Cost(1, 64 * 500))

    assert float((done.opened.double() / 2.0**LOG_BITS - (x.double() / 2.0**EXP_BITS).log()).abs().max()) < 2**-14
    assert int((done.opened - plain).abs().max()) < 2 ** (LOG_BITS - 13)


@PARTIES
@pytest.mark.parametrize("f", [12, 16])
def test_log_softmax_of_ten(parties: int, f: int) -> None:
    rows, bits = 50, f + 12
    logits = torch.randn((rows, 10), generator=torch.Generator().manual_seed(f), dtype=torch.float64)
    logits *= torch.logspace(-2, 2, rows)[:, None]
    logits[0] = 0
    logits[1] = torch.tensor([2047.0, -2047.0] * 5)
    pairs = 4 if f > 12 else 3
    maximum = rows * (64 * 10 + 45 * (2 * pairs + 1) + 4 * 10)
    expected = Cost(8, maximum + rows * 10 * (64 + 2 * pairs + 64 + 1) + rows * 64)

    gate = LogSoftmax((rows, 10), f, f, bits)
    done, plain = run(gate, (logits * 2.0 ** (2 * f)).long(), parties=parties, expected=expected)

    tolerance = 2.0**-12 if f > 12 else 2.0**-10
    assert float((done.opened.double() / 2.0**LOG_BITS - logits.log_softmax(-1)).abs().max()) < tolerance
    assert float((done.opened - plain).double().abs().max() / 2.0**LOG_BITS) < tolerance


# ---- products and layout


@PARTIES
@pytest.mark.parametrize(("left", "right"), [((1, 2, 4, 5, 8), (3, 2, 4, 8, 6)), ((2, 1, 7, 3), (2, 1, 3, 1))])
def test_matrix_product_broadcasts_and_wraps(parties: int, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(left))
    x, y = (torch.randint(-(2**62), 2**62, shape, generator=generator) for shape in (left, right))

    expected = Cost(1, 64 * (x.numel() + y.numel()))
    done, plain = run(MatrixProduct(left, right), x, y, parties=parties, expected=expected)

    assert torch.equal(done.opened, plain)
    assert done.correction_bytes == 8 * plain.numel()


@pytest.mark.parametrize(
    ("gate", "inputs", "real"),
    [
        (Subtract(2, 0), 2, lambda x, y: 4 * x - y),
        (Times(-3), 1, lambda x: -3 * x),
        (Transpose((2, 0, 1)), 1, lambda x: x.permute(0, 1, 4, 2, 3)),
        (Concat(1, (0, 3)), 2, lambda x, y: torch.cat([x, 8 * y], 3)),
        (Slice((0, 2, 1), (1, -1, 3), (2, 2, 2)), 1, lambda x: x[:, :, :, [2, 1]][..., [1, 4]]),
        (Pad((0, 1, 2, 0, 0, 1), -7), 1, lambda x: torch.nn.functional.pad(x, (2, 1, 1, 0), value=-7)),
    ],
    ids=["subtract", "times", "transpose", "concat", "slice", "pad"],
)
def test_moving_values_costs_nothing(gate: Gate[Any], inputs: int, real: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(inputs)
    x = [torch.randint(-(2**40), 2**40, (1, 2, 2, 3, 5), generator=generator) for _ in range(inputs)]

    done, plain = run(gate, *x, parties=3, expected=Cost(0, 0))

    assert torch.equal(done.opened, plain)
    assert torch.equal(plain, real(*x))
    assert done.correction_bytes == 0


def test_all_parties_come_to_the_same_coefficients_on_any_machine() -> None:
    """Shares are multiplied with them: one unit of difference between two parties would make the value random."""
    known = hashlib.sha256(b"".join(spline.coefficients(curve, 14).numpy().tobytes() for curve in ALL_CURVES))

    assert known.hexdigest()[:16] == "e2507c09bbbc990c"
