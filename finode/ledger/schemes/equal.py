"""`equal`: every model gets the same."""

from __future__ import annotations

from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.ledger.schemes.sums import Sums


def shares(sums: Sums) -> tuple[int, ...]:
    """Return 1 / K for each model."""
    return apportion(WHOLE, [1] * sums.models)
