"""Log-softmax over the last dimension: x_j - max - ln(sum_i exp(x_i - max)), on shares.

It is softmax.py without its last two rounds, and a logarithm of the sum instead: an interpolated lookup as the
reciprocal is, on [1, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from finode.errors import LocalError
from finode.smpc.gates.base import Gate
from finode.smpc.gates.lookup import Expansion, Table
from finode.smpc.gates.maximum import Tournament, TournamentMaterial
from finode.smpc.gates.softmax import Exp, ExpMaterial, Reciprocal, ReciprocalMaterial, reciprocal_table
from finode.smpc.material import Shape, Source
from finode.smpc.session import Cost, Session
from finode.smpc.share import Share
from finode.smpc.weights import PlainWeights

LOG_BITS = 36
"""Digits of the logarithm, and of a log-softmax, after the point."""


def _log(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.log(), 1 / x, -(x**-2) / 2


LOG = Expansion("log", _log)


@dataclass(frozen=True, slots=True)
class Log(Reciprocal):
    """ln(x) at scale 2^LOG_BITS, for x in [1, largest] at scale 2^EXP_BITS. Within 2^-14.6.

    Cost: 1 round; 64 bits per element.

    1. Open c = x + r + 2^62, without its last two digits; then read the table (lookup.py).
    """

    @property
    def _table(self) -> Table:
        nodes = reciprocal_table(self.largest)
        return Table(LOG, nodes.start, nodes.step_bits, nodes.index_bits, nodes.input_bits, LOG_BITS)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LogSoftmaxMaterial:
    tournament: TournamentMaterial
    exp: ExpMaterial
    log: ReciprocalMaterial


@dataclass(frozen=True, slots=True)
class LogSoftmax(Gate[LogSoftmaxMaterial]):
    """Log-softmax of x = z / 2^shift over the last dimension, x at scale 2^input_bits; the result has LOG_BITS.

    For |z| < 2^62, |x| < 2^(bits - 1) - 1 units, and bits - input_bits >= 4. Within 2^-13 of the real one for C <= 256;
    beyond, the roundings of C exponentials add up to some sqrt(C) * 2^-18.

    Cost: 8 rounds for 2 to 32 values, 4 more for every further level of the tournament: its bits, then those of `Exp`
    per element and of `Log` per row.

    1. 4 rounds: the largest value, and all values truncated (`Tournament`).
    2. 3 rounds: e_j = exp(x_j - largest) (`Exp`).
    3. 1 round: l = ln(sum_j e_j) (`Log`); then x_j - largest - l is local.
    """

    shape: Shape
    shift: int
    input_bits: int
    bits: int

    @property
    def _tournament(self) -> Tournament:
        return Tournament(self.shape, self.shift, self.bits, with_value=True, with_index=False)

    @property
    def _exp(self) -> Exp:
        return Exp(self.shape, self.input_bits, self.bits)

    @property
    def _log(self) -> Log:
        return Log((*self.shape[:-1], 1), self.shape[-1])

    def material(self, source: Source, *inputs: object) -> LogSoftmaxMaterial:
        return LogSoftmaxMaterial(
            self._tournament.material(source), self._exp.material(source), self._log.material(source)
        )

    async def run(self, session: Session, material: LogSoftmaxMaterial, *inputs: Share) -> Share:
        winner = await self._tournament.run(session, material.tournament, inputs[0])
        if winner.largest is None:
            raise LocalError("a log-softmax needs the largest value")
        distance = Share(winner.values - winner.largest[..., None], session.first)
        e = await self._exp.run(session, material.exp, distance)
        log = await self._log.run(session, material.log, e.map(lambda x: x.sum(-1, keepdim=True)))
        return distance.scale(1 << (LOG_BITS - self.input_bits)) - log

    def plain(self, weights: PlainWeights, *inputs: Tensor) -> Tensor:
        x = inputs[0] >> self.shift
        distance = x - x.amax(-1, keepdim=True)
        total = self._exp.plain(weights, distance).sum(-1, keepdim=True)
        return (distance << (LOG_BITS - self.input_bits)) - self._log.plain(weights, total)

    def cost(self) -> Cost:
        return reduce(Cost.then, (part.cost() for part in (self._tournament, self._exp, self._log)))
