"""Every nonlinear gate against the oracle, at its stated cost, for 2, 3 and 5 parties, at the edges of its range too.

The expected costs are written out here as the docstrings state them, not taken from `Gate.cost`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import Add, AveragePool, Reshape, Subsample
from finode.smpc.gates.maximum import ArgMax, OneHot, Winners
from finode.smpc.gates.pool import MaxPool, Window, stages
from finode.smpc.gates.softmax import EXP_BITS, PROBABILITY_BITS, RECIPROCAL_BITS, Exp, Multiply, Reciprocal, Softmax
from finode.smpc.gates.truncate import Truncate, TruncateRelu
from finode.smpc.session import Cost
from finode.smpc.simulation import GateRun, simulate
from finode.smpc.weights import PlainWeights

F = 16
ONE = 1 << F
BITS = 28
PARTIES = pytest.mark.parametrize("parties", [2, 3, 5])
NO_WEIGHTS = PlainWeights([])


def values(limit: int, *shape: int, shift: int = F, seed: int = 0) -> Tensor:
    """Random values below `limit` at scale 2^(16 + shift), of all magnitudes; the edges, zero and ties in front.

    The edge of what is to be truncated lies one unit lower: a truncation may add one.
    """
    largest = (limit << F) - (2 if shift else 1)
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(shape).prod()
    exponents = torch.rand(int(size), generator=generator, dtype=torch.float64) * (F + 12)
    signs = torch.randint(0, 2, (int(size),), generator=generator) * 2 - 1
    x = (signs * 2**exponents).long().clamp(-largest, largest)
    edges = torch.tensor([0, 1, -1, 2, -2, largest, -largest, ONE, -ONE, 63, 64, -64, 65, 0])
    x[: len(edges)] = edges
    digits = torch.randint(0, 1 << shift, x.shape, generator=generator) if shift else torch.zeros_like(x)
    return ((x << shift) + digits).reshape(shape)


def run(gate: Gate[Any], *inputs: Tensor, parties: int, expected: Cost) -> tuple[GateRun, Tensor]:
    """Simulate a gate, hold the meter to its cost, and return what it gave and the oracle's value."""
    done = simulate(gate, *inputs, parties=parties)
    assert done.costs == [expected] * parties
    assert gate.cost() == expected
    return done, gate.plain(NO_WEIGHTS, *inputs)


def off_by(opened: Tensor, plain: Tensor) -> int:
    """The largest difference, in units of the last place."""
    assert opened.shape == plain.shape
    return int((opened - plain).abs().max())


