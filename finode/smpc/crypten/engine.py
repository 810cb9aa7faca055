"""The `crypten` engine: CrypTen's protocols behind the interface of `finode.smpc.engine`, for comparison.

Semi-honest, N >= 2 parties, any N - 1 of whom learn nothing; tuples from a dealer who sees nothing and must not be one
of them or the querier. Weights stay shares: nothing is opened once per deployment, and masks are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from finode.errors import InputError, LocalError, LocalProtocolError
from finode.smpc import ring, sharing
from finode.smpc.crypten import execution, tuples
from finode.smpc.crypten.availability import NAME
from finode.smpc.crypten.communicator import DryCommunicator, RoundCommunicator
from finode.smpc.crypten.compat import Party, library, running
from finode.smpc.crypten.randomness import NoGenerator, StreamGenerator, ring_streams
from finode.smpc.crypten.threads import Link, ThreadRun
from finode.smpc.crypten.tuples import PartyProvider, Recorder, Request
from finode.smpc.engine import Buffer, Dealing, Floats, Holding, Output, Prepared, Program
from finode.smpc.plaintext import run_plaintext
from finode.smpc.plan import Plan
from finode.smpc.randomness import fresh_seed, subkey
from finode.smpc.weights import split
from finode.smpc.zero import check_zero_keys, shown_share

RUN_MEMORY_FACTOR = 4
"""A run takes the tuple of an operator, its operands, what is opened, and a copy of some of it."""


class CryptenEngine:
    """Implements `finode.smpc.engine.Engine`.

    CrypTen is imported when it is first needed; without it, all that needs its tuples or computes raises `ConfigError`.
    """

    name = NAME

    def mask_seed(self, secret: bytes, deployment: bytes, party_index: int) -> bytes:
        """Return 32 bytes that a deployment's files are named for; CrypTen masks no weights."""
        return subkey(secret, "crypten deployment", deployment, party_index)

    def open_weights(
        self,
        plans: Sequence[Plan],
        shares: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        party_index: int,
        parties: int,
    ) -> ThreadRun:
        """Open nothing: the run ends as it starts, and every deployment's constants are empty."""

        def body(link: Link) -> list[bytes]:
            library()  # the import takes a while, and nobody waits for it now
            return [b"" for _ in plans]

        return ThreadRun(body, party_index, parties)

    def deal(self, program: Program, secret: bytes) -> Dealing:
        """Make one bundle from fresh randomness; the corrections are computed as they are taken."""
        requests = requests_of(program)
        seeds = tuple(fresh_seed() for _ in range(program.parties))
        return Dealing(seeds, self.correction_bytes(program), tuples.deal(requests, seeds))

    def correction_bytes(self, program: Program) -> int:
        """Return the exact size of the corrections that the last party gets for one run of `program`."""
        return sum(request.correction_bytes for request in requests_of(program))

    def memory_bytes(self, program: Program) -> int:
        """Return about the most memory that one run of `program` takes at a party, its bundle included."""
        requests = requests_of(program)
        pieces = [8 * sum(map(math.prod, (*request.shapes, request.corrected))) for request in requests]
        values = max(math.prod(shape) for plan in program.plans for shape in plan.shapes().values())
        corrections = sum(request.correction_bytes for request in requests)
        return corrections + RUN_MEMORY_FACTOR * (max(pieces, default=0) + 8 * program.batch * values)

    def hold(
        self,
        program: Program,
        party_index: int,
        constants: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        weight_shares: Sequence[Buffer],
    ) -> CryptenWeights:
        """Read a party's shares of the program's weights. See `engine.Engine.hold`."""
        _check_seat(party_index, program.parties)
        return CryptenWeights(
            tuple(
                split(data, plan.weights, f"the weight share of model {model}")
                for model, (plan, data) in enumerate(zip(program.plans, weight_shares, strict=True))
            )
        )

    def prepare(
        self, program: Program, party_index: int, holding: Holding, bundle_seed: bytes, corrections: Buffer
    ) -> PreparedCrypten:
        """Take one bundle. See `engine.Engine.prepare`."""
        _check_seat(party_index, program.parties)
        if not isinstance(holding, CryptenWeights):
            raise LocalError("the holding is of another engine")
        execution.check(program)
        return PreparedCrypten(program, party_index, holding, bundle_seed, corrections)

    def run(
        self, prepared: Prepared, input_share: Buffer, zero_keys: Mapping[int, bytes], *, count: int | None = None
    ) -> ThreadRun:
        """Run the program; the value is this party's share of the output, as bytes. See `engine.Engine.run`.

        There are no statistics.
        """
        if not isinstance(prepared, PreparedCrypten):
            raise LocalError("the bundle was prepared by another engine")
        program, party_index = prepared.program, prepared.party_index
        parties = program.parties
        check_zero_keys(zero_keys, party_index, parties)
        count = program.batch if count is None else count
        if not 1 <= count <= program.batch:
            raise LocalError(f"{count} true inputs in a batch of {program.batch}")
        if len(memoryview(input_share).cast("B")) != sharing.input_bytes(program.plans[0].input_shape, program.batch):
            raise InputError(f"the input share has {len(input_share)} bytes, which is not what the program takes")
        query = ring.from_bytes(input_share, (program.batch, *program.plans[0].input_shape))
        weights = prepared.holding.weights
        provider = prepared.take()
        streams = ring_streams(zero_keys, party_index, parties)
        generators = {name: StreamGenerator(stream) for name, stream in streams.items()}

        def body(link: Link) -> bytes:
            communicator = RoundCommunicator(party_index, parties, link.exchange, link.transcript)
            with running(Party(communicator, provider, generators, program.fractional_bits)):
                output = execution.compute(program, weights, query).reshape(program.batch, -1)
            provider.finish()
            return ring.to_bytes(shown_share(output, count, zero_keys, party_index))

        return ThreadRun(body, party_index, parties)

    def feedback(
        self,
        program: Program,
        party_index: int,
        ballots: Buffer,
        label_share: Buffer,
        zero_keys: Mapping[int, bytes],
        *,
        count: int,
    ) -> ThreadRun:
        """Raise `InputError`: there are no statistics, so there are no ballots either."""
        raise InputError("the engine 'crypten' keeps no votes for feedback", hint="ask the native engine")

    def plaintext(self, program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats) -> Output:
        """Run the program in the clear with the native engine's fixed point; CrypTen's approximations are not in it."""
        return run_plaintext(program, weights, x)


