"""`entropy`: per input in proportion to exp(-H(p_k)), so that sure answers earn more [FedSEI, arXiv 2603.02214]."""

from __future__ import annotations

from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.ledger.schemes.sums import Sums


def shares(sums: Sums) -> tuple[int, ...]:
    """Return shares in proportion to the sums of exp(-H), each input's being 1 in all."""
    return apportion(WHOLE, sums.entropy or [1] * sums.models)
