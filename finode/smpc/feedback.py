"""Feedback: labels that come after the answer, counted against the votes that the parties kept as shares.

A session with statistics leaves *ballots* at every party: shares of each model's votes, turned by a mask that the
dealer chose for each input, and shares of that mask (gates/statistics.py, `Ballots`). The querier later shares each
label as a residue mod 2^m (labels.py); the parties open label - mask, look at that place, and add up what they find
there. No dealer is needed, no product, and one round is enough. It runs on the processor, wherever the session did.

    ballots     K x count x 2^m elements of Z_2^64, little-endian int64; then count masks, little-endian uint16

A mask hides one label: ballots serve one feedback, whoever keeps them sees to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from finode.errors import InputError, LocalError
from finode.smpc import ring
from finode.smpc.engine import Buffer, Program
from finode.smpc.gates.statistics import BallotShares, count_votes
from finode.smpc.labels import label_bytes
from finode.smpc.session import Run, Session
from finode.smpc.statistics_layout import ballot_bytes, ballot_places
from finode.smpc.zero import zero_share


def ballots_of(shares: BallotShares, count: int) -> bytes:
    """Return the bytes of the first `count` inputs' ballots."""
    masks = shares.rho[:count].cpu().numpy().astype("<u2")
    return ring.to_bytes(shares.turned[:, :count].cpu()) + masks.tobytes()


def read_ballots(program: Program, ballots: Buffer, count: int) -> BallotShares:
    """Return the ballots of `count` inputs; raise `InputError` for bytes of another size."""
    expected = ballot_bytes(program.models, program.classes, count)
    view = memoryview(ballots).cast("B")
    if len(view) != expected:
        raise InputError(f"the ballots of {count} inputs have {len(view)} bytes instead of {expected}")
    shape = (program.models, count, ballot_places(program.classes))
    masks = np.frombuffer(view[len(view) - 2 * count :], dtype="<u2").astype(np.int64)
    return BallotShares(ring.from_bytes(view[: len(view) - 2 * count], shape), torch.from_numpy(masks))


def feedback_run(
    program: Program,
    party_index: int,
    ballots: Buffer,
    label_share: Buffer,
    zero_keys: Mapping[int, bytes],
    count: int,
) -> Run:
    """Return the run whose value is this party's share of the K counts of correct votes, as bytes."""
    if not 1 <= count <= program.answers:
        raise LocalError(f"{count} labels for a batch that answers {program.answers}")
    given = memoryview(label_share).cast("B")
    if len(given) != label_bytes(count):
        raise InputError(f"the label share has {len(given)} bytes instead of {label_bytes(count)}")
    kept = read_ballots(program, ballots, count)
    labels = torch.from_numpy(np.frombuffer(given, dtype="<u2").astype(np.int64))

    async def body(session: Session) -> bytes:
        correct = (await count_votes(session.branch("feedback"), kept, labels)).data
        return ring.to_bytes(correct + zero_share(zero_keys, party_index, correct.numel(), "feedback"))

    return Run(body, party_index, program.parties)
