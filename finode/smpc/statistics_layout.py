"""The statistics of a session: what they count, and in which order they stand in one vector. numpy alone, no torch.

For K models and C classes, over the true inputs of a batch, int64 in this order:

    joint       for each pair k < l, in lexicographic order, C x C: inputs where model k votes i and model l votes j
    labels      K x C: how often each model voted for each class
    agreement   K, at scale 2^16: per input, 1 is split equally among the models whose label is the vote's
    entropy     K, at scale 2^16: per input, 1 is split in proportion to exp(-H(p_k)): sure models get more

A label is the largest logit's, the vote's label the largest tally's; ties of the truncated values go to the lowest
class. Where no model has the vote's label, nobody gets anything for that input. The joint matrices are left out when
they have more than `JOINT_LIMIT` entries together.

Parties hold the vector as shares mod 2^64 and may add up vectors of equal K and C; sums of the opened vectors mean the
same as the vector of all inputs. Sources: agreement and entropy are the label-free schemes of FedSEI
(arXiv 2603.02214); joint votes are what confusion matrices can be estimated from [Dawid, Skene 1979].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from finode.errors import InputError
from finode.smpc.engine import Buffer, Floats

Elements = npt.NDArray[np.int64]

SCALE_BITS = 16
"""Digits after the point of the sums of agreement and of entropy."""
JOINT_LIMIT = 1 << 18
"""Entries of all joint matrices together: 2 MiB for each party to keep, and for the dealer to send."""
ELEMENT_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """An opened vector of statistics, cut into its parts; sums over all inputs."""

    joint: Elements | None
    """(pairs, C, C), or None where there are too many."""
    labels: Elements
    """(K, C)."""
    agreement: Elements
    """(K,), at scale 2^SCALE_BITS."""
    entropy: Elements
    """(K,), at scale 2^SCALE_BITS."""


def model_pairs(models: int) -> list[tuple[int, int]]:
    """Return the pairs k < l of models, in the order of their matrices."""
    return list(combinations(range(models), 2))


def has_joint(models: int, classes: int) -> bool:
    """Return whether the joint matrices of so many models and classes are part of the vector."""
    return math.comb(models, 2) * classes * classes <= JOINT_LIMIT


def joint_length(models: int, classes: int) -> int:
    """Return the number of entries of all joint matrices in the vector."""
    return math.comb(models, 2) * classes * classes if has_joint(models, classes) else 0


def statistics_length(models: int, classes: int) -> int:
    """Return the number of elements of the vector."""
    return joint_length(models, classes) + models * classes + 2 * models


def statistics_bytes(models: int, classes: int) -> int:
    """Return the size of one party's share of the vector."""
    return ELEMENT_BYTES * statistics_length(models, classes)


def ballot_places(classes: int) -> int:
    """Return the places of one vote as it is kept for feedback: a power of two above `classes` (labels.py)."""
    return 1 << classes.bit_length()


def ballot_bytes(models: int, classes: int, count: int) -> int:
    """Return the size of the ballots that one party keeps of `count` inputs (`engine.StatisticsShare.ballots`)."""
    return count * (ELEMENT_BYTES * models * ballot_places(classes) + 2)


def split_statistics(models: int, classes: int, elements: Elements) -> Statistics:
    """Cut an opened vector into its parts; raise `InputError` when it is not of that many models and classes."""
    if elements.shape != (statistics_length(models, classes),):
        raise InputError(
            f"statistics of shape {elements.shape} for {models} models and {classes} classes, which have "
            f"{statistics_length(models, classes)} elements"
        )
    joint, labels, agreement, entropy = np.split(
        elements,
        np.cumsum([joint_length(models, classes), models * classes, models]),
    )
    return Statistics(
        joint=joint.reshape(-1, classes, classes) if has_joint(models, classes) else None,
        labels=labels.reshape(models, classes),
        agreement=agreement,
        entropy=entropy,
    )


def open_statistics(models: int, classes: int, shares: Sequence[Buffer]) -> Statistics:
    """Add up all parties' shares of (sums of) vectors and cut the result; raise `InputError` for a share that is not
    of that many models and classes."""
    total = np.zeros(statistics_length(models, classes), dtype=np.int64)
    for share in shares:
        if memoryview(share).nbytes != total.nbytes:
            raise InputError(f"a share of the statistics has {memoryview(share).nbytes} bytes, not {total.nbytes}")
        total += np.frombuffer(share, dtype="<i8")
    return split_statistics(models, classes, total)


def equal_part(models: int) -> int:
    """Return 1 / models at scale 2^SCALE_BITS, rounded, and 0 for no model."""
    return ((1 << SCALE_BITS) + models // 2) // models if models else 0


def plain_statistics(labels: Elements, final: Elements, probabilities: Floats) -> Elements:
    """Return the vector in the clear, for tests and for the simulation of rewards.

    `labels` are the models' labels (K, inputs), `final` the vote's (inputs,), `probabilities` (K, inputs, C) what the
    entropy is taken of. All but the entropy is exact; the engine's is within max(2^-12, C 2^-20) of it per input.
    """
    models, _, classes = probabilities.shape
    votes = (labels[..., None] == np.arange(classes)).astype(np.int64)
    pairs = model_pairs(models) if has_joint(models, classes) else []
    joint = [votes[first].T @ votes[second] for first, second in pairs]
    agrees = labels == final
    parts = np.array([equal_part(n) for n in range(models + 1)], dtype=np.int64)[agrees.sum(0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * np.log(probabilities), 0.0)
    weights = np.exp(terms.sum(-1))
    entropy = np.rint((weights / weights.sum(0)).sum(1) * 2.0**SCALE_BITS).astype(np.int64)
    counts = votes.sum(1)
    return np.concatenate([*(matrix.reshape(-1) for matrix in joint), counts.reshape(-1), agrees @ parts, entropy])


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far one input in another's place moves each part of the vector, at most, in Euclidean length and the part's
    own units."""

    joint: float
    labels: float
    agreement: float
    entropy: float


def sensitivity(models: int) -> Sensitivity:
    """Return what noise on the opened sums is measured against (noise.py).

    The number of inputs is published, so what noise can hide is which they were: neighbours differ in one of them. An
    input adds one to one entry of each joint matrix and of each model's labels, so an exchange moves two entries; of
    agreement and entropy it has 1 to distribute among the models, at scale 2^16, and what rounding and truncation add
    (2^8 is far more), so an exchange moves these by the square root of 2 of that at most.
    """
    one = 2.0**SCALE_BITS + 2.0**8
    return Sensitivity(
        math.sqrt(2 * math.comb(models, 2)), math.sqrt(2 * models), math.sqrt(2) * one, math.sqrt(2) * one
    )
