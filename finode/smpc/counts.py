"""How many training samples of each class an owner had: a weight of its model that no step of the plan reads.

The vote `prior` (prior.py) needs of each model ln(n_c + 1) for every class c. It lies behind the model's own weights
under the name `COUNTS`, so it is registered, shared and kept as they are, and as secret; that a model has it is
public, since its plan says so. Every other vote of the same deployment leaves it alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from finode.errors import InputError
from finode.smpc.plan import Plan, WeightSpec

COUNTS = "@counts"
"""No name of a weight in an ONNX file that was exported from anything; one that has it cannot get counts."""
MAX_COUNT = (1 << 31) - 1
LOG_RANGE_BITS = 5
"""ln(MAX_COUNT + 1) = 21.5 < 2^5."""

Floats = npt.NDArray[np.float64]


def has_counts(plan: Plan) -> bool:
    """Whether a model's owner gave its counts with it: a weight of that name that no step reads."""
    read = any(COUNTS in (step.weight, step.bias) for step in plan.steps)
    return not read and any(spec.name == COUNTS and spec.shape == (plan.classes,) for spec in plan.weights)


def with_counts(plan: Plan, weights: Mapping[str, Floats], counts: Sequence[int]) -> tuple[Plan, dict[str, Floats]]:
    """Return the plan and weights of a model whose owner had `counts[c]` training samples of class c.

    Raises `InputError` unless there is one count for each class, none below zero, and one above it.
    """
    if any(spec.name == COUNTS for spec in plan.weights):
        raise InputError("the model has counts already")
    if len(counts) != plan.classes:
        raise InputError(
            f"{len(counts)} counts for {plan.classes} classes", hint="give one count per class, in the model's order"
        )
    if any(type(count) is not int or not 0 <= count <= MAX_COUNT for count in counts) or not any(counts):
        raise InputError(
            f"counts are whole numbers from 0 to {MAX_COUNT}, and not all of them zero: {list(counts)[:16]}"
        )
    spec = WeightSpec(name=COUNTS, shape=(plan.classes,))
    logarithms = np.array([math.log1p(count) for count in counts])
    return replace(plan, weights=(*plan.weights, spec)), {**weights, COUNTS: logarithms}
