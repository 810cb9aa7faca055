"""The statistics of a session's models as a circuit: what runs, on the same bundle, after the answer has left.

It reads values that the answer's circuit computed anyway (logits, distances, exponentials, the reciprocals of their
sums, the answer itself) and ends in one vector of sums, in the order of `statistics_layout`, and in ballots for later
feedback. The answer's circuit is the same gates as without it, so it takes the same rounds; what it keeps for the rest
costs memory alone.

    votes       every model's one-hot label: `ArgMax`, or the ballot of a hard vote
    label       the one-hot vector of the answer's label
    joint       products of the votes, masked and opened once (gates/statistics.py)
    agreement   votes times label; how many of them agree, n, becomes 1 / n by a table; matrix product
    entropy     with m = sum_j p_j t_j, t_j = x_j - max and S = sum_j e^t_j: exp(-H) = e^m / S, where m lies in
                [-ln C, 0] and 1 / S is at hand. g_k = e^m_k / S_k * C / K, so that sum_k g_k lies in [1, C] and has
                a reciprocal by table; then g_k times that reciprocal, summed over the inputs by a matrix product, and
                truncated

Cost: for 2 to 32 classes 10 rounds after a soft, weighted or spectral vote, where the entropy is the longest path; 7
after an entropy vote, which has the m_k; 17 after a hard vote, which has no softmax. Bits are those of the gates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from finode.smpc.augmentation import Originals
from finode.smpc.circuit import Circuit, CircuitBuilder
from finode.smpc.engine import Program
from finode.smpc.gates.base import Gate
from finode.smpc.gates.linear import Mask
from finode.smpc.gates.local import SumModels
from finode.smpc.gates.lookup import Table
from finode.smpc.gates.maximum import MAX_BLOCK, ArgMax, OneHot, Winners
from finode.smpc.gates.product import MatrixProduct
from finode.smpc.gates.softmax import EXP_BITS, RECIPROCAL_BITS, Exp, Multiply, Reciprocal, reciprocal_table
from finode.smpc.gates.statistics import (
    Agreement,
    Arranged,
    Ballots,
    Column,
    EqualParts,
    Flat,
    JointVotes,
    Present,
    Rows,
    SumInputs,
)
from finode.smpc.gates.truncate import Truncate
from finode.smpc.gates.votes import Distance, Lookup, RowSum, scaled_exp
from finode.smpc.statistics_layout import SCALE_BITS, ballot_places, has_joint
from finode.smpc.voting import Logits

PRESENT = "present"
"""The public input of the circuit: (batch,), 1 for a true input, 0 for padding."""

_SUM_BITS = 20
"""Digits of sum_j e^t_j t_j before it is multiplied, as in voting.py: so the gates are the same."""
_FACTOR_BITS = 18
"""Digits of 1 / S, and with what `_exp_table` has, 60 of C e^m / S: a weight is exact to S 2^-18 of itself, S <= C."""
_WEIGHT_BITS = 20
_INVERSE_BITS = 28
"""Digits of g and of 1 / sum g: 4096 inputs' products, each below 1, add up below 2^61."""


def with_statistics(
    answer: CircuitBuilder, program: Program, lanes: list[Logits], order: list[int], output: str
) -> Circuit:
    """Return the circuit of the answer, from `output`, with the statistics as its `rest`.

    `order` are the models in the order of the lanes.
    """
    rest = _Rest(answer)
    statistics = _Statistics(rest, program, order)
    lanes = [statistics.inputs_of(logits, f"lane{i}") for i, logits in enumerate(lanes)]
    votes, label = statistics.votes(lanes), statistics.label(output)
    sums, ballots = statistics.sums(votes, label, statistics.entropy(lanes))
    circuit = rest.build(sums, ballots)
    kept = tuple(name for name in circuit.inputs if name != PRESENT)
    return answer.build(output, kept, circuit)


@dataclass(slots=True)
class _Rest:
    """Collects the gates of the rest. What the answer computes in the same way is taken from there."""

    answer: CircuitBuilder
    own: CircuitBuilder = field(default_factory=lambda: CircuitBuilder((PRESENT,)))

    def add(self, name: str, gate: Gate[Any], *inputs: str) -> str:
        found = self.answer.find(gate, *inputs)
        return self.own.add(f"statistics/{name}", gate, *inputs) if found is None else found

    def build(self, output: str, kept: str) -> Circuit:
        circuit = self.own.build(output, (kept,))
        made = {node.name for node in circuit.nodes}
        read = dict.fromkeys(name for node in circuit.nodes for name in node.inputs if name not in made)
        return replace(circuit, inputs=tuple(read))


