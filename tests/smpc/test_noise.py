"""The discrete Gaussian: its distribution with a seeded source, and the privacy it is stated to give."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction

import pytest

from finode.errors import InputError
from finode.smpc.noise import DiscreteGaussian, epsilon, zcdp


def gaussian(variance: Fraction, seed: int) -> DiscreteGaussian:
    return DiscreteGaussian(variance, random.Random(seed).randrange)  # noqa: S311 (the same in every run)


def weights(variance: float, width: int) -> dict[int, float]:
    """The distribution itself, by its definition."""
    raw = {x: math.exp(-(x**2) / (2 * variance)) for x in range(-width, width + 1)}
    total = sum(raw.values())
    return {x: weight / total for x, weight in raw.items()}


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(1), Fraction(9, 4), Fraction(25)])
def test_samples_are_distributed_as_defined(variance: Fraction) -> None:
    count = 4000
    samples = gaussian(variance, 11).vector(count)

    expected = weights(float(variance), 60)
    seen = Counter(samples)
    # Chi-square over the values that come often enough, with 6 standard deviations of room.
    often = [x for x, p in expected.items() if p * count >= 20]
    statistic = sum((seen[x] - expected[x] * count) ** 2 / (expected[x] * count) for x in often)
    assert statistic < len(often) + 6 * math.sqrt(2 * len(often))
    real = sum(p * x**2 for x, p in expected.items())
    assert abs(sum(samples) / count) < 6 * math.sqrt(real / count)
    assert abs(sum(x * x for x in samples) / count - real) < 12 * real / math.sqrt(count)


def test_large_variances_need_no_floats() -> None:
    samples = gaussian(Fraction(2**40), 5).vector(500)

    deviation = math.sqrt(sum(x * x for x in samples) / 500)
    assert 0.8 < deviation / 2**20 < 1.2
    assert abs(sum(samples)) < 6 * 2**20 * math.sqrt(500)
    # The low digits are as good as any: half of the samples are odd.
    assert 170 < sum(x & 1 for x in samples) < 330


def test_the_system_is_the_source_by_default() -> None:
    one, other = (DiscreteGaussian(Fraction(10**12)).vector(8) for _ in range(2))

    assert one != other
    assert gaussian(Fraction(10**12), 1).vector(8) == gaussian(Fraction(10**12), 1).vector(8)


def test_privacy_by_its_formulas() -> None:
    assert zcdp(10, 1) == pytest.approx(0.005)
    assert epsilon(0.005, 1e-6) == pytest.approx(0.005 + 2 * math.sqrt(0.005 * math.log(1e6)))
    assert epsilon(0, 1e-6) == 0


def test_the_stated_rho_bounds_what_one_input_can_change() -> None:
    """The Renyi divergence of the noise and its shift by the sensitivity, by its definition, for several orders."""
    variance, shift = 6.25, 2
    p = weights(variance, 80)
    rho = zcdp(math.sqrt(variance), shift)

    for order in (1.5, 2.0, 4.0):
        total = sum(p[x] ** order * p[x + shift] ** (1 - order) for x in range(-30, 31))
        assert math.log(total) / (order - 1) <= rho * order * (1 + 1e-9)


def test_what_makes_no_noise_is_refused() -> None:
    with pytest.raises(InputError, match="variance 0"):
        DiscreteGaussian(Fraction(0))
    for sigma, sensitivity in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match="above zero"):
            zcdp(sigma, sensitivity)
    for rho, delta in ((-1, 0.5), (1, 0), (1, 1)):
        with pytest.raises(InputError, match="delta"):
            epsilon(rho, delta)
