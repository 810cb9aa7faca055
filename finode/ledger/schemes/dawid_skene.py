"""`dawid_skene`: each model's accuracy, estimated from nothing but how the models agree and differ.

The true class of an input is y with probability pi(y), and model k then answers v with probability theta_k(y, v), its
confusion matrix, independently of the others [Dawid and Skene 1979, Applied Statistics 28(1)]. Only the joint votes of
pairs are known, so what is raised by EM is the composite likelihood of the pairs [Varin, Reid and Firth 2011]:

    P_kl(a, b) = sum_y pi(y) theta_k(y, a) theta_l(y, b)          what the estimate expects of a pair
    N_k(y, a) += w_kl pi(y) theta_k(y, a) sum_b theta_l(y, b) J_kl(a, b) / P_kl(a, b)
    theta_k(y, .) = N_k(y, .) normalized,  pi(y) in proportion to sum_k N_k(y, .)

Models that depend on one another break this: copies agree, and would be taken for the truth. Two signs together make a
pair suspect, since honest models show one of them now and then, but rarely both:

    the pair differs much less often than most pairs do           known before anything is estimated
    of the agreement that chance and skill leave open, rho = (A - E) / (M - E) is used up
                                                                  A observed, E = tr P_kl expected, M the most possible

The suspicion s_kl in [0, 1] is the lesser of two ramps over these. A model of which u_k = 1 / (1 + sum_l s_kl) is its
own has its pairs weighed by w_kl = (1 - s_kl) u_k u_l, and is paid

    share_k in proportion to u_k * accuracy_k * min(1, kappa_k / 0.1)

where accuracy_k = sum_y pi(y) theta_k(y, y), and kappa_k is Cohen's: a model that knows no more than its own habit
has kappa 0, whatever its accuracy, and earns nothing.

All in int64 with the binary points that the comments state, for a fixed number of rounds. The bounds: joint votes of
a pair sum to at most 1, theta is at least 2^-12, so P is at least 2^-24 and J / P at most 2^24. The ramps' ends come
from simulation (docs/rewards.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from finode.ledger.schemes import final_agreement
from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.ledger.schemes.sums import Sums, pairs_of

Integers = npt.NDArray[np.int64]

_BITS = 20
_ONE = 1 << _BITS
_PHASES = 3
"""How often dependence is looked at again; each time the estimate starts from the one before."""
_STEPS = 10
"""EM steps of a phase: 30 in all. More change the shares by under 1 %."""
_MOST_WORK = 1 << 25
"""Products of one EM step: 30 steps of so many take about two seconds. No statement should hold a node up longer."""
_CELL = (1 << 26) // 500
"""Smoothing of the confusion counts of a model: 0.002 of its inputs for each class."""
_CLASS = _ONE // 50
"""Smoothing of the class prior: 2 % of the inputs are spread over all classes."""
_LEAST = _ONE >> 12
_LEAST_WEIGHT = _ONE >> 10
"""Of a pair in the likelihood, so that models which are all alike still have one."""
_LEAST_OPEN = _ONE // 50
_GATE = _ONE // 10
_DIFFERENCE_RAMP = (3 * _ONE // 10, 6 * _ONE // 10)
_EXCESS_RAMP = (45 * _ONE // 100, 7 * _ONE // 10)


def shares(sums: Sums) -> tuple[int, ...]:
    """Return shares from the joint votes alone.

    Two models cannot be told apart by how they differ, and get the same. Where there are too many models and classes
    for joint votes, or for EM in reasonable time, this is `final_agreement`.
    """
    if sums.models < 3:
        return apportion(WHOLE, [1] * sums.models)
    if not sums.joint or len(sums.joint) * sums.classes > _MOST_WORK:
        return final_agreement.shares(sums)
    joint = _normalized(sums)
    suspected = _alike(joint, sums.models)
    suspicion = suspected
    prior, confusion = _start(sums.models, sums.classes)
    for _ in range(_PHASES):
        weight = _weights(suspicion)
        for _ in range(_STEPS):
            prior, confusion = _step(joint, weight, prior, confusion)
        suspicion = np.minimum(suspected, _in_excess(joint, prior, confusion))
    return apportion(WHOLE, [int(value) for value in _worth(prior, confusion, _own(suspicion))])


def _normalized(sums: Sums) -> Integers:
    """Return the joint votes (pairs, C, C) of each pair as parts of 1, 20 bits; what noise made negative is 0."""
    size = sums.classes * sums.classes
    rows: list[list[int]] = []
    for start in range(0, len(sums.joint), size):
        block = [max(value, 0) for value in sums.joint[start : start + size]]
        total = max(sum(block), 1)
        rows.append([value * _ONE // total for value in block])
    return np.asarray(rows, dtype=np.int64).reshape(-1, sums.classes, sums.classes)


def _start(models: int, classes: int) -> tuple[Integers, Integers]:
    """Return equal classes, and models that are right somewhat more than half of the time: that names the classes."""
    diagonal = _ONE // 2 + _ONE // (2 * classes)
    prior = np.full(classes, _ONE // classes, dtype=np.int64)
    confusion = np.full((models, classes, classes), (_ONE - diagonal) // (classes - 1), dtype=np.int64)
    confusion[:, np.arange(classes), np.arange(classes)] = diagonal
    return prior, np.maximum(confusion, _LEAST)


def _step(joint: Integers, weight: Integers, prior: Integers, confusion: Integers) -> tuple[Integers, Integers]:
    """Return prior and confusion matrices after one step of EM."""
    models, classes = confusion.shape[:2]
    left, right = _sides(models)
    expected = _expected(left, right, prior, confusion)
    weighed = (joint * weight[left, right][:, None, None]) >> _BITS
    ratio = (weighed << 34) // np.maximum(expected >> 8, 1)  # 20 + 34 - 40 = 14 bits
    known = (prior[:, None] * confusion) >> 12  # 28 bits
    # 28 bits, and 20 + 14 of the inner sum: at most 2^62, as a responsibility is at most 1.
    of_left = (known[left] * (confusion[right] @ ratio.transpose(0, 2, 1))) >> 30
    of_right = (known[right] * (confusion[left] @ ratio)) >> 30
    counted = np.zeros_like(confusion)  # 32 bits
    np.add.at(counted, left, of_left)
    np.add.at(counted, right, of_right)

    per_class = (counted >> 12).sum(axis=(0, 2))
    new_prior = per_class * _ONE // max(int(per_class.sum()), 1) + _CLASS // classes
    new_prior = new_prior * _ONE // int(new_prior.sum())
    pairs = np.zeros(models, dtype=np.int64)
    np.add.at(pairs, left, weight[left, right])
    np.add.at(pairs, right, weight[left, right])
    smoothed = ((counted >> 6) << _BITS) // pairs[:, None, None] + _CELL // classes  # 26 bits
    new_confusion = (smoothed << _BITS) // smoothed.sum(axis=2, keepdims=True)
    return new_prior, np.maximum(new_confusion, _LEAST)


def _expected(left: Integers, right: Integers, prior: Integers, confusion: Integers) -> Integers:
    """Return P (pairs, C, C), 48 bits."""
    known: Integers = (prior[:, None] * confusion) >> 12
    expected: Integers = known[left].transpose(0, 2, 1) @ confusion[right]
    return expected


def _sides(models: int) -> tuple[Integers, Integers]:
    pairs = np.asarray(pairs_of(models), dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def _agreed(joint: Integers) -> Integers:
    agreed: Integers = np.trace(joint, axis1=1, axis2=2)
    return agreed


def _alike(joint: Integers, models: int) -> Integers:
    """Return the suspicion (K, K) against pairs that differ much less than most.

    The measure is the pair at three tenths of the order: of five models three copies, or three honest ones among
    two that answer at random, are three of the ten pairs.
    """
    differing = joint.sum(axis=(1, 2)) - _agreed(joint)
    measure = int(np.sort(differing)[min(-(-3 * len(differing) // 10), len(differing) - 1)])
    return _symmetric(_ONE - _ramp(differing * _ONE // max(measure, 1), _DIFFERENCE_RAMP), models)


def _in_excess(joint: Integers, prior: Integers, confusion: Integers) -> Integers:
    """Return the suspicion (K, K) against pairs that agree more than the estimate explains."""
    models = len(confusion)
    expected = _agreed(_expected(*_sides(models), prior, confusion) >> 28)
    most = np.minimum(joint.sum(axis=2), joint.sum(axis=1)).sum(axis=1)
    excess = (_agreed(joint) - expected) * _ONE // np.maximum(most - expected, _LEAST_OPEN)
    return _symmetric(_ramp(excess, _EXCESS_RAMP), models)


def _ramp(values: Integers, ends: tuple[int, int]) -> Integers:
    """Return 0 up to the first end, 1 from the second, and the straight line between."""
    return np.clip((values - ends[0]) * _ONE // (ends[1] - ends[0]), 0, _ONE)


def _symmetric(of_pairs: Integers, models: int) -> Integers:
    matrix = np.zeros((models, models), dtype=np.int64)
    left, right = _sides(models)
    matrix[left, right] = of_pairs
    matrix[right, left] = of_pairs
    return matrix


def _own(suspicion: Integers) -> Integers:
    """Return how much of each model is its own: 1 / n for each of n copies."""
    own: Integers = _ONE * _ONE // (_ONE + suspicion.sum(axis=1))
    return own


def _weights(suspicion: Integers) -> Integers:
    own = _own(suspicion)
    weight: Integers = ((_ONE - suspicion) * ((own[:, None] * own) >> _BITS)) >> _BITS
    return np.maximum(weight, _LEAST_WEIGHT)


def _worth(prior: Integers, confusion: Integers, own: Integers) -> Integers:
    """Return what each model's share is in proportion to, 20 bits."""
    accuracy = (prior * np.diagonal(confusion, axis1=1, axis2=2)).sum(axis=1) >> _BITS
    votes = (prior[:, None] * confusion).sum(axis=1) >> _BITS
    chance = (votes * prior).sum(axis=1) >> _BITS
    kappa = (accuracy - chance) * _ONE // np.maximum(_ONE - chance, 1)
    known = np.clip(kappa * _ONE // _GATE, 0, _ONE)
    worth: Integers = (((accuracy * known) >> _BITS) * own) >> _BITS
    return worth
