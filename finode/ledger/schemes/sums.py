"""What a scheme sees: the sums of epoch statements of the same models, added up in the clear.

The statements may come from different parties and may list the models in another order; here the models stand in the
order of their versions, and the joint votes of a pair are turned round where its two models changed places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finode.errors import LocalError
from finode.wire.receipts import EpochStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The sums of K models and C classes over `samples` inputs; the lengths and scales are those of `EpochStatement`.

    A sum that no statement gave is empty. Noise (of deviation `sigma_milli` / 1000 per statement) can make entries
    negative.
    """

    models: int
    classes: int
    samples: int
    sigma_milli: int = 0
    joint: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    agreement: tuple[int, ...] = ()
    entropy: tuple[int, ...] = ()
    correct: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        pairs = self.models * (self.models - 1) // 2
        stated = (self.joint, self.counts, self.agreement, self.entropy, self.correct)
        lengths = (
            pairs * self.classes * self.classes,
            self.models * self.classes,
            self.models,
            self.models,
            self.models,
        )
        if any(values and len(values) != length for values, length in zip(stated, lengths, strict=True)):
            raise LocalError("a sum has not the length that the models and classes give")

    @classmethod
    def of(cls, statements: Sequence[EpochStatement]) -> Sums:
        """Add up statements of one kind, one set of models and one number of classes (at least one statement)."""
        first = statements[0]
        versions = sorted(model.version for model in first.models)
        if any(
            one.kind is not first.kind
            or one.classes != first.classes
            or sorted(model.version for model in one.models) != versions
            for one in statements
        ):
            raise LocalError("statements of different kinds or models do not add up")
        ordered = [_in_order(one) for one in statements]
        # Joint votes that one statement lacks would make the pairs' totals differ: then there are none at all.
        return cls(
            models=len(versions),
            classes=first.classes,
            samples=sum(one.samples for one in ordered),
            sigma_milli=max(one.sigma_milli for one in ordered),
            joint=_added([one.joint for one in ordered]),
            counts=_added([one.counts for one in ordered]),
            agreement=_added([one.agreement for one in ordered]),
            entropy=_added([one.entropy for one in ordered]),
            correct=_added([one.correct for one in ordered]),
        )


def pairs_of(models: int) -> list[tuple[int, int]]:
    """Return the pairs k < l in the order of the joint votes."""
    return [(k, j) for k in range(models) for j in range(k + 1, models)]


def _added(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    if not all(rows):
        return ()
    return tuple(sum(column) for column in zip(*rows, strict=True))


def _in_order(statement: EpochStatement) -> Sums:
    """Return the sums of one statement with its models in the order of their versions."""
    k, c = len(statement.models), statement.classes
    order = sorted(range(k), key=lambda index: statement.models[index].version)
    blocks = {pair: index * c * c for index, pair in enumerate(pairs_of(k))}
    joint: list[int] = []
    for new_k, new_l in pairs_of(k) if statement.joint else ():
        old_k, old_l = order[new_k], order[new_l]
        start = blocks[min(old_k, old_l), max(old_k, old_l)]
        block = statement.joint[start : start + c * c]
        joint.extend(block if old_k < old_l else [block[b * c + a] for a in range(c) for b in range(c)])
    return Sums(
        models=k,
        classes=c,
        samples=statement.samples,
        sigma_milli=statement.sigma_milli,
        joint=tuple(joint),
        counts=tuple(v for index in order for v in statement.counts[index * c : (index + 1) * c]),
        agreement=tuple(statement.agreement[index] for index in order if statement.agreement),
        entropy=tuple(statement.entropy[index] for index in order if statement.entropy),
        correct=tuple(statement.correct[index] for index in order if statement.correct),
    )
