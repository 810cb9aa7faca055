"""How the owners' part of what queries paid is split between the models: one file per scheme.

sums.py              what a scheme sees: the sums of the epoch statements of one set of models, added up
apportioning.py      an amount in proportion to weights, exact to the last unit
equal.py             to all alike
final_agreement.py   per input, the models that agree with the final label share 1     [FedSEI, arXiv 2603.02214]
entropy.py           per input in proportion to exp(-H(p)): who is sure earns more      [FedSEI]
dawid_skene.py       estimated accuracy, from how the models agree and differ; the default
labelled.py          counted accuracy, where queriers had labels later

A scheme is a pure function in integers with a fixed number of steps, so that every node gets the same shares. To add
one: write its file, name it in `finode.wire.committee.Scheme`, and enter it in `rule_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finode.ledger.schemes import dawid_skene, entropy, equal, final_agreement, labelled
from finode.ledger.schemes.sums import Sums
from finode.wire.committee import Scheme
from finode.wire.receipts import StatementKind


class SharesOf(Protocol):
    """Gives each model of `sums`, in their order, its share; shares are not negative and sum to `WHOLE`."""

    def __call__(self, sums: Sums, /) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """A scheme: the kind of statement that it needs (None: it needs none) and the function."""

    kind: StatementKind | None
    shares: SharesOf


def rule_of(scheme: Scheme) -> Rule:
    """Return the rule of a scheme."""
    match scheme:
        case Scheme.EQUAL:
            return Rule(None, equal.shares)
        case Scheme.FINAL_AGREEMENT:
            return Rule(StatementKind.AGREEMENT, final_agreement.shares)
        case Scheme.ENTROPY:
            return Rule(StatementKind.AGREEMENT, entropy.shares)
        case Scheme.DAWID_SKENE:
            return Rule(StatementKind.AGREEMENT, dawid_skene.shares)
        case Scheme.LABELLED:
            return Rule(StatementKind.LABELS, labelled.shares)
