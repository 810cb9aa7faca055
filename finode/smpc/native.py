"""The `native` engine: the protocols of `finode.smpc.gates` behind the interface of `engine.py`.

Semi-honest, N >= 2 parties, any N - 1 of whom learn nothing; a dealer who sees no input, weight, opened value or
output, and who must not be one of them or the querier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finode.errors import InputError, LocalError, LocalProtocolError
from finode.smpc import ring, sharing
from finode.smpc.circuit import Circuit
from finode.smpc.contribution import PRESENT
from finode.smpc.devices import CPU
from finode.smpc.engine import Buffer, Dealing, Floats, Holding, Output, Prepared, Program, StatisticsShare
from finode.smpc.feedback import ballots_of, feedback_run
from finode.smpc.lowering import lower
from finode.smpc.material import Bundle
from finode.smpc.plaintext import run_plaintext
from finode.smpc.plan import INPUT, Plan
from finode.smpc.randomness import fresh_seed, subkey
from finode.smpc.session import Run, Session
from finode.smpc.share import Share
from finode.smpc.voting import WHOLE_BATCH
from finode.smpc.weights import DealerWeights, PartyWeights, expand_mask, masked_weights, split
from finode.smpc.zero import check_zero_keys, shown_share, zero_share

CHUNK_BYTES = 256 * 1024
"""Corrections are handed out in chunks of about this size, each a message between processes."""

RUN_MEMORY_FACTOR = 2
"""A run takes its material and about as much again for what is unfolded, opened and on its way."""
_DONE = object()


class NativeEngine:
    """Implements `finode.smpc.engine.Engine`. Holds no state but its device: every call says all that it needs."""

    name = "native"

    def __init__(self, device: torch.device = CPU) -> None:
        """`device` is where tensors are kept and computed with (`devices.open_device`); results do not depend on it."""
        self._device = device

    def mask_seed(self, secret: bytes, deployment: bytes, party_index: int) -> bytes:
        """Return the 32-byte seed of a party's share of the deployment's mask A. `secret` has 32 bytes."""
        return subkey(secret, "mask seed", deployment, party_index)

    def open_weights(
        self,
        plans: Sequence[Plan],
        shares: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        party_index: int,
        parties: int,
    ) -> Run:
        """Open W^ = W - A of every deployment; the value is a list of the constants' bytes, one per plan.

        Cost: 1 round; 64 bits per element of a weight that secrets are multiplied with.
        """
        _check_seat(party_index, parties)
        differences = []
        for plan, share, seed in zip(plans, shares, mask_seeds, strict=True):
            weights = split(share, plan.weights, "the weight share")
            parts = [(weights[spec.name] - expand_mask(seed, spec)).reshape(-1) for spec in masked_weights(plan)]
            differences.append(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64))

        async def body(session: Session) -> list[bytes]:
            opened = await session.parallel(
                *(session.branch(f"weights{i}").open(difference) for i, difference in enumerate(differences))
            )
            return [ring.to_bytes(weights) for weights in opened]

        return Run(body, party_index, parties)

    def deal(self, program: Program, secret: bytes) -> Dealing:
        """Make one bundle from fresh randomness; the corrections are computed as they are taken, gate by gate."""
        seeds = tuple(fresh_seed() for _ in range(program.parties))
        mask_seeds = [
            [self.mask_seed(secret, deployment, party) for party in range(program.parties)]
            for deployment in program.deployments
        ]
        lowered = _lowered(program)
        weights = DealerWeights(program.plans, mask_seeds, self._device)
        pieces = chain.from_iterable(circuit.deal(seeds, weights, self._device) for circuit in lowered.circuits)
        return Dealing(seeds, lowered.correction_bytes, _gathered(pieces))

    def correction_bytes(self, program: Program) -> int:
        """Return the exact size of the corrections that the last party gets for one run of `program`."""
        return _lowered(program).correction_bytes

    def memory_bytes(self, program: Program) -> int:
        """Return about the most memory that one run of `program` takes at a party, its bundle included."""
        return RUN_MEMORY_FACTOR * _lowered(program).memory_bytes

    def hold(
        self,
        program: Program,
        party_index: int,
        constants: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        weight_shares: Sequence[Buffer],
    ) -> PartyWeights:
        """Read a party's shares and constants of the program's deployments. See `engine.Engine.hold`."""
        _check_seat(party_index, program.parties)
        return PartyWeights(program.plans, constants, mask_seeds, weight_shares, party_index == 0, self._device)

    def prepare(
        self, program: Program, party_index: int, holding: Holding, bundle_seed: bytes, corrections: Buffer
    ) -> PreparedRun:
        """Take one bundle. See `engine.Engine.prepare`."""
        _check_seat(party_index, program.parties)
        if not isinstance(holding, PartyWeights):
            raise LocalError("the holding is of another engine")
        lowered = _lowered(program)
        last = party_index == program.parties - 1
        bundle = Bundle(bundle_seed, lowered.sizes, corrections, last, holding, self._device)
        return PreparedRun(program, party_index, lowered, bundle, holding)

    def run(
        self, prepared: Prepared, input_share: Buffer, zero_keys: Mapping[int, bytes], *, count: int | None = None
    ) -> Run:
        """Run the program; the value is this party's share of the output, as bytes. See `engine.Engine.run`."""
        if not isinstance(prepared, PreparedRun):
            raise LocalError("the bundle was prepared by another engine")
        program, party_index = prepared.program, prepared.party_index
        check_zero_keys(zero_keys, party_index, program.parties)
        count = program.answers if count is None else count
        if not 1 <= count <= program.answers:
            raise LocalError(f"{count} true inputs in a batch that answers {program.answers}")
        if count < program.answers and program.vote in WHOLE_BATCH:
            raise LocalError(f"a {program.vote} vote looks at all {program.answers} rows, so none of them is padding")
        expected = sharing.input_bytes(program.plans[0], program.batch)
        if len(memoryview(input_share).cast("B")) != expected:
            raise InputError(f"the input share has {len(input_share)} bytes instead of {expected}")
        query = ring.from_bytes(input_share, (1, program.batch, *program.plans[0].input_shape)).to(self._device)
        circuit, materials = prepared.take()
        kept: dict[str, Any] = {}

        async def body(session: Session) -> bytes:
            output = await circuit.run(session, materials, {INPUT: Share(query, session.first)}, kept)
            rows = output.data.reshape(program.answers, -1).cpu()
            return ring.to_bytes(shown_share(rows, count, zero_keys, party_index))

        def rest(first_round: int) -> Run:
            return statistics_run(prepared, kept, zero_keys, count, first_round, self._device)

        return Run(body, party_index, program.parties, rest=rest if circuit.rest else None)

    def feedback(
        self,
        program: Program,
        party_index: int,
        ballots: Buffer,
        label_share: Buffer,
        zero_keys: Mapping[int, bytes],
        *,
        count: int,
    ) -> Run:
        """Count how often each model voted for the label. See `engine.Engine.feedback`."""
        _check_seat(party_index, program.parties)
        check_zero_keys(zero_keys, party_index, program.parties)
        return feedback_run(program, party_index, ballots, label_share, zero_keys, count)

    def plaintext(self, program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats) -> Output:
        """Run the program in the clear with the same fixed-point semantics."""
        return run_plaintext(program, weights, x)


