"""The prior-corrected, count-weighted vote: what each model says, less what it expects, weighed by what it has seen.

A model that was trained on n_c samples of class c has that prior in its logits x, and it spreads its probability over
the classes it knows. With the counts of every model k as secret weights (counts.py),

    p'_kc = softmax over c of (x_kc - ln(n_kc + 1))             v_kc = (n_kc + 1) / sum_l (n_lc + 1)

    score_c = sum_k v_kc p'_kc

v_kc is the softmax over the models, class by class, of the same ln(n_kc + 1): so no count needs a scale or a bound,
and no reciprocal of a sum a range. It does not depend on the query or its batch, and is computed while the models run.
A count of zero stands for one sample: where nobody saw a class all count the same, elsewhere as good as nothing.

A score lies in [0, 1], but those of an input need not add up to 1: they come to less where the models that claim a
class are not those that know it. The label and the label's score need nothing more. Where all scores are revealed the
querier divides them by their sum, and so learns that sum too. Each is within 2^-14, f = 16; where they come to less
than 2^-8 in all, dividing would make noise of that, and they are left as they are (sharing.read_output).

Rounds after the models', for 2 to 32 classes and models:

    probabilities without the prior       9     `LessPrior` is local, then `Softmax`
    weights by class                      9     `LogCounts` is local, then `Softmax` over the models; from the start on
    both truncated                        1     then their product and the last truncation: 12 rounds in all

Source: logit adjustment by class priors [Menon, Jayasumana, Rawat, Jain, Veit, Kumar 2021]; weighing by counts, and the
protocol, are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finode.errors import InputError, LocalError
from finode.smpc.circuit import CircuitBuilder
from finode.smpc.counts import COUNTS, LOG_RANGE_BITS, has_counts
from finode.smpc.engine import Program
from finode.smpc.gates.base import Gate
from finode.smpc.gates.local import Local
from finode.smpc.gates.softmax import PROBABILITY_BITS, Softmax
from finode.smpc.gates.truncate import Truncate
from finode.smpc.gates.votes import Join, Swap
from finode.smpc.material import Source
from finode.smpc.session import Session
from finode.smpc.share import Share
from finode.smpc.weights import PartyWeights, PlainWeights, WeightRef

WEIGHT_BITS = 16
"""Digits of a weight when it meets the probabilities."""


def check(program: Program) -> None:
    """Raise `InputError` if the vote needs counts and a model has none."""
    missing = [index for index, plan in enumerate(program.plans) if not has_counts(plan)]
    if program.vote == "prior" and missing:
        raise InputError(
            f"a prior vote needs the training counts of every model, and model {missing[0]} has none",
            hint="its owner adds it with `finode models add --counts FILE`",
        )


@dataclass(frozen=True, slots=True)
class LogCounts(Gate[Tensor]):
    """ln(n + 1) of a lane's models, (models, C) at scale 2^f: a party's share of that weight. Costs nothing."""

    models: tuple[int, ...]

    def material(self, source: Source, *inputs: object) -> Tensor:
        return torch.empty(0, dtype=torch.int64)  # nothing is dealt: `prepare` puts the weight's share here

    def prepare(self, session: Session, weights: PartyWeights | None, material: Tensor) -> Tensor:
        if weights is None:
            raise LocalError("counts are weights")
        return weights.share(WeightRef(self.models, COUNTS))

    async def run(self, session: Session, material: Tensor, *inputs: Share) -> Share:
        return Share(material, session.first)

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        return weights.value(WeightRef(self.models, COUNTS))


@dataclass(frozen=True, slots=True)
class LessPrior(Local):
    """Logits (models, batch, C) less ln(n + 1) (models, C), lifted by 2^shift to their scale."""

    shift: int

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0] - (inputs[1] << self.shift).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class PerClass(Local):
    """Weights (C, models) as factors of probabilities, (models, 1, C)."""

    def linear(self, *inputs: Tensor) -> Tensor:
        return inputs[0].T.unsqueeze(1)


def corrected_range_bits(range_bits: int) -> int:
    """Return r such that logits below 2^range_bits, less their prior, are below 2^r."""
    return max(range_bits, LOG_RANGE_BITS) + 1


def add_weights(builder: CircuitBuilder, program: Program, counts: list[str]) -> str:
    """Add the gates from the lanes' counts to the weights (models, 1, C), at scale 2^WEIGHT_BITS, of sum 1 by class."""
    f, shape = program.fractional_bits, (program.classes, program.models)
    exponents = builder.add("vote/counts", Swap(), builder.add("vote/counts/join", Join(), *counts))
    weights = builder.add("vote/weights", Softmax(shape, 0, f, f + LOG_RANGE_BITS + 2), exponents)
    digits = builder.add("vote/weights/digits", Truncate(shape, PROBABILITY_BITS - WEIGHT_BITS), weights)
    return builder.add("vote/weights/factors", PerClass(), digits)