@dataclass(frozen=True, slots=True)
class CryptenWeights:
    """A party's shares of all weights, by model."""

    weights: tuple[dict[str, Tensor], ...] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        return 8 * sum(weight.numel() for model in self.weights for weight in model.values())


class PreparedCrypten:
    """One party's bundle of one run. All that can be done ahead is the last party's dry run, which takes a while."""

    def __init__(
        self, program: Program, party_index: int, holding: CryptenWeights, seed: bytes, corrections: Buffer
    ) -> None:
        self.program = program
        self.party_index = party_index
        self.holding = holding
        self._bundle: tuple[bytes, Buffer] | None = (seed, corrections)
        self._provider: PartyProvider | None = None
        self._size = len(memoryview(corrections).cast("B"))

    def __repr__(self) -> str:
        return "PreparedCrypten(...)"

    @property
    def size_bytes(self) -> int:
        return self._size

    def advance(self) -> bool:
        """Make the provider of the tuples; return whether there was anything left to do."""
        if self._bundle is None:
            return False
        seed, corrections = self._bundle
        self._bundle = None
        last = self.party_index == self.program.parties - 1
        self._provider = PartyProvider(seed, corrections, requests_of(self.program) if last else None)
        return True

    def take(self) -> PartyProvider:
        """Give the provider away for the one run; raise `LocalProtocolError` the second time."""
        self.advance()
        provider, self._provider = self._provider, None
        if provider is None:
            raise LocalProtocolError("a bundle is used a second time")
        return provider


def _check_seat(party_index: int, parties: int) -> None:
    if not 0 <= party_index < parties:
        raise LocalError(f"party {party_index} of {parties}: they are counted from 0")


def requests_of(program: Program) -> tuple[Request, ...]:
    """Return what CrypTen will ask the dealer for, in order: found by dry runs on tensors without values."""
    execution.check(program)
    # What a model and what the vote asks for depends on nothing else of the program.
    alone = replace(program, plans=(), deployments=(), reveal="probabilities", profile="")
    models = [_ballot_requests(alone, plan) for plan in program.plans]
    votes = _tally_requests(replace(program, plans=program.plans[:1], deployments=(), profile=""), program.models)
    return tuple(request for asked in (*models, votes) for request in asked)


@lru_cache(maxsize=256)
def _ballot_requests(program: Program, plan: Plan) -> tuple[Request, ...]:
    weights = {spec.name: _without_values(spec.shape) for spec in plan.weights}
    query = _without_values((program.batch, *plan.input_shape))
    return _dry_run(program, lambda: execution.ballot(program, plan, weights, query))


@lru_cache(maxsize=256)
def _tally_requests(program: Program, models: int) -> tuple[Request, ...]:
    shares = _without_values((program.batch, program.classes))
    point = program.fractional_bits if program.vote == "soft" else 0
    return _dry_run(program, lambda: execution.tally(program, [execution.shared(shares, point)] * models))


def _dry_run(program: Program, work: Callable[[], object]) -> tuple[Request, ...]:
    recorder, none = Recorder(), NoGenerator()
    generators = {"prev": none, "next": none, "local": none}
    library()
    with running(Party(DryCommunicator(program.parties), recorder, generators, program.fractional_bits)):
        work()
    return tuple(recorder.requests)


def _without_values(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")
