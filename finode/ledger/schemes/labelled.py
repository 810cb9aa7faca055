"""`labelled`: in proportion to how often each model was right, by labels that queriers gave later."""

from __future__ import annotations

from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.ledger.schemes.sums import Sums


def shares(sums: Sums) -> tuple[int, ...]:
    """Return shares in proportion to the counts of right answers."""
    return apportion(WHOLE, sums.correct or [1] * sums.models)
