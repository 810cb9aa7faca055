"""The estimate of `finode.ledger.schemes.dawid_skene` in float64, written from its docstring."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def shares(joint: dict[tuple[int, int], Floats], models: int) -> Floats:
    """Return shares, summing to 1, from the joint votes (C, C) of each pair."""
    parts = {pair: votes / votes.sum() for pair, votes in joint.items()}
    classes = next(iter(parts.values())).shape[0]
    differing = {pair: 1 - np.trace(part) for pair, part in parts.items()}
    measure = sorted(differing.values())[min(math.ceil(0.3 * len(differing)), len(differing) - 1)]
    suspected = _matrix({pair: 1 - _ramp(d / max(measure, 1e-6), 0.3, 0.6) for pair, d in differing.items()}, models)
    suspicion = suspected
    prior = np.full(classes, 1 / classes)
    right = 0.5 + 0.5 / classes
    confusion = np.tile(np.full((classes, classes), (1 - right) / (classes - 1)), (models, 1, 1))
    confusion[:, np.arange(classes), np.arange(classes)] = right
    for _ in range(3):
        own = 1 / (1 + suspicion.sum(axis=1))
        weight = np.maximum((1 - suspicion) * np.outer(own, own), 2**-10)
        for _ in range(10):
            prior, confusion = _step(parts, weight, prior, confusion)
        excess = {}
        for (k, j), part in parts.items():
            expected = float((prior[:, None] * confusion[k] * confusion[j]).sum())
            most = float(np.minimum(part.sum(axis=0), part.sum(axis=1)).sum())
            excess[k, j] = _ramp((np.trace(part) - expected) / max(most - expected, 0.02), 0.45, 0.7)
        suspicion = np.minimum(suspected, _matrix(excess, models))
    accuracy = (prior * np.diagonal(confusion, axis1=1, axis2=2)).sum(axis=1)
    chance = ((prior[:, None] * confusion).sum(axis=1) * prior).sum(axis=1)
    known = np.clip((accuracy - chance) / (1 - chance) / 0.1, 0, 1)
    worth = accuracy * known / (1 + suspicion.sum(axis=1))
    return np.asarray(worth / worth.sum())


def _step(
    parts: dict[tuple[int, int], Floats], weight: Floats, prior: Floats, confusion: Floats
) -> tuple[Floats, Floats]:
    counted, total = np.zeros_like(confusion), np.zeros(len(confusion))
    classes = len(prior)
    for (k, j), part in parts.items():
        known = prior[:, None] * confusion[k]
        ratio = weight[k, j] * part / (known.T @ confusion[j])
        counted[k] += known * (confusion[j] @ ratio.T)
        counted[j] += prior[:, None] * confusion[j] * (confusion[k] @ ratio)
        total[[k, j]] += weight[k, j]
    prior = counted.sum(axis=(0, 2)) / counted.sum() + 0.02 / classes
    smoothed = counted / total[:, None, None] + 0.002 / classes
    return prior / prior.sum(), np.maximum(smoothed / smoothed.sum(axis=2, keepdims=True), 2**-12)


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _matrix(of_pairs: dict[tuple[int, int], float], models: int) -> Floats:
    matrix = np.zeros((models, models))
    for (k, j), value in of_pairs.items():
        matrix[k, j] = matrix[j, k] = value
    return matrix
