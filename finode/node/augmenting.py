"""The augmented copies that an augmented vote looks at: made here, by the querier, and shared like any other input.

Behind each input come its copies. The first one is the mirror image where the inputs are images and the settings say
so; all others have Gaussian noise, in proportion to the input's own deviation, so that it means the same at any scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from finode.config import QuerierSection
from finode.wire.directory import Color, InputSpec

Floats = npt.NDArray[np.float64]


def with_copies(
    inputs: Floats, copies: int, spec: InputSpec, settings: QuerierSection, generator: np.random.Generator
) -> Floats:
    """Return (n (1 + copies), *shape) for inputs (n, *shape): each input with its copies behind it."""
    if not copies:
        return inputs
    grouped = np.repeat(inputs[:, None], 1 + copies, axis=1)
    flipped = 1 if settings.flip and spec.color is not Color.NONE else 0
    if flipped:
        grouped[:, 1] = inputs[..., ::-1]
    noisy = grouped[:, 1 + flipped :]
    deviation = inputs.reshape(len(inputs), -1).std(axis=1).reshape(-1, *[1] * inputs.ndim)
    noisy += generator.standard_normal(noisy.shape) * (settings.noise * deviation)
    return grouped.reshape(-1, *inputs.shape[1:])
