"""How well pay follows skill: the digits federations over several seeds and degrees of skew, under every scheme.

For each seed and each alpha of the Dirichlet split, five small MLPs are trained on uneven parts of scikit-learn's
digits and answer 600 images that none of them saw. A scheme sees the sums of these answers alone (`labelled` the
counts of right ones); its shares r are compared with the accuracies on the same images:

    F_skill = 1 - (1/2) sum_k |p_k - r_k|, p in proportion to accuracy       [FedSEI, arXiv 2603.02214]
    Pearson and Spearman correlation of r with accuracy; none where r is the same for all
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finode.daemon.schemes import Statements, Sums, shares_by_scheme, sums_of_answers, sums_of_statements
from finode.errors import InputError
from finode.testnet.attacks import gains
from finode.testnet.digits import answers

ALPHAS = (0.1, 0.3, 0.5, 1.0)
OWNERS = 5
QUERIES = 600

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well one scheme's shares follow the accuracies of one federation."""

    f_skill: float
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Means over the seeds; `worst` is the lowest F_skill of a seed."""

    alpha: float
    scheme: str
    f_skill: float
    worst: float
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What an attack earns as a multiple of its measure (`finode.testnet.attacks`): mean and largest of the seeds."""

    alpha: float
    attack: str
    scheme: str
    mean: float
    largest: float


def measure(
    seeds: int, *, alphas: Sequence[float] = ALPHAS, with_attacks: bool = False, on_progress: Progress | None = None
) -> tuple[tuple[Row, ...], tuple[Gain, ...]]:
    """Train and score the federations of `seeds` seeds at every alpha; return the table, and that of the attacks."""
    rows: list[Row] = []
    found: list[Gain] = []
    for position, alpha in enumerate(alphas):
        scores: dict[str, list[Score]] = {}
        attacked: dict[tuple[str, str], list[float]] = {}
        for seed in range(seeds):
            given, labels = answers(owners=OWNERS, alpha=alpha, seed=seed, queries=QUERIES)
            accuracies = (given.argmax(axis=2) == labels).mean(axis=1)
            for scheme, shares in shares_by_scheme(sums_of_answers(given, labels)).items():
                scores.setdefault(scheme, []).append(score(shares, accuracies))
            for attack, by_scheme in (gains(given, labels, seed) if with_attacks else {}).items():
                for scheme, gain in by_scheme.items():
                    attacked.setdefault((attack, scheme), []).append(gain)
            if on_progress is not None:
                on_progress(f"alpha {alpha}", position * seeds + seed + 1, len(alphas) * seeds)
        rows += [_row(alpha, scheme, of_scheme) for scheme, of_scheme in scores.items()]
        found += [
            Gain(alpha=alpha, attack=attack, scheme=scheme, mean=float(np.mean(values)), largest=max(values))
            for (attack, scheme), values in attacked.items()
        ]
    return tuple(rows), tuple(found)


def score_statements(statements: Statements, accuracies: Mapping[str, float]) -> dict[str, Score]:
    """Return the score of every scheme on sums that daemons opened.

    `accuracies` are the true ones by hex version. Schemes that the statements have no sums for are left out.
    """
    opened = sums_of_statements(statements)
    if missing := [version for version in opened.versions if version not in accuracies]:
        raise InputError(f"no accuracy is known of the model {missing[0][:16]}")
    return score_sums(opened.sums, [accuracies[version] for version in opened.versions])


def score_sums(sums: Sums, accuracies: Sequence[float]) -> dict[str, Score]:
    """Return the score of every scheme on sums of models of these accuracies, but for schemes that lack theirs."""
    has_sums = {"final_agreement": sums.agreement, "entropy": sums.entropy, "dawid_skene": sums.joint}
    has_sums["labelled"] = sums.correct
    true = np.asarray(accuracies, dtype=np.float64)
    return {
        scheme: score(shares, true) for scheme, shares in shares_by_scheme(sums).items() if has_sums.get(scheme, (1,))
    }


def score(shares: Sequence[int], accuracies: Floats) -> Score:
    """Return how well shares follow accuracies, both (models,)."""
    # 2^32 is not a multiple of 5: equal shares differ in the last unit, and would have ranks.
    paid = np.round(np.asarray(shares, dtype=np.float64) / sum(shares), 8)
    skill = accuracies / accuracies.sum()
    return Score(
        f_skill=float(1 - np.abs(skill - paid).sum() / 2),
        pearson=_correlation(paid, accuracies),
        spearman=_correlation(_ranks(paid), _ranks(accuracies)),
    )


def _ranks(values: Floats) -> Floats:
    """Return the ranks, equal values sharing the mean of theirs."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    same = (values[None, :] == values[:, None]).sum(axis=1)
    ranks: Floats = below + (same + 1) / 2
    return ranks


def _correlation(x: Floats, y: Floats) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _row(alpha: float, scheme: str, scores: Sequence[Score]) -> Row:
    return Row(
        alpha=alpha,
        scheme=scheme,
        f_skill=float(np.mean([one.f_skill for one in scores])),
        worst=min(one.f_skill for one in scores),
        pearson=_mean([one.pearson for one in scores]),
        spearman=_mean([one.spearman for one in scores]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
