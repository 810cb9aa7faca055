"""All that the parties of a program hold before a run of it: for tests that look at, or spoil, a single piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finode.smpc import sharing
from finode.smpc.engine import Dealing, Program
from finode.smpc.native import NativeEngine
from finode.smpc.randomness import fresh_seed
from finode.smpc.session import Run
from finode.smpc.simulation import exchange
from tests.smpc.models import Floats, PlanMaker


@dataclass(frozen=True)
class Committee:
    program: Program
    secret: bytes
    dealing: Dealing
    corrections: bytes
    arguments: list[dict[str, Any]]
    """Of `NativeEngine.hold`, `prepare` and `run`, by party."""

    def run(self, party: int, **changes: object) -> Run:
        """Hold, prepare and run, with some of the arguments changed."""
        engine, own = NativeEngine(), self.arguments[party] | changes
        holding = engine.hold(self.program, party, own["constants"], own["mask_seeds"], own["weight_shares"])
        prepared = engine.prepare(self.program, party, holding, own["bundle_seed"], own["corrections"])
        return engine.run(prepared, own["input_share"], own["zero_keys"], count=own.get("count"))


def committee_of(program: Program, makers: Sequence[PlanMaker], x: Floats) -> Committee:
    """Share weights and input, open the masked weights, and deal one bundle."""
    engine, secret, parties, f = NativeEngine(), fresh_seed(), program.parties, program.fractional_bits
    weights = [sharing.share_weights(maker.plan(), maker.weights, parties, f) for maker in makers]
    seeds = [[engine.mask_seed(secret, d, i) for d in program.deployments] for i in range(parties)]
    own = [[shares[i] for shares in weights] for i in range(parties)]
    opened = exchange([engine.open_weights(program.plans, own[i], seeds[i], i, parties) for i in range(parties)])
    dealing = engine.deal(program, secret)
    corrections = b"".join(dealing.corrections)
    keys = {(i, j): fresh_seed() for j in range(parties) for i in range(j)}
    inputs = sharing.share_input(x, parties, f)
    arguments = [
        {
            "constants": opened.values[i],
            "mask_seeds": seeds[i],
            "weight_shares": own[i],
            "input_share": inputs[i],
            "bundle_seed": dealing.seeds[i],
            "corrections": corrections if i == parties - 1 else b"",
            "zero_keys": {j: keys[min(i, j), max(i, j)] for j in range(parties) if j != i},
        }
        for i in range(parties)
    ]
    return Committee(program, secret, dealing, corrections, arguments)