@PARTIES
@pytest.mark.parametrize("shift", [0, 3, 16, 18, 38])
def test_truncate_is_exact_to_one_unit_over_its_whole_range(parties: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(shift)
    z = torch.randint(-(2**62) + 1, 2**62, (1000,), generator=generator)
    z[:7] = torch.tensor([2**62 - 1, 1 - 2**62, 0, 1, -1, 1 << shift, -(1 << shift)])

    done, plain = run(Truncate((1000,), shift), z, parties=parties, expected=Cost(1, 64 * 1000))

    assert off_by(done.opened, plain) <= (1 if shift else 0)
    # r' and r63 (mod 2^shift): 8 bytes, and as few as hold `shift` bits.
    assert done.correction_bytes == {0: 0, 3: 9, 16: 10, 18: 12, 38: 16}[shift] * 1000


@PARTIES
@pytest.mark.parametrize("shift", [0, 16, 18])
def test_truncate_relu_up_to_4095(parties: int, shift: int) -> None:
    z = values(4096, 1000, shift=shift)

    done, plain = run(TruncateRelu((1000,), shift, BITS), z, parties=parties, expected=Cost(3, 73 * 1000))

    assert off_by(done.opened, plain) <= (1 if shift else 0)
    # A value that is negative by more than the truncation's unit gives exactly zero, and never less.
    assert not done.opened[(z >> shift) < -1].any()
    assert int(done.opened.min()) >= 0


def test_truncate_relu_costs_about_seventy_bytes_of_corrections() -> None:
    done = simulate(TruncateRelu((1000,), F, BITS), values(4096, 1000), parties=2)

    assert done.correction_bytes / 1000 < 71


@PARTIES
@pytest.mark.parametrize(
    ("bits", "rounds", "per_value"), [(6, 2, 65), (7, 3, 64 + 2 + 1), (20, 3, 64 + 6 + 1), (34, 3, 64 + 10 + 1)]
)
def test_relu_over_other_ranges_has_other_digits(parties: int, bits: int, rounds: int, per_value: int) -> None:
    limit = 1 << bits
    x = torch.randint(-limit + 1, limit, (1000,), generator=torch.Generator().manual_seed(bits))
    x[:5] = torch.tensor([limit - 1, 1 - limit, 0, 1, -1])

    done, plain = run(TruncateRelu((1000,), 0, bits), x, parties=parties, expected=Cost(rounds, per_value * 1000))

    assert torch.equal(done.opened, plain)


@PARTIES
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shift", [0, 16])
def test_max_pool_of_2x2_up_to_2047(parties: int, relu: bool, shift: int) -> None:
    z = values(2048, 1, 4, 1, 16, 16, shift=shift)
    z[0, 1, :, :, 1::2] = z[0, 1, :, :, ::2]  # ties in every window
    z[0, 2, :, 1::2] = z[0, 2, :, ::2] + (1 << shift)  # one unit apart
    z[0, 3] = -z[0, 3].abs()
    window = Window((2, 2), (2, 2), (0, 0, 0, 0))
    windows, comparisons = 4 * 64, 10 if relu else 6
    expected = Cost(4, 64 * 1024 + windows * (9 * comparisons + 4))

    done, plain = run(MaxPool(tuple(z.shape), window, shift, BITS, relu), z, parties=parties, expected=expected)

    assert off_by(done.opened, plain) <= (1 if shift else 0)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "window",
    [
        Window((1, 3), (1, 2), (0, 1, 0, 1)),
        Window((2, 1), (1, 1), (0, 0, 1, 0)),
        Window((2, 2), (1, 1), (1, 1, 1, 1)),
        Window((1, 2), (1, 1), (0, 0, 0, 0), (1, 3)),
    ],
)
def test_max_pool_with_overlaps_pads_and_dilations(window: Window, relu: bool) -> None:
    z = values(2048, 2, 2, 3, 7, 8)

    done = simulate(MaxPool(tuple(z.shape), window, F, BITS, relu), z, parties=3)

    gate = MaxPool(tuple(z.shape), window, F, BITS, relu)
    assert off_by(done.opened, gate.plain(NO_WEIGHTS, z)) <= 1
    assert done.costs == [gate.cost()] * 3
    assert done.costs[0].rounds == (3 if window.kernel == (2, 1) or window.kernel == (1, 2) else 4) + (
        1 if relu and 2 in window.kernel and 1 in window.kernel else 0
    )


