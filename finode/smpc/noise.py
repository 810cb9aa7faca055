"""Noise for opened sums: the discrete Gaussian, sampled exactly, and what it gives in privacy. Standard library alone.

A sample of the discrete Gaussian of variance parameter s^2 is the integer x with probability in proportion to
exp(-x^2 / (2 s^2)). It is made as in Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy"
(NeurIPS 2020), algorithms 1 to 3: from uniform integers by rejection, all in integers, so that no rounding of a float
shows in the low bits. s^2 is a fraction.

Privacy is stated as zero-concentrated differential privacy [Bun, Steinke 2016], rho: noise of parameter s added to a
vector that one input changes by `sensitivity` at most (in Euclidean length) gives rho = sensitivity^2 / (2 s^2)
(Canonne, Kamath, Steinke, theorem 4 and corollary 16); rhos of several openings of the same input add up. Each party
adds noise of its own to its share: the sum is noisier still, and what N - 1 of them leave unprotected, because they
know their own noise, the noise of the last protects. So rho counts one party's noise.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from fractions import Fraction

from finode.errors import InputError

Below = Callable[[int], int]
"""A uniform integer from 0 to n - 1."""


class DiscreteGaussian:
    """Samples of the discrete Gaussian with the parameter s^2 = `variance`, which is about their variance."""

    def __init__(self, variance: Fraction, below: Below = secrets.randbelow) -> None:
        """`below` is the source of randomness: a cryptographic one, except in tests."""
        if variance <= 0:
            raise InputError(f"noise of variance {variance}: it must be above zero")
        self._variance = Fraction(variance)
        self._below = below
        # t = floor(sigma) + 1, from the fraction itself: floor(sqrt(floor(v))) = floor(sqrt(v)).
        self._scale = math.isqrt(self._variance.numerator // self._variance.denominator) + 1

    def sample(self) -> int:
        """Return one sample.

        1. y from the discrete Laplace of scale t.
        2. Accept it with probability exp(-(|y| - s^2 / t)^2 / (2 s^2)), else begin again.
        """
        numerator, denominator, scale = self._variance.numerator, self._variance.denominator, self._scale
        while True:
            y = self._laplace()
            # (|y| - s^2 / t)^2 / (2 s^2) with s^2 = n / d is (|y| t d - n)^2 / (2 n d t^2).
            distance = abs(y) * scale * denominator - numerator
            if self._bernoulli_exp(distance * distance, 2 * numerator * denominator * scale * scale):
                return y

    def vector(self, count: int) -> list[int]:
        """Return `count` independent samples."""
        return [self.sample() for _ in range(count)]

    def _laplace(self) -> int:
        """Return the integer x with probability in proportion to exp(-|x| / t) (algorithm 2, with s = 1)."""
        while True:
            remainder = self._below(self._scale)
            if not self._bernoulli_exp(remainder, self._scale):
                continue
            multiples = 0
            while self._bernoulli_exp(1, 1):
                multiples += 1
            magnitude = remainder + self._scale * multiples
            negative = self._below(2) == 1
            if magnitude or not negative:  # zero would come twice
                return -magnitude if negative else magnitude

    def _bernoulli_exp(self, numerator: int, denominator: int) -> bool:
        """Return whether a coin of probability exp(-numerator / denominator) shows heads (algorithm 1)."""
        whole, rest = divmod(numerator, denominator)
        for _ in range(whole):
            if not self._bernoulli_exp_below_one(1, 1):
                return False
        return self._bernoulli_exp_below_one(rest, denominator)

    def _bernoulli_exp_below_one(self, numerator: int, denominator: int) -> bool:
        k = 1
        while self._below(denominator * k) < numerator:
            k += 1
        return k % 2 == 1


def zcdp(sigma: float, sensitivity: float) -> float:
    """Return rho of noise with parameter sigma on a vector of that sensitivity, both in the vector's own units."""
    if sigma <= 0 or sensitivity <= 0:
        raise InputError(f"noise of {sigma} against a sensitivity of {sensitivity}: both must be above zero")
    return sensitivity**2 / (2 * sigma**2)


def epsilon(rho: float, delta: float) -> float:
    """Return an epsilon for which rho-zCDP is (epsilon, delta)-differentially private [Bun, Steinke 2016, 1.3]."""
    if rho < 0 or not 0 < delta < 1:
        raise InputError(f"rho {rho} and delta {delta}: rho is not negative, and delta lies between 0 and 1")
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
