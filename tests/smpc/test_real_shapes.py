"""Operators at the shapes of real models, and at other ranges than the default, on shares of two parties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from finode.smpc.gates import spline
from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import AveragePool
from finode.smpc.gates.log_softmax import LOG_BITS, LogSoftmax
from finode.smpc.gates.maximum import ArgMax, Winners
from finode.smpc.gates.piecewise import PiecewiseLinear, clip
from finode.smpc.gates.pool import MaxPool, Window
from finode.smpc.gates.softmax import PROBABILITY_BITS, Softmax
from finode.smpc.gates.spline import Curve, Spline
from finode.smpc.gates.truncate import TruncateRelu
from finode.smpc.simulation import simulate

F, BITS = 16, 28
RESNET = (1, 1, 64, 32, 32)
"""What the first layer of a ResNet gives for one image of 32 x 32."""
LENET = (1, 1, 6, 28, 28)
HALF = Window((2, 2), (2, 2), (0,) * 4)
THIRD = Window((3, 3), (2, 2), (1,) * 4)


def draw(*shape: int, deviation: float = 2.0) -> Tensor:
    """Normal values as products give them: at scale 2^(2 F), with digits to drop."""
    return (
        (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64) * deviation)
        .mul(2.0 ** (2 * F))
        .long()
    )


def real(z: Tensor) -> Tensor:
    return z.double() / 2.0 ** (2 * F)


def off_by(gate: Gate[Any], z: Tensor, expected: Tensor, bits: int = F) -> float:
    """The largest difference between what the gate gives on shares and the expected reals."""
    opened = simulate(gate, z, parties=2).opened.double() / 2.0**bits
    assert opened.shape == expected.shape
    return float((opened - expected).abs().max())


def test_relu_after_the_first_layer_of_a_resnet() -> None:
    z = draw(*RESNET)

    assert off_by(TruncateRelu(RESNET, F, BITS), z, real(z).relu()) <= 2.0 ** (1 - F)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [LENET, RESNET])
def test_max_pool_of_images(shape: tuple[int, ...], relu: bool) -> None:
    z = draw(*shape)

    expected = functional.max_pool2d(real(z)[0], 2)[None]

    gate = MaxPool(shape, HALF, F, BITS, relu)
    assert off_by(gate, z, expected.relu() if relu else expected) <= 2.0 ** (1 - F)


@pytest.mark.parametrize(
    ("shape", "window"),
    [(LENET, HALF), (RESNET, HALF), (RESNET, THIRD), ((1, 1, 512, 4, 4), Window((4, 4), (1, 1), (0,) * 4))],
)
def test_average_pool_of_images(shape: tuple[int, ...], window: Window) -> None:
    z = draw(*shape)
    gate = AveragePool(window, shape[-2], shape[-1], True, F)

    expected = functional.avg_pool2d(real(z)[0], window.kernel, window.strides, window.pads[:2])[None]

    assert off_by(gate, z, expected, 2 * F + gate.raised_bits) < 2.0 ** (4 - F)


CURVES: list[tuple[Curve, Callable[[Tensor], Tensor]]] = [
    (spline.GELU, functional.gelu),
    (spline.SIGMOID, torch.sigmoid),
    (spline.TANH, torch.tanh),
    (spline.EXP, torch.exp),
]


@pytest.mark.parametrize("range_bits", [11, 13, 19])
@pytest.mark.parametrize(("curve", "function"), CURVES, ids=[curve.name for curve, _ in CURVES])
def test_smooth_functions_of_a_transformers_layer_in_every_range(
    curve: Curve, function: Callable[[Tensor], Tensor], range_bits: int
) -> None:
    z, largest = draw(1, 1, 16, 256), (2**range_bits - 1) << 2 * F
    z[..., 0, 0] = -largest
    z[..., 0, 1] = largest
    if curve is spline.EXP:
        z = z.clamp(max=round(7.4 * 2.0 ** (2 * F)))
    expected = function(real(z))

    # Where exp is large, it is exact relatively.
    size = expected.clamp(min=1) if curve is spline.EXP else torch.ones_like(expected)
    opened = simulate(Spline(tuple(z.shape), F, F, F + range_bits + 1, curve), z, parties=2).opened
    assert float(((opened / 2.0**F - expected).abs() / size).max()) < 2.5e-4


@pytest.mark.parametrize("range_bits", [13, 19])
def test_clip_in_every_range(range_bits: int) -> None:
    z, largest = draw(1, 1, 16, 256, deviation=2.0 ** (range_bits - 3)), 2.0**range_bits - 1
    z = z.clamp(-round(largest * 2 ** (2 * F)), round(largest * 2 ** (2 * F)))
    z[..., 0, :2] = torch.tensor([-1, 1]) * round(largest * 2 ** (2 * F))
    bound = 2 ** (range_bits - 2)

    gate = PiecewiseLinear(tuple(z.shape), F, F + range_bits + 1, clip(-bound << F, bound << F))

    assert off_by(gate, z, real(z).clamp(-bound, bound)) <= 2.0 ** (1 - F)


@pytest.mark.parametrize("range_bits", [11, 13, 19])
@pytest.mark.parametrize("classes", [10, 1000])
def test_softmax_and_its_logarithm_over_all_classes_in_every_range(classes: int, range_bits: int) -> None:
    z, largest = draw(3, classes, deviation=3.0), 2 ** (range_bits - 1)
    z[1, :2] = torch.tensor([largest, -largest]) << 2 * F
    z[2] >>= 6  # all about equal: exp adds up to nearly the number of classes
    bits = F + range_bits + 1

    log = LogSoftmax((3, classes), F, F, bits)
    assert off_by(log, z, real(z).log_softmax(-1), LOG_BITS) < 2.0**-11
    probabilities = Softmax((3, classes), F, F, bits)
    assert off_by(probabilities, z, real(z).softmax(-1), PROBABILITY_BITS) < 2.0**-11


def test_the_largest_of_a_thousand_logits() -> None:
    z = draw(2, 1000, deviation=3.0)

    opened = simulate(ArgMax((2, 1000), F, BITS, Winners.TOP), z, parties=2).opened

    assert opened[:, 0].tolist() == z.argmax(-1).tolist()
    assert float((opened[:, 1] / 2.0**F - real(z).amax(-1)).abs().max()) <= 2.0 ** (1 - F)
