"""Federations of made-up classifiers: quick, the same on every machine, and with the flaws of real ones.

Each model knows some classes well and others hardly, prefers certain wrong answers, and fails more often on inputs
that are hard for all: so honest models agree more than independent ones would.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def federation(seed: int, *, models: int = 5, inputs: int = 600, classes: int = 10) -> tuple[Floats, Integers]:
    """Return probabilities (models, inputs, classes) and true labels (inputs,)."""
    generator = np.random.default_rng([seed, 11])
    labels = generator.integers(0, classes, (inputs,))
    hard = generator.random((inputs,)) < 0.15
    shared = generator.integers(0, classes, (inputs,))
    answers = np.empty((models, inputs, classes))
    for model in range(models):
        skill = generator.beta(1.2, 0.6, (classes,))
        habit = generator.dirichlet(np.full(classes, 0.4), classes)
        wrong = np.array([generator.choice(classes, p=habit[label]) for label in labels])
        wrong = np.where(hard & (generator.random((inputs,)) < 0.5), shared, wrong)
        chance = skill[labels] * np.where(hard, 0.5, 1.0)
        votes = np.where(generator.random((inputs,)) < chance, labels, wrong)
        confidence = generator.uniform(0.4, 0.99, (inputs,))
        answers[model] = ((1 - confidence) / (classes - 1))[:, None]
        answers[model, np.arange(inputs), votes] = confidence
    return answers, labels
