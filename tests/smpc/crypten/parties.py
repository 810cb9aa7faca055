"""All parties of a CrypTen run in one process; every frame that is carried between them is counted and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finode.smpc import sharing
from finode.smpc.crypten.engine import CryptenEngine
from finode.smpc.crypten.threads import ThreadRun
from finode.smpc.engine import Exchange, Finished, Output, Program
from finode.smpc.randomness import fresh_seed
from tests.smpc.models import Floats, PlanMaker


@dataclass(frozen=True)
class Carried:
    """What the parties came to, and the frames that went between them: by round, then (sender, receiver)."""

    finished: list[Finished]
    frames: list[dict[tuple[int, int], bytes]]


def carry(runs: Sequence[ThreadRun]) -> Carried:
    """Carry frames between runs until all are finished; each has exactly the size that its receiver waits for."""
    outcomes = [run.start() for run in runs]
    carried: list[dict[tuple[int, int], bytes]] = []
    while isinstance(outcomes[0], Exchange):
        frames: dict[tuple[int, int], bytes] = {}
        for sender, outcome in enumerate(outcomes):
            assert isinstance(outcome, Exchange)
            assert outcome.round == len(carried)
            for receiver, frame in outcome.frames.items():
                waiting = outcomes[receiver]
                assert isinstance(waiting, Exchange)
                assert len(frame) == waiting.expected_bytes
                frames[sender, receiver] = bytes(frame)
        carried.append(frames)
        outcomes = [
            run.resume({sender: frame for (sender, to), frame in frames.items() if to == receiver})
            for receiver, run in enumerate(runs)
        ]
    return Carried([outcome for outcome in outcomes if isinstance(outcome, Finished)], carried)


@dataclass(frozen=True)
class Committee:
    """All that the parties of a program hold before one run of it."""

    program: Program
    correction_bytes: int
    arguments: list[dict[str, Any]]

    def run(self, party: int, **changes: object) -> ThreadRun:
        """Hold, prepare and run, with some of the arguments changed."""
        engine, own = CryptenEngine(), self.arguments[party] | changes
        holding = engine.hold(self.program, party, own["constants"], own["mask_seeds"], own["weight_shares"])
        prepared = engine.prepare(self.program, party, holding, own["bundle_seed"], own["corrections"])
        return engine.run(prepared, own["input_share"], own["zero_keys"], count=own.get("count"))

    def runs(self) -> list[ThreadRun]:
        return [self.run(party) for party in range(self.program.parties)]

    def answer(self, carried: Carried) -> Output:
        return sharing.reconstruct(self.program, [finished.value for finished in carried.finished])


def committee_of(program: Program, makers: Sequence[PlanMaker], x: Floats) -> Committee:
    """Share weights and input, and deal one bundle."""
    engine, parties, f = CryptenEngine(), program.parties, program.fractional_bits
    weights = [sharing.share_weights(maker.plan(), maker.weights, parties, f) for maker in makers]
    dealing = engine.deal(program, fresh_seed())
    corrections = b"".join(dealing.corrections)
    keys = {(i, j): fresh_seed() for j in range(parties) for i in range(j)}
    inputs = sharing.share_input(x, parties, f)
    arguments: list[dict[str, Any]] = [
        {
            "constants": [b"" for _ in makers],
            "mask_seeds": [bytes(32) for _ in makers],
            "weight_shares": [shares[i] for shares in weights],
            "input_share": inputs[i],
            "bundle_seed": dealing.seeds[i],
            "corrections": corrections if i == parties - 1 else b"",
            "zero_keys": {j: keys[min(i, j), max(i, j)] for j in range(parties) if j != i},
        }
        for i in range(parties)
    ]
    return Committee(program, dealing.correction_bytes, arguments)
