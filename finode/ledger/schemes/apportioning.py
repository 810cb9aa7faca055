"""An amount cut in proportion to weights, in integers, exact to the last unit: the largest remainder method.

Everybody gets the floor of amount * weight / total; the units left over go to the largest remainders, and among equal
ones to the first. Python's integers do not overflow, so any weights will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

WHOLE = 1 << 32
"""What the shares of a scheme sum to: fine enough that a pot of 4 credits loses no micro-credit to it."""


def apportion(amount: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Return parts of `amount` (0 or more) in proportion to `weights`, that sum to it.

    Negative weights count as 0, as noise in sums can make them; if nothing is left, all get the same.
    """
    return _apportion(amount, tuple(weights))


# Sessions of one committee are split alike, thousands of times over.
@lru_cache(maxsize=4096)
def _apportion(amount: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    clipped = [max(weight, 0) for weight in weights]
    total = sum(clipped)
    if total == 0:
        clipped, total = [1] * len(clipped), len(clipped)
    parts = [amount * weight // total for weight in clipped]
    left = amount - sum(parts)
    if left:
        by_remainder = sorted(range(len(parts)), key=lambda index: -(amount * clipped[index] % total))
        for index in by_remainder[:left]:
            parts[index] += 1
    return tuple(parts)