def statistics_run(
    prepared: PreparedRun,
    kept: dict[str, Any],
    zero_keys: Mapping[int, bytes],
    count: int,
    first_round: int,
    device: torch.device,
) -> Run:
    """Return what follows the answer: the run whose value is a `StatisticsShare`, from the values that were kept.

    These are on `device`; what comes of them is not.
    """
    program, party_index = prepared.program, prepared.party_index

    async def body(session: Session) -> StatisticsShare:
        circuit, materials = prepared.take_rest()
        inputs = {**kept, PRESENT: (torch.arange(program.answers, device=device) < count).long()}
        kept.clear()
        handed: dict[str, Any] = {}
        sums = (await circuit.run(session, materials, inputs, handed)).data.cpu()
        blinded = sums + zero_share(zero_keys, party_index, sums.numel(), "statistics")
        return StatisticsShare(ring.to_bytes(blinded), ballots_of(handed[circuit.kept[0]], count))

    return Run(body, party_index, program.parties, first_round=first_round)


class PreparedRun:
    """One bundle at one party (`engine.Prepared`): material that is made gate by gate, and taken by one run."""

    def __init__(
        self, program: Program, party_index: int, lowered: Lowered, bundle: Bundle, weights: PartyWeights
    ) -> None:
        self.program = program
        self.party_index = party_index
        self.size_bytes = lowered.memory_bytes
        self._circuit = lowered.circuit
        self._materials: dict[str, Any] = {}
        session = Session(party_index, program.parties)
        self._work: Iterator[None] | None = lowered.circuit.preparing(session, bundle, weights, self._materials)
        self._rest_materials: dict[str, Any] = {}
        self._rest_work: Iterator[None] | None = None
        if (rest := lowered.circuit.rest) is not None:
            self._rest_work = rest.preparing(session, bundle, weights, self._rest_materials)

    def __repr__(self) -> str:
        return f"PreparedRun({len(self._materials)} gates)"

    def advance(self) -> bool:
        """Prepare one more gate, those of the answer first; return whether there was one."""
        if self._work is not None and next(self._work, _DONE) is not _DONE:
            return True
        return self._rest_work is not None and next(self._rest_work, _DONE) is not _DONE

    def take(self) -> tuple[Circuit, dict[str, Any]]:
        """Prepare what is left for the answer and hand all of it out, once; raise `LocalProtocolError` the second
        time."""
        if self._work is None:
            raise LocalProtocolError("a bundle is used for one run: this one was taken before")
        for _ in self._work:
            pass
        self._work = None
        materials, self._materials = self._materials, {}
        return self._circuit, materials

    def take_rest(self) -> tuple[Circuit, dict[str, Any]]:
        """The same for what comes after the answer."""
        if self._rest_work is None or self._circuit.rest is None:
            raise LocalProtocolError("a bundle has nothing left for what comes after the answer")
        for _ in self._rest_work:
            pass
        self._rest_work = None
        materials, self._rest_materials = self._rest_materials, {}
        return self._circuit.rest, materials


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program's circuit and, if it has statistics, their circuit, in the order of dealing; all gates' tags with their
    bytes of corrections; and the memory of all material."""

    circuits: tuple[Circuit, ...]
    sizes: list[tuple[str, int]]
    memory_bytes: int

    @property
    def circuit(self) -> Circuit:
        return self.circuits[0]

    @property
    def correction_bytes(self) -> int:
        return sum(size for _, size in self.sizes)


@lru_cache(maxsize=64)
def _lowered(program: Program) -> Lowered:
    """Return a program's circuit and sizes; kept, since the same programs run again and again."""
    circuit = lower(program)
    circuits = (circuit,) if circuit.rest is None else (circuit, circuit.rest)
    sizes = [size for part in circuits for size in part.correction_sizes()]
    return Lowered(circuits, sizes, sum(part.material_bytes() for part in circuits))


def _gathered(pieces: Iterator[npt.NDArray[np.uint8]]) -> Iterator[Buffer]:
    """Join small pieces into chunks of some size; a large one goes as it is, without a copy."""
    small: list[Buffer] = []
    held = 0
    for piece in pieces:
        if held and held + piece.nbytes > CHUNK_BYTES:
            yield b"".join(small)
            small, held = [], 0
        if piece.nbytes >= CHUNK_BYTES:
            yield piece.data
        else:
            small.append(piece.data)
            held += piece.nbytes
    if held:
        yield b"".join(small)


def _check_seat(party_index: int, parties: int) -> None:
    if not 0 <= party_index < parties or parties < 2:
        raise LocalError(f"party {party_index} of {parties}: a run has two or more, counted from 0")
