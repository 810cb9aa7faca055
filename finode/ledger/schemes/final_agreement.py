"""`final_agreement`: per input, the models whose label is the final one share 1 [FedSEI, arXiv 2603.02214]."""

from __future__ import annotations

from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.ledger.schemes.sums import Sums


def shares(sums: Sums) -> tuple[int, ...]:
    """Return shares in proportion to the sums of agreement."""
    return apportion(WHOLE, sums.agreement or [1] * sums.models)