class _Statistics:
    """Builds the statistics of one program."""

    def __init__(self, rest: _Rest, program: Program, order: list[int]) -> None:
        self._add = rest.add
        self._program = program
        self._order = tuple(order)
        self._f = program.fractional_bits
        self._models, self._batch, self._classes = program.models, program.answers, program.classes

    def _bits(self, logits: Logits) -> int:
        return self._f + logits.range_bits + 1

    def inputs_of(self, logits: Logits, lane: str) -> Logits:
        """Return the logits of the inputs themselves, without those of their copies."""
        if not self._program.copies:
            return logits
        name = self._add(f"{lane}/originals", Originals(self._program.copies), logits.name)
        return replace(logits, name=name, shape=(logits.shape[0], self._batch, self._classes))

    def _distance(self, logits: Logits, lane: str) -> str:
        gate = Distance(logits.shape, logits.point - self._f, self._bits(logits))
        return self._add(f"{lane}/distance", gate, logits.name)

    def votes(self, lanes: list[Logits]) -> str:
        """Add the one-hot votes of all models (K, batch, C), in the order of the program, without the padding."""
        votes = []
        for i, logits in enumerate(lanes):
            # A hard vote has chosen among the logits themselves; all others among their distances from the largest.
            if self._program.vote == "hard":
                name, shift = logits.name, logits.point - self._f
            else:
                name, shift = self._distance(logits, f"lane{i}"), 0
            votes.append(self._one_hot(f"lane{i}", name, logits.shape, shift, self._bits(logits)))
        return self._add("present", Present(), self._add("votes", Arranged(self._order), *votes), PRESENT)

    def label(self, output: str) -> str:
        """Add the one-hot vector of the answer's label (batch, C)."""
        rows = (self._batch,)
        if self._program.reveal == "probabilities":
            # Sums of K probabilities, or of K votes.
            bits = (0 if self._program.vote == "hard" else self._f) + self._models.bit_length() + 1
            return self._one_hot("label", output, (*rows, self._classes), 0, bits)
        index = output if self._program.reveal == "label" else self._add("label/index", Column(0), output)
        return self._add("label/one_hot", OneHot(rows, self._classes), index)

    def _one_hot(self, name: str, value: str, shape: tuple[int, ...], shift: int, bits: int) -> str:
        if shape[-1] <= MAX_BLOCK:
            return self._add(f"{name}/argmax", ArgMax(shape, shift, bits, Winners.ONE_HOT), value)
        index = self._add(f"{name}/argmax", ArgMax(shape, shift, bits, Winners.INDEX), value)
        return self._add(f"{name}/one_hot", OneHot(shape[:-1], shape[-1]), index)

    def entropy(self, lanes: list[Logits]) -> str:
        """Add the sums of the entropy weights (K, 1) at scale 2^SCALE_BITS."""
        means, inverses = [], []
        for i, logits in enumerate(lanes):
            lane, shape, row = f"lane{i}", logits.shape, (*logits.shape[:-1], 1)
            t = self._distance(logits, lane)
            e = self._add(f"{lane}/exp", Exp(shape, self._f, self._bits(logits)), t)
            inverse = self._add(
                f"{lane}/reciprocal", Reciprocal(row, self._classes), self._add(f"{lane}/total", RowSum(), e)
            )
            terms = self._add(f"{lane}/terms", RowSum(), self._add(f"{lane}/products", Multiply(shape, shape), e, t))
            digits = self._add(f"{lane}/digits", Truncate(row, EXP_BITS + self._f - _SUM_BITS), terms)
            means.append(self._add(f"{lane}/mean", Multiply(row, row), digits, inverse))
            inverses.append(inverse)
        rows = (self._models, self._batch, 1)
        table = _exp_table(self._models, self._classes)
        mean = self._add("entropy/mean", Arranged(self._order), *means)
        power = self._add("entropy/exp", Lookup(rows, _SUM_BITS + RECIPROCAL_BITS, table), mean)
        joined = self._add("entropy/inverses", Arranged(self._order), *inverses)
        factor = self._add("entropy/factors", Truncate(rows, RECIPROCAL_BITS - _FACTOR_BITS), joined)
        product = self._add("entropy/products", Multiply(rows, rows), power, factor)
        dropped = table.output_bits + _FACTOR_BITS - _WEIGHT_BITS
        weights = self._add("entropy/weights", Truncate(rows, dropped), product)
        # The sum's least is 1 and its largest C, but for the digits that were rounded away.
        lookup = Lookup((self._batch, 1), _WEIGHT_BITS, reciprocal_table(self._classes + 1))
        inverse = self._add("entropy/reciprocal", lookup, self._add("entropy/total", SumModels(), weights))
        cut = Truncate((self._batch, 1), RECIPROCAL_BITS - _INVERSE_BITS)
        inverse = self._add("entropy/reciprocal/digits", cut, inverse)
        present = self._add("entropy/present", Rows(), self._add("entropy/kept", Present(), weights, PRESENT))
        gate = MatrixProduct((self._models, self._batch), (self._batch, 1))
        sums = self._add("entropy/sums", gate, present, inverse)
        return self._add(
            "entropy/sums/digits", Truncate((self._models, 1), _WEIGHT_BITS + _INVERSE_BITS - SCALE_BITS), sums
        )

    def sums(self, votes: str, label: str, entropy: str) -> tuple[str, str]:
        """Add the whole vector, and the ballots."""
        models, batch, classes = self._models, self._batch, self._classes
        shape = (models, batch, classes)
        masked = self._add("votes/mask", Mask(shape), votes)
        masked_label = self._add("label/mask", Mask((batch, classes)), label)
        joint = has_joint(models, classes) and models > 1
        parts = [self._add("joint", JointVotes(shape), masked)] if joint else []
        parts.append(self._add("labels", SumInputs(), votes))
        agrees = self._add("agrees", Agreement(shape), masked, masked_label)
        number = self._add("agrees/number", SumModels(), agrees)
        part = self._add(
            "agrees/part",
            EqualParts(models),
            self._add("agrees/one_hot", OneHot((batch,), models + 1), number),
        )
        parts.append(self._add("agreement", MatrixProduct((models, batch), (batch, 1)), agrees, part))
        ballots = self._add("ballots", Ballots(shape, ballot_places(classes)), masked)
        return self._add("sums", Flat(), *parts, entropy), ballots


def _exp_table(models: int, classes: int) -> Table:
    """Return C / K * exp(x) on [-ln C, 0] with a node beyond either end, nodes 1/16 apart."""
    nodes_below = math.ceil(math.log(classes) * 16) + 2
    nodes = nodes_below + 3
    bits = 42 - (classes - 1).bit_length()
    return Table(scaled_exp(classes / models), -nodes_below / 16, 4, (nodes - 1).bit_length(), 16, bits)
