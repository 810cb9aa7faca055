"""The interface that every engine offers; needs no torch.

An engine does no I/O. A party's part of a run is a `PartyRun`: the driver calls `start`, sends the frames of the
`Exchange` it gets to the other parties, collects theirs, and calls `resume`, until `Finished`. One exchange is one
round. All frames of a round are opaque bytes; tags inside them tell what is opened.

    weights, once per deployment    owner:  sharing.share_weights -> one share per party
                                    dealer: mask_seed(secret, deployment, party) -> 32 bytes
                                    party:  open_weights(...) -> PartyRun whose value is the deployment's constants
    a bundle, once per session      dealer: deal(...) -> a seed per party, and correction chunks for the last party
    a session                       party:  hold(...) -> Holding, kept between sessions of the same deployments
                                            prepare(...) -> Prepared, before the query: whatever does not depend on it
                                            run(...) -> PartyRun whose value is its share of the output, as bytes
    its statistics                          Finished.rest -> PartyRun whose value is a StatisticsShare
    its labels, later                       querier: labels.share_labels(...); party: feedback(...) -> PartyRun
    input and output                querier: sharing.share_input(...), sharing.reconstruct(...)

`finode.smpc.sharing` is numpy alone, so that owners and queriers need no torch; the rest runs in worker processes.
Shares cross this interface as bytes: little-endian int64, C order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finode.smpc.plan import Plan

Buffer = bytes | bytearray | memoryview
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a session computes, the same for all of its parties and for the dealer.

    `vote` is "soft", "hard", "entropy", "spectral", "prior" (for models with counts, counts.py), or "weighted", which
    alone has public `vote_weights`, one per model and of any size, or "augmented", which alone has `copies` of each
    input beside it in the batch (augmentation.py) and `gamma`, in units of 2^-8. `reveal` is "probabilities", "top1"
    or "label" (the values of the terms' enums).
    """

    plans: tuple[Plan, ...]
    deployments: tuple[bytes, ...]
    parties: int
    batch: int
    fractional_bits: int
    vote: str
    reveal: str
    profile: str = "latency"
    vote_weights: tuple[int, ...] = ()
    copies: int = 0
    gamma: int = 0
    statistics: bool = False
    """Whether a run goes on, after the answer, with the statistics of its models (`Finished.rest`)."""

    @property
    def answers(self) -> int:
        """Rows of the answer: those of the batch that are no copies."""
        return self.batch // (1 + self.copies)

    @property
    def classes(self) -> int:
        return self.plans[0].classes

    @property
    def models(self) -> int:
        return len(self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """What a querier must know of a program to read its answer; it has no plans."""

    models: int
    classes: int
    parties: int
    batch: int
    fractional_bits: int
    vote: str
    reveal: str
    copies: int = 0

    @property
    def answers(self) -> int:
        """Rows of the answer: those of the batch that are no copies."""
        return self.batch // (1 + self.copies)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send `frames[j]` to party j, wait for one frame of each other party, then call `resume`."""

    round: int
    frames: Mapping[int, Buffer]
    expected_bytes: int
    """Exact size of the frame that each other party sends in this round."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over. `value` is engine-specific constants (open_weights), the output share's bytes (run), a
    `StatisticsShare` (the rest of a run) or the shares of the correct counts, K elements (feedback)."""

    value: Any = field(repr=False)
    rounds: int
    bytes_sent: int
    compute_s: float
    transcript: bytes = field(repr=False)
    """SHA-256 of all that this run opened, equal at all parties that were told the same (transcript.py). Whoever knows
    a mask could test guesses against it, as the dealer does: it must leave the party only under a key."""
    rest: PartyRun | None = field(default=None, repr=False)
    """What follows the answer on the same bundle, when the program has statistics; its rounds are numbered on from this
    run's. It may be dropped, and never delays the answer."""


@dataclass(frozen=True, slots=True)
class StatisticsShare:
    """One party's part of a session's statistics.

    `sums` is its share of the vector that `statistics_layout` describes, blinded so that the dealer cannot read it.
    `ballots` are the models' votes as shares, under masks of this session: good for *one* `feedback`. A second one
    would open two labels under one mask, so whoever keeps them must drop them as soon as they are given away.
    """

    sums: bytes = field(repr=False)
    ballots: bytes = field(repr=False)


Outcome = Exchange | Finished


class PartyRun(Protocol):
    """One party's side of one run. Not thread-safe; burned when dropped."""

    def start(self) -> Outcome:
        """Compute up to the first exchange."""

    def resume(self, frames: Mapping[int, Buffer]) -> Outcome:
        """Take the frames of the other parties (party index -> frame) and compute up to the next exchange.

        Raises `finode.errors.RemoteProtocolError` whose `peer` is the decimal party index when a frame is malformed.
        """


@dataclass(frozen=True, slots=True)
class Dealing:
    """A bundle at the dealer: one 32-byte seed per party, and the last party's corrections, made chunk by chunk."""

    seeds: tuple[bytes, ...] = field(repr=False)
    correction_bytes: int
    corrections: Iterator[Buffer] = field(repr=False)


class Holding(Protocol):
    """What a party holds of the deployments of a program: read once, used by any number of runs."""

    @property
    def size_bytes(self) -> int:
        """About the memory that it takes."""


class Prepared(Protocol):
    """A party's bundle on its way to a run, in memory only: good for one run, and burned when dropped.

    What does not depend on the query can be done ahead in pieces, between other work; `run` does the rest.
    """

    @property
    def size_bytes(self) -> int:
        """About the memory that it takes, once all is prepared."""

    def advance(self) -> bool:
        """Do one more piece of the preparation; return whether there was anything left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What the querier learns. Arrays have the batch first; `probabilities` (batch, classes) only if all are revealed,
    `top` (batch,) the largest probability unless only the label is."""

    labels: npt.NDArray[np.int64]
    probabilities: Floats | None
    top: Floats | None


class Engine(Protocol):
    """An engine. Implementations: `finode.smpc.native.NativeEngine`, `finode.smpc.crypten.engine.CryptenEngine`."""

    name: str

    def mask_seed(self, secret: bytes, deployment: bytes, party_index: int) -> bytes:
        """Return the 32-byte seed of a party's share of the deployment's mask A; deterministic in its arguments."""

    def open_weights(
        self,
        plans: Sequence[Plan],
        shares: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        party_index: int,
        parties: int,
    ) -> PartyRun:
        """Open W^ = W - A of the given deployments, all in one round. The value is a list, one per plan, of the
        constants' bytes (as `run` takes them)."""

    def deal(self, program: Program, secret: bytes) -> Dealing:
        """Make one bundle from fresh randomness. `secret` is the one that `mask_seed` was called with."""

    def correction_bytes(self, program: Program) -> int:
        """Return the exact size of the corrections that the last party gets for one run of `program`."""

    def memory_bytes(self, program: Program) -> int:
        """Return about the most memory that one run of `program` takes at a party, its bundle included."""

    def hold(
        self,
        program: Program,
        party_index: int,
        constants: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        weight_shares: Sequence[Buffer],
    ) -> Holding:
        """Make what the party holds of the program's deployments ready for runs.

        It serves every program of the same plans and deployments, whatever its batch, vote or reveal; one run may
        prepare while another runs. `constants` are what `open_weights` gave.
        """

    def prepare(
        self, program: Program, party_index: int, holding: Holding, bundle_seed: bytes, corrections: Buffer
    ) -> Prepared:
        """Take one bundle; nothing of it is computed yet. `corrections` is empty for all parties but the last, and is
        kept and used in place: a bytearray is written to."""

    def run(
        self, prepared: Prepared, input_share: Buffer, zero_keys: Mapping[int, bytes], *, count: int | None = None
    ) -> PartyRun:
        """Run the program of `prepared`; the value is this party's share of the output, as bytes.

        `zero_keys[j]` is the 32-byte key shared with party j and unknown to the dealer, fresh for this session. The
        first `count` inputs of the batch are true ones (all, by default), the others padding: their rows of the answer
        are zeros, and no statistics count them. Raises `LocalError` for padding under a spectral vote, where every
        row weighs in on all others.
        Raises `LocalProtocolError` when `prepared` was given to a run before.
        """

    def feedback(
        self,
        program: Program,
        party_index: int,
        ballots: Buffer,
        label_share: Buffer,
        zero_keys: Mapping[int, bytes],
        *,
        count: int,
    ) -> PartyRun:
        """Count how often each model voted for the label; the value is this party's share of the K counts, as bytes.

        `ballots` are those of a session of `program` with `count` true inputs, used here for the first and only time;
        `label_share` is this party's share of their labels (`labels.share_labels`). Needs no bundle. `zero_keys` as in
        `run`: they may be those of the session. Raises `InputError` for parts that are not of that size.
        """

    def plaintext(self, program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats) -> Output:
        """Run the program in the clear with the same fixed-point semantics: the oracle of tests and `finode bench`."""
