"""How far bytes are from uniform."""

from __future__ import annotations

import numpy as np


def chi_square(data: bytes) -> float:
    """Return the chi-square statistic of the 256 byte values, as standard deviations from what uniform bytes give."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - 255) / float(np.sqrt(2 * 255))


IMPROBABLE = 7.0
"""Standard deviations: uniform bytes come out further away less than once in a billion tests."""
