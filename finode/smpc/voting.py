"""From the models' logits to what is revealed: votes, as gates of a program's circuit.

    vote       rounds
    soft       10     the mean of the probabilities
    hard       4      the count of the labels
    weighted   11     the mean with the program's public weights
    entropy    15     per input w_k proportional to exp(-H(p_k)): sure models count more
    spectral   27     per batch: w_k is the k-th diagonal entry of M^8 / trace(M^8), where M is the covariance of the
                      models' confidences max_j p_kj over the batch, plus 2^-RIDGE_BITS times the identity
    augmented  17     per input w_k proportional to exp(gamma d_k), d_k how far the logits of the input's augmented
                      copies lie from its own, on average (augmentation.py)
    prior      12     per class w_kc proportional to the training samples of the class, of probabilities without the
                      prior that those gave the model (prior.py); the one vote whose scores do not add up to 1

Rounds after the models', up to the revealed probabilities, for 2 to 32 classes; 4 more for each further level of a
tournament. The label, or the label with its value, takes the rounds of its `ArgMax` instead of the last one.

Entropy. With t_j = x_j - max, S = sum_j e^t_j and p_j = e^t_j / S no logarithm of a probability is needed:
-H = (sum_j e^t_j t_j) / S - ln S. As -H lies in [-ln C, 0], g = exp(-H) * C / K comes from one table without a clamp,
and sum_k g_k lies in [1, C]: the reciprocal's table of a softmax over C classes normalizes the vote.

Spectral. The paper weighs by the leading eigenvector v of the covariance. Squaring M, and dividing by its trace so that
it neither vanishes nor wraps, turns it into v v^T, whose diagonal v_k^2 is not negative and adds up to 1: no absolute
value, no root, and for each squaring one reciprocal of a number in [1, K]. At batch 1 the covariance is zero, M a
multiple of the identity, and the weights are equal; so they are where all models are equally sure. max_j p_kj costs
nothing: it is e^0 / S, the softmax's reciprocal itself.

Source: FedSEI (arXiv 2603.02214) for both votes; their protocols are this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from finode.errors import InputError
from finode.smpc import augmentation, prior
from finode.smpc.circuit import CircuitBuilder
from finode.smpc.engine import Program
from finode.smpc.gates.base import Gate
from finode.smpc.gates.layout import Subtract, Times
from finode.smpc.gates.local import SumModels
from finode.smpc.gates.log_softmax import LOG_BITS, Log
from finode.smpc.gates.lookup import Table
from finode.smpc.gates.maximum import MAX_BLOCK, ArgMax, OneHot, Winners
from finode.smpc.gates.product import MatrixProduct
from finode.smpc.gates.softmax import (
    EXP_BITS,
    PROBABILITY_BITS,
    RECIPROCAL_BITS,
    Exp,
    Multiply,
    Reciprocal,
    reciprocal_table,
)
from finode.smpc.gates.truncate import Truncate
from finode.smpc.gates.votes import (
    AddIdentity,
    Centre,
    Diagonal,
    Distance,
    Join,
    Lookup,
    RowSum,
    Swap,
    Trace,
    WeightedSum,
    scaled_exp,
)
from finode.smpc.material import Shape

VOTES = ("soft", "hard", "weighted", "entropy", "spectral", "augmented", "prior")
WHOLE_BATCH = ("spectral",)
"""Votes in which a row of the answer depends on all rows: a batch of theirs has no padding."""
RIDGE_BITS = 8
"""M is the covariance plus 2^-8: small beside the variance of confidences that say anything (0.1 squared and more)."""
SQUARINGS = 3
WEIGHT_BITS = 16
"""Public weights are multiples of 2^-16 that add up to 1."""

_ENTROPY_BITS = 56
_SUM_BITS = _ENTROPY_BITS - RECIPROCAL_BITS
_MATRIX_BITS = 20
"""Digits of the entries of a matrix that is multiplied: enough for weights to 2^-16."""
_DEVIATION_BITS = 27
"""Digits of (confidence - mean) / sqrt(batch): twice as many of their products, and trace times factor below 2^62."""
_SHARE_BITS = 16
"""Digits of a probability before it is weighted."""


@dataclass(frozen=True, slots=True)
class Logits:
    """One lane's logits: the node, its shape (models, batch, C), its scale and the range |x| < 2^range_bits."""

    name: str
    shape: Shape
    point: int
    range_bits: int


