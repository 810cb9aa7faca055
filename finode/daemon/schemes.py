"""The reward schemes for those who hold plaintext answers or opened sums: experiments about fairness.

`sums_of_answers` adds up in the clear what the engine adds up on shares (`finode.wire.receipts.EpochStatement` says
what), so that a scheme sees the same integers in an experiment as in a federation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from finode.errors import InputError
from finode.ledger.schemes import rule_of
from finode.ledger.schemes.sums import Sums as Sums
from finode.ledger.schemes.sums import pairs_of
from finode.smpc.statistics_layout import SCALE_BITS, equal_part
from finode.wire.committee import Scheme
from finode.wire.receipts import EpochStatement, StatementKind

ENTROPY_TOLERANCE = 1 << (SCALE_BITS - 12)
"""What a model's part of the entropy may be off per input, at scale 2^16: the engine takes it from tables."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Statements = Sequence[EpochStatement]


@dataclass(frozen=True, slots=True)
class Opened:
    """Opened sums, and the models (hex versions) that they are of, in the order of the shares."""

    versions: tuple[str, ...]
    sums: Sums


def sums_of_answers(probabilities: Floats, labels: Integers) -> Sums:
    """Return the sums of answers (models, inputs, classes), with the final label by soft vote.

    `labels` (inputs,) are the true ones, and go into `correct` alone. All but `entropy` is what the engine opens where
    its models answer alike; the engine's entropy is within `ENTROPY_TOLERANCE` per input.
    """
    models, inputs, classes = probabilities.shape
    votes = probabilities.argmax(axis=2)
    joint = [np.bincount(votes[k] * classes + votes[j], minlength=classes * classes) for k, j in pairs_of(models)]
    agrees = votes == probabilities.mean(axis=0).argmax(axis=1)
    # A soft vote may name a label that no model has: then nobody has a part of this input.
    parts = np.array([equal_part(n) for n in range(models + 1)], dtype=np.int64)
    agreement = np.where(agrees, parts[agrees.sum(axis=0)], 0)
    surprise = np.log(np.maximum(probabilities, 1e-12))
    certainty = np.exp((probabilities * surprise).sum(axis=2))
    entropy = np.floor(certainty / certainty.sum(axis=0) * (1 << SCALE_BITS)).astype(np.int64)
    return Sums(
        models=models,
        classes=classes,
        samples=inputs,
        joint=_integers(np.concatenate(joint) if joint else np.zeros(0, dtype=np.int64)),
        counts=_integers(np.concatenate([np.bincount(row, minlength=classes) for row in votes])),
        agreement=_integers(agreement.sum(axis=1)),
        entropy=_integers(entropy.sum(axis=1)),
        correct=_integers((votes == labels).sum(axis=1)),
    )


def sums_of_statements(statements: Statements) -> Opened:
    """Add up statements of the same models, of either kind; raise `InputError` if there is nothing to add up."""
    if not statements:
        raise InputError("there are no epoch statements", hint="ask more queries: see min_queries in [federation]")
    versions = {tuple(sorted(model.version for model in one.models)) for one in statements}
    if len(versions) > 1 or len({one.classes for one in statements}) > 1:
        raise InputError("the statements are of different models", hint="choose those of one service and epoch")
    by_kind = {kind: [one for one in statements if one.kind is kind] for kind in StatementKind}
    added = [Sums.of(of_kind) for of_kind in by_kind.values() if of_kind]
    sums = added[0] if len(added) == 1 else replace(added[0], correct=added[1].correct)
    return Opened(versions=tuple(version.hex() for version in versions.pop()), sums=sums)


def shares_by_scheme(sums: Sums) -> dict[str, tuple[int, ...]]:
    """Return what every scheme gives each model; its shares sum to 2^32."""
    return {str(scheme): rule_of(scheme).shares(sums) for scheme in Scheme}


def _integers(values: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
