"""All parties and the dealer in one process, without a network: for tests, and for costs without daemons."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc import ring, sharing
from finode.smpc.circuit import Circuit, Node
from finode.smpc.devices import CPU
from finode.smpc.engine import Exchange, Finished, Floats, Outcome, Output, Program
from finode.smpc.gates.base import Gate
from finode.smpc.material import Bundle
from finode.smpc.native import NativeEngine
from finode.smpc.randomness import fresh_seed
from finode.smpc.session import Cost, Run, Session
from finode.smpc.share import Share


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What all parties came to: their values, costs and seconds of computing, and every frame that was sent."""

    values: list[Any] = field(repr=False)
    costs: list[Cost]
    bytes_sent: list[int]
    compute_s: list[float]
    frames: list[list[bytes]] = field(repr=False)
    """By round, then by sender."""
    transcripts: list[bytes] = field(repr=False)
    rests: list[Run] = field(repr=False)
    """What follows at each party, for `exchange` in its turn; empty where nothing does."""


def exchange(runs: Sequence[Run]) -> Exchanged:
    """Carry the frames between parties' runs until all are finished."""
    outcomes: list[Outcome] = [run.start() for run in runs]
    frames: list[list[bytes]] = []
    while isinstance(outcomes[0], Exchange):
        rounds = [outcome for outcome in outcomes if isinstance(outcome, Exchange)]
        if len(rounds) != len(runs):
            raise LocalError("some parties are finished and others are not")
        frames.append([bytes(next(iter(outcome.frames.values()))) for outcome in rounds])
        outcomes = [
            run.resume({j: outcome.frames[i] for j, outcome in enumerate(rounds) if j != i})
            for i, run in enumerate(runs)
        ]
    finished = [outcome for outcome in outcomes if isinstance(outcome, Finished)]
    return Exchanged(
        [outcome.value for outcome in finished],
        [run.cost for run in runs],
        [outcome.bytes_sent for outcome in finished],
        [outcome.compute_s for outcome in finished],
        frames,
        [outcome.transcript for outcome in finished],
        [outcome.rest for outcome in finished if isinstance(outcome.rest, Run)],
    )


@dataclass(frozen=True, slots=True)
class GateRun:
    """A gate or circuit that ran: its opened output and each party's cost."""

    opened: Tensor = field(repr=False)
    costs: list[Cost]
    correction_bytes: int
    frames: list[list[bytes]] = field(repr=False)


def simulate(gate: Gate[Any], *inputs: Tensor, parties: int, device: torch.device = CPU) -> GateRun:
    """Share the inputs, deal, run one gate among all parties, and open its output."""
    names = tuple(f"input{i}" for i in range(len(inputs)))
    circuit = Circuit(names, (Node("gate", gate, names),), "gate")
    seeds = [fresh_seed() for _ in range(parties)]
    corrections = b"".join(chunk.tobytes() for chunk in circuit.deal(seeds, None, device))
    shares = [
        [
            ring.from_bytes(share, tuple(x.shape)).to(device)
            for share in sharing.share_elements(x.cpu().numpy(), parties)
        ]
        for x in inputs
    ]

    def run_of(party: int) -> Run:
        last = party == parties - 1
        sizes = circuit.correction_sizes()
        bundle = Bundle(seeds[party], sizes, corrections if last else b"", last, None, device)

        async def body(session: Session) -> Tensor:
            prepared = circuit.prepare(session, bundle, None)
            own = {name: Share(pieces[party], session.first) for name, pieces in zip(names, shares, strict=True)}
            return (await circuit.run(session, prepared, own)).data

        return Run(body, party, parties)

    done = exchange([run_of(party) for party in range(parties)])
    opened = torch.stack(done.values).sum(0).cpu()
    return GateRun(opened, done.costs, len(corrections), done.frames)


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """A program that ran: what the querier learns, and what it cost every party."""

    output: Output
    costs: list[Cost]
    bytes_sent: list[int]
    compute_s: list[float]
    correction_bytes: int
    deal_s: float
    output_shares: list[bytes] = field(repr=False)
    frames: list[list[bytes]] = field(repr=False)


def simulate_program(
    program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats, *, device: torch.device = CPU
) -> ProgramRun:
    """Share weights and inputs, open the masked weights, deal, and run `program` among all its parties."""
    engine, parties, f = NativeEngine(device), program.parties, program.fractional_bits
    secret = fresh_seed()
    weight_shares = [
        sharing.share_weights(plan, model, parties, f) for plan, model in zip(program.plans, weights, strict=True)
    ]
    seeds = [
        [engine.mask_seed(secret, deployment, party) for deployment in program.deployments] for party in range(parties)
    ]
    of_party = [[shares[party] for shares in weight_shares] for party in range(parties)]
    opened = exchange([engine.open_weights(program.plans, of_party[i], seeds[i], i, parties) for i in range(parties)])
    began = time.perf_counter()
    dealing = engine.deal(program, secret)
    corrections = bytearray().join(dealing.corrections)
    deal_s = time.perf_counter() - began
    keys = {frozenset((i, j)): fresh_seed() for i in range(parties) for j in range(i)}
    inputs = sharing.share_input(x, parties, f)
    done = exchange(
        [
            engine.run(
                engine.prepare(
                    program,
                    i,
                    engine.hold(program, i, opened.values[i], seeds[i], of_party[i]),
                    dealing.seeds[i],
                    corrections if i == parties - 1 else b"",
                ),
                inputs[i],
                {j: keys[frozenset((i, j))] for j in range(parties) if j != i},
            )
            for i in range(parties)
        ]
    )
    return ProgramRun(
        sharing.reconstruct(program, done.values),
        done.costs,
        done.bytes_sent,
        done.compute_s,
        len(corrections),
        deal_s,
        done.values,
        done.frames,
    )
