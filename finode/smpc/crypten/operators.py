"""Which plans the engine runs. Needs neither torch nor CrypTen, so that an owner can say it of its models."""

from __future__ import annotations

from finode.smpc.plan import Op, Plan

SUPPORTED = frozenset(
    {
        Op.CONV,
        Op.LINEAR,
        Op.ADD,
        Op.ADD_WEIGHT,
        Op.SCALE,
        Op.RELU,
        Op.MAX_POOL,
        Op.AVERAGE_POOL,
        Op.GLOBAL_AVERAGE_POOL,
        Op.RESHAPE,
        Op.SOFTMAX,
    }
)
MAX_CLASSES = 256
"""CrypTen's reciprocal converges for the sum of exponentials of as many classes; beyond that a softmax may diverge."""


def objection(plan: Plan) -> str:
    """Return why the engine cannot run a plan, "" if it can."""
    if plan.classes > MAX_CLASSES:
        return f"CrypTen's softmax is reliable for {MAX_CLASSES} classes at most, this model has {plan.classes}"
    for step in plan.steps:
        if step.op not in SUPPORTED:
            return f"it has no operator {step.op.value!r} (step {step.name!r})"
    return ""