@pytest.mark.parametrize("profile", ["latency", "throughput"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"),
    [(2, 2, 0), (3, 1, 1), (3, 2, 1), (5, 3, 2), (7, 7, 0), (8, 8, 0), (11, 2, 0), (16, 16, 0)],
)
def test_stages_make_up_any_window(kernel: int, stride: int, pad: int, profile: str) -> None:
    x = torch.randint(-(2**20), 2**20, (1, 1, 2, 20, 23), generator=torch.Generator().manual_seed(kernel))
    whole = torch.nn.functional.max_pool2d(x[0].double(), kernel, stride, pad).long()[None]

    for window in stages(Window((kernel, kernel), (stride, stride), (pad,) * 4), profile):
        assert window.kernel[0] * window.kernel[1] <= 4
        x = MaxPool(tuple(x.shape), window, 0, BITS, relu=False).plain(NO_WEIGHTS, x)

    assert torch.equal(x, whole)


def _expected_block(n: int, blocks: int, digit_bits: int = 8, payload: bool = False) -> Cost:
    pairs, width = n * (n - 1) // 2, (n - 1).bit_length()
    per_block = 64 * n * (2 if payload else 1) + (digit_bits + 1) * pairs + width * n
    return Cost(4, per_block * blocks)


@PARTIES
@pytest.mark.parametrize("gives", list(Winners))
@pytest.mark.parametrize("classes", [2, 10, 32])
def test_argmax_up_to_2047_with_ties(parties: int, gives: Winners, classes: int) -> None:
    rows = -(-1000 // classes)
    z = values(2048, rows, classes)
    z[1] = z[1, 0]
    z[2] = torch.arange(classes) // 2 << F
    z[3] = (2047 << F << F) - (torch.arange(classes) << F)  # one unit apart at the top of the range
    z &= -1 << F  # without the digits that are dropped the order is exact

    gate = ArgMax((rows, classes), F, BITS, gives)
    done, plain = run(gate, z, parties=parties, expected=_expected_block(classes, rows))

    # Truncation may push two values that are one unit apart together, so rows 2 and 3 are compared by value.
    if gives is Winners.ONE_HOT:
        assert torch.equal(done.opened.sum(-1), torch.ones(rows, dtype=torch.int64))
        index = done.opened.argmax(-1)
    else:
        index = done.opened if gives is Winners.INDEX else done.opened[..., 0]
    x = z >> F
    assert int((x.amax(-1) - x.gather(-1, index[:, None])[:, 0]).max()) <= 1
    if gives is Winners.TOP:
        assert off_by(done.opened[..., 1], plain[..., 1]) <= 1


@PARTIES
def test_argmax_of_untruncated_values_is_exact_and_ties_go_to_the_lowest_index(parties: int) -> None:
    x = values(2048, 100, 10, shift=0)
    x[:50, 5:] = x[:50, :5]
    x[50] = 7

    gate = ArgMax((100, 10), 0, BITS, Winners.TOP)
    done, plain = run(gate, x, parties=parties, expected=_expected_block(10, 100))

    assert torch.equal(done.opened, plain)
    assert done.opened[50].tolist() == [0, 7]


@PARTIES
def test_argmax_of_counts_takes_three_rounds(parties: int) -> None:
    counts = torch.randint(0, 4, (120, 10), generator=torch.Generator().manual_seed(1))

    gate = ArgMax((120, 10), 0, 4, Winners.INDEX)
    done, plain = run(gate, counts, parties=parties, expected=Cost(3, _expected_block(10, 120, digit_bits=0).bits))

    assert torch.equal(done.opened, plain)


@pytest.mark.parametrize(
    ("classes", "levels"),
    [
        (33, [(2, 17), (1, 2)]),
        (100, [(4, 25), (1, 4)]),
        (1000, [(32, 32), (1, 32)]),
        (1100, [(35, 32), (2, 18), (1, 2)]),
    ],
)
def test_more_than_32_values_meet_in_a_tournament(classes: int, levels: list[tuple[int, int]]) -> None:
    rows = 3
    x = values(2048, rows, classes, shift=0)
    x[0, classes // 2 :] = x[0].max()
    x[1] = torch.arange(classes)
    expected = Cost(0, 0)
    for level, (blocks, size) in enumerate(levels):
        expected = expected.then(_expected_block(size, rows * blocks, payload=level > 0))

    done, plain = run(ArgMax((rows, classes), 0, BITS, Winners.TOP), x, parties=2, expected=expected)

    assert torch.equal(done.opened, plain)


def test_the_largest_of_one() -> None:
    z = values(2048, 20, 1)

    done, plain = run(ArgMax((20, 1), F, BITS, Winners.TOP), z, parties=2, expected=Cost(1, 64 * 20))

    assert off_by(done.opened, plain) <= 1
    assert not done.opened[:, 0].any()


@PARTIES
@pytest.mark.parametrize(("classes", "width"), [(1, 1), (10, 4), (100, 7)])
def test_one_hot(parties: int, classes: int, width: int) -> None:
    index = torch.randint(0, classes, (2, 50), generator=torch.Generator().manual_seed(classes))

    done, plain = run(OneHot((2, 50), classes), index, parties=parties, expected=Cost(1, 100 * width))

    assert torch.equal(done.opened, plain)


@PARTIES
def test_exp_is_close_everywhere_and_cut_off_below_its_table(parties: int) -> None:
    x = -values(4080, 1000, shift=0).abs()
    x[500:] = -(torch.arange(500) << (F - 5))  # 0 down to -15.6
    x[20:24] = torch.tensor([-round(15.875 * ONE), -round(15.875 * ONE) - 1, -1, -16 * ONE])

    done, plain = run(Exp((1000,), F, BITS), x, parties=parties, expected=Cost(3, 137 * 1000))

    real = (x.double() / ONE).exp()
    assert float((done.opened / 2.0**EXP_BITS - real).abs().max()) < 2**-14
    assert off_by(done.opened, plain) <= 2 ** (EXP_BITS - 14)
    assert not done.opened[x < -round(15.875 * ONE)].any()


@PARTIES
@pytest.mark.parametrize("largest", [1, 10, 31])
def test_reciprocal_is_close_from_one_to_the_number_of_classes(parties: int, largest: int) -> None:
    generator = torch.Generator().manual_seed(largest)
    x = (1 + torch.rand(1000, generator=generator) * (largest - 1)).mul(2**EXP_BITS).long()
    x[:4] = torch.tensor([1 << EXP_BITS, (1 << EXP_BITS) - 3, largest << EXP_BITS, (largest << EXP_BITS) + 9])

    done, plain = run(Reciprocal((1000,), largest), x, parties=parties, expected=Cost(1, 64 * 1000))

    real = 2.0**EXP_BITS / x.double()
    assert float((done.opened / 2.0**RECIPROCAL_BITS - real).abs().max()) < 2**-14
    assert off_by(done.opened, plain) < 2 ** (RECIPROCAL_BITS - 13)


@PARTIES
def test_multiply_broadcasts_and_wraps(parties: int) -> None:
    x = torch.tensor([[3, -1, 2**62], [5, 7, -9]])
    y = torch.tensor([[5], [-(2**61)]])

    done, plain = run(Multiply((2, 3), (2, 1)), x, y, parties=parties, expected=Cost(1, 64 * 8))

    assert torch.equal(done.opened, plain)
    assert torch.equal(plain, x * y)


@PARTIES
@pytest.mark.parametrize("f", [12, 16, 20])
def test_softmax_of_ten(parties: int, f: int) -> None:
    generator = torch.Generator().manual_seed(f)
    rows, bits = 100, f + 12
    logits = torch.randn((rows, 10), generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, rows)[:, None]
    logits[0] = 0
    logits[1] = torch.tensor([2047.0, -2047.0] * 5)
    z = (logits * 2.0 ** (2 * f)).long()
    pairs = (5 if f == 20 else 4) if f > 12 else 3
    pair_bits = 2 * pairs + 1
    maximum = rows * (64 * 10 + 45 * pair_bits + 4 * 10)
    expected = Cost(9, maximum + rows * 10 * (64 + 2 * pairs + 64 + 1) + rows * 64 + rows * 64 * 11)

    done, plain = run(Softmax((rows, 10), f, f, bits), z, parties=parties, expected=expected)

    opened = done.opened / 2.0**PROBABILITY_BITS
    tolerance = 2.0**-12 if f > 12 else 2.0**-10
    assert float((opened - logits.softmax(-1)).abs().max()) < tolerance
    assert float((opened - plain / 2.0**PROBABILITY_BITS).abs().max()) < tolerance


@pytest.mark.slow
def test_softmax_of_a_thousand_classes() -> None:
    logits = torch.randn((2, 1000), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3

    done = simulate(Softmax((2, 1000), F, F, BITS), (logits * 2.0**32).long(), parties=2)

    assert done.costs[0].rounds == 13
    assert float((done.opened / 2.0**PROBABILITY_BITS - logits.softmax(-1)).abs().max()) < 2**-11


@pytest.mark.parametrize(
    ("gate", "inputs"),
    [
        (Add(16, 0), (values(8, 2, 3, 5, shift=0), values(8, 2, 3, 5))),
        (Reshape((20,)), (values(8, 2, 3, 4, 5),)),
        (Subsample((2, 3)), (values(8, 1, 2, 3, 8, 8),)),
        (AveragePool(Window((2, 2), (2, 2), (0,) * 4), 8, 8, False, F), (values(8, 1, 2, 3, 8, 8),)),
        (AveragePool(Window((3, 3), (1, 1), (1,) * 4), 8, 8, False, F), (values(8, 1, 2, 3, 8, 8, shift=0),)),
    ],
)
def test_local_gates_cost_nothing(gate: Gate[Any], inputs: tuple[Tensor, ...]) -> None:
    done, plain = run(gate, *inputs, parties=3, expected=Cost(0, 0))

    assert torch.equal(done.opened, plain)
    assert done.correction_bytes == 0


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("kernel", "pad", "raised"), [(2, 0, 2), (4, 0, 4), (2, 1, 2), (3, 1, 20), (7, 0, 22)])
def test_average_pool_is_the_mean_at_its_raised_scale(kernel: int, pad: int, raised: int, include: bool) -> None:
    x = values(2048, 1, 1, 3, 8, 8, shift=0)
    gate = AveragePool(Window((kernel, kernel), (1, 1), (pad,) * 4), 8, 8, include, F)

    mean = gate.plain(NO_WEIGHTS, x) / 2.0**gate.raised_bits

    real = torch.nn.functional.avg_pool2d(x[0].double(), kernel, 1, pad, count_include_pad=include)[None]
    assert float((mean - real).abs().max()) < 2.0 ** (-F) * 2048 * ONE
    if include or not pad:
        assert gate.raised_bits == raised
