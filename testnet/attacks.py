"""Owners that cheat: what they answer instead of what their model says.

Answers are probabilities (models, inputs, classes). An attack changes those of some models; what it earns is measured
against the average of the honest models, or, for copies, against what one original earns where it has no copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from finode.daemon.schemes import shares_by_scheme, sums_of_answers

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_SURE = 0.999
_NEAR = 0.05


class Measure(Enum):
    """What the attackers' pay, together, is divided by."""

    HONEST = "the average of the honest models"
    ORIGINAL = "one original's pay where nobody copies it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Answers under attack: which models attack, and by what their pay is measured.

    `without` are the answers of the same federation without copies, `original` the place of the original in them.
    """

    answers: Floats = field(repr=False)
    attackers: tuple[int, ...]
    measure: Measure
    without: Floats | None = field(default=None, repr=False)
    original: int = 0


def attacks(answers: Floats, seed: int) -> dict[str, Attack]:
    """Return every attack on an honest federation of at least four models; its last models are those that turn."""
    models, inputs, classes = answers.shape
    generator = np.random.default_rng([seed, 7])
    last = models - 1

    def noise() -> Floats:
        return sure(generator.integers(0, classes, (inputs,)), classes)

    def one(replacement: Floats) -> Attack:
        changed = answers.copy()
        changed[last] = replacement
        return Attack(answers=changed, attackers=(last,), measure=Measure.HONEST)

    def alike(replacement: Floats) -> Attack:
        changed = answers.copy()
        changed[[last - 1, last]] = replacement
        return Attack(answers=changed, attackers=(last - 1, last), measure=Measure.HONEST)

    def copies(kept: Floats, original: int, copied: Sequence[Floats]) -> Attack:
        attackers = (original, *range(len(kept), len(kept) + len(copied)))
        together = np.concatenate([kept, np.stack(copied)])
        return Attack(answers=together, attackers=attackers, measure=Measure.ORIGINAL, without=kept, original=original)

    unsure = generator.dirichlet(np.ones(classes), inputs)
    return {
        "constant class": one(sure(np.full(inputs, 3 % classes), classes)),
        "random answers": one(unsure),
        "overconfident noise": one(noise()),
        "flipped labels": one(np.roll(answers[last], 1, axis=1)),
        "copy of another model": copies(answers[:last], 0, [answers[0]]),
        "copy with 5 % noise": copies(answers[:last], 0, [_disturbed(answers[0], generator)]),
        "two colluders, one model": copies(answers[:last], last - 1, [answers[last - 1]]),
        "two colluders, one noise": alike(noise()),
        "two colluders, flipped": alike(np.roll(answers[last], 1, axis=1)),
        "Sybil, three times": copies(answers, last, [answers[last]] * 2),
        "Sybil, three of five": copies(answers[: models - 2], 0, [answers[0]] * 2),
    }


def gains(answers: Floats, labels: Integers, seed: int) -> dict[str, dict[str, float]]:
    """Return for each attack and scheme what the attackers earn together, as a multiple of the attack's measure."""
    results: dict[str, dict[str, float]] = {}
    for name, attack in attacks(answers, seed).items():
        paid = _shares(attack.answers, labels)
        if attack.without is None:
            honest = [k for k in range(len(attack.answers)) if k not in attack.attackers]
            divisors = {scheme: float(shares[honest].mean()) for scheme, shares in paid.items()}
        else:
            alone = _shares(attack.without, labels)
            divisors = {scheme: float(shares[attack.original]) for scheme, shares in alone.items()}
        results[name] = {
            scheme: float(shares[list(attack.attackers)].sum()) / max(divisors[scheme], 1.0)
            for scheme, shares in paid.items()
        }
    return results


def measures(answers: Floats) -> dict[str, Measure]:
    """Return what each attack's gain is measured by."""
    return {name: attack.measure for name, attack in attacks(answers, 0).items()}


def sure(votes: Integers, classes: int) -> Floats:
    """Return probabilities of answers that are sure of these labels."""
    answers = np.full((len(votes), classes), (1 - _SURE) / (classes - 1))
    answers[np.arange(len(votes)), votes] = _SURE
    return answers


def _disturbed(answers: Floats, generator: np.random.Generator) -> Floats:
    changed = answers.copy()
    inputs, classes = answers.shape
    chosen = generator.random((inputs,)) < _NEAR
    changed[chosen] = sure(generator.integers(0, classes, int(chosen.sum())), classes)
    return changed


def _shares(answers: Floats, labels: Integers) -> dict[str, Floats]:
    given = shares_by_scheme(sums_of_answers(answers, labels))
    return {scheme: np.asarray(shares, dtype=np.float64) for scheme, shares in given.items()}