@dataclass(frozen=True, slots=True)
class Tally:
    """The votes of all models together: (batch, C), `shift` digits too many, and below 2^bound without them."""

    name: str
    shift: int
    bound: int


def reveal(builder: CircuitBuilder, program: Program, lanes: list[Logits], order: list[int]) -> str:
    """Add the gates from every lane's logits to what is revealed; `order` are the models in the order of the lanes."""
    tally = Voting(builder, program, order).tally(lanes)
    shape = (program.answers, program.classes)
    if program.reveal == "probabilities":
        # Truncated before anything is revealed: the digits below 2^-f would show more than the answer.
        gate = Truncate(shape, tally.shift)
        return builder.add("vote/truncate", gate, tally.name) if tally.shift else tally.name
    gives = Winners.TOP if program.reveal == "top1" else Winners.INDEX
    return builder.add("vote/argmax", ArgMax(shape, tally.shift, tally.bound, gives), tally.name)


class Voting:
    """Builds the vote of one program."""

    def __init__(self, builder: CircuitBuilder, program: Program, order: list[int]) -> None:
        self._builder = builder
        self._program = program
        self._order = order
        self._f = program.fractional_bits
        self._models, self._batch, self._classes = program.models, program.answers, program.classes

    def tally(self, lanes: list[Logits]) -> Tally:
        """Add the gates of the program's vote."""
        match self._program.vote:
            case "hard":
                ballots = [self._hard_ballot(f"lane{i}", logits) for i, logits in enumerate(lanes)]
                return Tally(self._add("sum", SumModels(), *ballots), 0, self._models.bit_length() + 1)
            case "soft":
                total = self._add("sum", SumModels(), *self._probabilities(lanes))
                return self._probability(total, PROBABILITY_BITS, self._models)
            case "weighted":
                return self._weighted(lanes)
            case "entropy":
                return self._entropy(lanes)
            case "augmented":
                return self._augmented(lanes)
            case "prior":
                return self._prior(lanes)
            case _:
                return self._spectral(lanes)

    def _add(self, name: str, gate: Gate[Any], *inputs: str) -> str:
        return self._builder.add(f"vote/{name}", gate, *inputs)

    def _probability(self, name: str, point: int, models: int = 1) -> Tally:
        return Tally(name, point - self._f, self._f + models.bit_length() + 1)

    def _bits(self, logits: Logits) -> int:
        """Bits of a difference of two logits at scale 2^f."""
        return self._f + logits.range_bits + 1

    def _probabilities(self, lanes: list[Logits]) -> list[str]:
        """The gates of a `Softmax` one by one, so that the statistics find what they need of it."""
        shares = []
        for i, logits in enumerate(lanes):
            shape, row, bits = logits.shape, (*logits.shape[:-1], 1), self._bits(logits)
            distance = Distance(shape, logits.point - self._f, bits)
            t = self._builder.add(f"lane{i}/distance", distance, logits.name)
            e = self._builder.add(f"lane{i}/exp", Exp(shape, self._f, bits), t)
            total = self._builder.add(f"lane{i}/total", RowSum(), e)
            inverse = self._builder.add(f"lane{i}/reciprocal", Reciprocal(row, self._classes), total)
            shares.append(self._builder.add(f"lane{i}/softmax", Multiply(shape, row), e, inverse))
        return shares

    def _hard_ballot(self, lane: str, logits: Logits) -> str:
        shape, shift, bound = logits.shape, logits.point - self._f, self._bits(logits)
        if self._classes <= MAX_BLOCK:
            return self._builder.add(f"{lane}/argmax", ArgMax(shape, shift, bound, Winners.ONE_HOT), logits.name)
        label = self._builder.add(f"{lane}/argmax", ArgMax(shape, shift, bound, Winners.INDEX), logits.name)
        return self._builder.add(f"{lane}/one_hot", OneHot(shape[:-1], self._classes), label)

    def _weighted(self, lanes: list[Logits]) -> Tally:
        joined = self._add("join", Join(), *self._probabilities(lanes))
        digits = self._f + 4
        shape = (self._models, self._batch, self._classes)
        p = self._add("digits", Truncate(shape, PROBABILITY_BITS - digits), joined)
        weights = normalized(self._program.vote_weights)
        total = self._add("sum", WeightedSum(tuple(weights[model] for model in self._order)), p)
        return self._probability(total, digits + WEIGHT_BITS)

    # ---- weights that follow from the answers

    def _ballots(self, lanes: list[Logits], entropy: bool) -> tuple[str, str]:
        """Return all models' probabilities (K, batch, C) at scale 2^_SHARE_BITS, and (K, batch, 1) their -H at
        2^_ENTROPY_BITS, or their largest probability at 2^RECIPROCAL_BITS."""
        shares, measures = [], []
        for i, logits in enumerate(lanes):
            shape, row, bits = logits.shape, (*logits.shape[:-1], 1), self._bits(logits)

            def add(name: str, gate: Gate[Any], *inputs: str, lane: str = f"lane{i}") -> str:
                return self._builder.add(f"{lane}/{name}", gate, *inputs)

            t = add("distance", Distance(shape, logits.point - self._f, bits), logits.name)
            e = add("exp", Exp(shape, self._f, bits), t)
            total = add("total", RowSum(), e)
            inverse = add("reciprocal", Reciprocal(row, self._classes), total)
            shares.append(add("probabilities", Multiply(shape, row), e, inverse))
            if not entropy:
                measures.append(inverse)
                continue
            terms = add("terms", RowSum(), add("products", Multiply(shape, shape), e, t))
            digits = add("terms/digits", Truncate(row, EXP_BITS + self._f - _SUM_BITS), terms)
            mean = add("mean", Multiply(row, row), digits, inverse)
            logarithm = add("log", Log(row, self._classes), total)
            measures.append(add("entropy", Subtract(0, _ENTROPY_BITS - LOG_BITS), mean, logarithm))
        joined = self._add("join", Join(), *shares)
        shape = (self._models, self._batch, self._classes)
        p = self._add("digits", Truncate(shape, PROBABILITY_BITS - _SHARE_BITS), joined)
        return p, self._add("measures", Join(), *measures)

    def _augmented(self, lanes: list[Logits]) -> Tally:
        models, batch, classes = self._models, self._batch, self._classes
        originals = []
        for i, lane in enumerate(lanes):
            gate = augmentation.Originals(self._program.copies)
            name = self._builder.add(f"lane{i}/originals", gate, lane.name)
            originals.append(replace(lane, name=name, shape=(lane.shape[0], batch, classes)))
        joined = self._add("join", Join(), *self._probabilities(originals))
        if models == 1:
            return self._probability(self._add("sum", SumModels(), joined), PROBABILITY_BITS)
        p = self._add("digits", Truncate((models, batch, classes), PROBABILITY_BITS - _SHARE_BITS), joined)
        rows = [
            augmentation.Lane(name=lane.name, shape=lane.shape, point=lane.point, range_bits=lane.range_bits)
            for lane in lanes
        ]
        weights = augmentation.add_weights(self._builder, self._program, rows)
        votes = self._add("votes", Multiply((models, batch, classes), (models, batch, 1)), p, weights)
        return self._probability(self._add("sum", SumModels(), votes), _SHARE_BITS + augmentation.WEIGHT_BITS)

    def _prior(self, lanes: list[Logits]) -> Tally:
        models, batch, classes = self._models, self._batch, self._classes
        corrected, counts, done = [], [], 0
        for i, lane in enumerate(lanes):
            members = tuple(self._order[done : done + lane.shape[0]])
            done += len(members)
            counts.append(self._builder.add(f"lane{i}/counts", prior.LogCounts(members)))
            gate = prior.LessPrior(lane.point - self._f)
            name = self._builder.add(f"lane{i}/corrected", gate, lane.name, counts[-1])
            corrected.append(replace(lane, name=name, range_bits=prior.corrected_range_bits(lane.range_bits)))
        joined = self._add("join", Join(), *self._probabilities(corrected))
        if models == 1:
            return self._probability(self._add("sum", SumModels(), joined), PROBABILITY_BITS)
        p = self._add("digits", Truncate((models, batch, classes), PROBABILITY_BITS - _SHARE_BITS), joined)
        weights = prior.add_weights(self._builder, self._program, counts)
        votes = self._add("votes", Multiply((models, batch, classes), (models, 1, classes)), p, weights)
        return self._probability(self._add("sum", SumModels(), votes), _SHARE_BITS + prior.WEIGHT_BITS)

    def _entropy(self, lanes: list[Logits]) -> Tally:
        models, batch, classes = self._models, self._batch, self._classes
        p, entropy = self._ballots(lanes, entropy=True)
        table = _weight_table(models, classes)
        g = self._add("weights", Lookup((models, batch, 1), _ENTROPY_BITS, table), entropy)
        votes = self._add("votes", Multiply((models, batch, classes), (models, batch, 1)), p, g)
        total = self._add("sum", SumModels(), votes)
        digits = self._add("sum/digits", Truncate((batch, classes), table.output_bits + _SHARE_BITS - EXP_BITS), total)
        weight = self._add("weight", SumModels(), g)
        # Its least is 1 and its largest C, but for the digits that were rounded away.
        inverse = self._add("reciprocal", Lookup((batch, 1), table.output_bits, reciprocal_table(classes + 1)), weight)
        mean = self._add("mean", Multiply((batch, classes), (batch, 1)), digits, inverse)
        return self._probability(mean, EXP_BITS + RECIPROCAL_BITS)

    def _spectral(self, lanes: list[Logits]) -> Tally:
        models, batch, classes = self._models, self._batch, self._classes
        p, confidence = self._ballots(lanes, entropy=False)
        square = (models, models)
        # z = (confidence - mean) / sqrt(batch), so that z z^T is the covariance. The mean is exact; the root's divisor
        # is rounded, to 13 bits or more, and the ridge scaled alike: dividing by the trace takes it away.
        raised = 25 + (batch.bit_length() - 1) // 2
        divided = (math.isqrt((4 << 2 * raised) // batch**3) + 1) >> 1
        point = 2 * _DEVIATION_BITS
        ridge = (divided**2 * batch**3 << (point - RIDGE_BITS)) >> 2 * raised
        centred = self._add("centre", Centre(divided), confidence)
        z = self._add("centred", Truncate((models, batch), RECIPROCAL_BITS + raised - _DEVIATION_BITS), centred)
        gram = self._add("gram", MatrixProduct((models, batch), (batch, models)), z, self._add("swap", Swap(), z))
        matrix = self._add("matrix", AddIdentity(1, ridge), gram)
        # trace / K lies in [2^-8, 1/4 + 2^-8], but for a factor of 1 +- 2^-12.
        factor = -(-(1 << RIDGE_BITS) // models)
        normal = self._normalized("start", matrix, point, factor, factor, largest=96)
        for squaring in range(SQUARINGS):
            matrix = self._add(f"square{squaring}", MatrixProduct(square, square), normal, normal)
            normal = self._normalized(f"square{squaring}", matrix, 2 * _MATRIX_BITS, models, models, largest=models + 1)
        weights = self._add("weights", Diagonal(), normal)
        votes = self._add("votes", Multiply((models, batch, classes), (models, 1, 1)), p, weights)
        return self._probability(self._add("sum", SumModels(), votes), _SHARE_BITS + _MATRIX_BITS)

    def _normalized(self, name: str, matrix: str, point: int, factor: int, times: int, largest: int) -> str:
        """Return a matrix divided by its trace, at scale 2^_MATRIX_BITS; factor * trace lies in [1, largest]."""
        square = (self._models, self._models)
        trace = self._add(f"{name}/trace", Trace(factor), matrix)
        inverse = self._add(f"{name}/reciprocal", Lookup((1, 1), point, reciprocal_table(largest)), trace)
        digits = self._add(f"{name}/digits", Truncate(square, point - _MATRIX_BITS), matrix)
        product = self._add(f"{name}/product", Multiply(square, (1, 1)), digits, inverse)
        scaled = self._add(f"{name}/scaled", Times(times), product)
        return self._add(f"{name}/normal", Truncate(square, RECIPROCAL_BITS), scaled)


def _weight_table(models: int, classes: int) -> Table:
    """Return C / K * exp(x) on [-ln C, 0] with a node beyond either end, nodes 1/16 apart.

    The sum of the weights is below C, their scale 2^output_bits such that the sum of weighted probabilities fits.
    """
    nodes_below = math.ceil(math.log(classes) * 16) + 2
    nodes = nodes_below + 3
    bits = 44 - (classes - 1).bit_length()
    return Table(scaled_exp(classes / models), -nodes_below / 16, 4, (nodes - 1).bit_length(), 16, bits)


def normalized(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Return positive weights as multiples of 2^-WEIGHT_BITS that add up to 1 exactly."""
    if not weights or min(weights) < 0 or sum(weights) == 0:
        raise InputError(f"weights {list(weights)}: none may be negative, and not all of them zero")
    one, total = 1 << WEIGHT_BITS, sum(weights)
    shares = [weight * one // total for weight in weights]
    # What rounding down left over goes to those that lost most of it.
    most = sorted(range(len(weights)), key=lambda k: -(weights[k] * one % total))
    for k in most[: one - sum(shares)]:
        shares[k] += 1
    return tuple(shares)
