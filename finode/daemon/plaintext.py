"""The plaintext answer of models that lie in homes on this machine: what a private one is compared with.

Only whoever holds all the homes can compute it, as a benchmark on one machine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finode.errors import ModelError
from finode.models.float_run import probabilities
from finode.models.registry import Registry


def soft_vote(homes: Sequence[Path], service: str, inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean (batch, classes) of the probabilities that all models of `service` in `homes` give, in float.

    Raises `ModelError` if there is none.
    """
    answers = []
    for home in homes:
        registry = Registry(home)
        for entry in registry.list():
            if entry.service.name == service:
                answers.append(probabilities(entry.plan, registry.load_weights(entry.version), inputs))
    if not answers:
        raise ModelError(f"no model of the service {service!r} is registered in these homes")
    return np.asarray(np.mean(answers, axis=0))
