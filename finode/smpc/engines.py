"""The engines by name: which of them this installation runs, and which of them run a plan. Needs no torch."""

from __future__ import annotations

from finode.smpc.crypten import availability, operators
from finode.smpc.plan import Plan

NATIVE = "native"
CRYPTEN = availability.NAME
ENGINES = (NATIVE, CRYPTEN)


def available_engines() -> tuple[str, ...]:
    """Return the engines that the workers of this installation can run."""
    return ENGINES if availability.is_available() else (NATIVE,)


def engines_for(plan: Plan) -> tuple[str, ...]:
    """Return the engines that can run a plan, whether or not they are installed here: parties run them, not owners."""
    return (NATIVE,) if operators.objection(plan) else ENGINES
