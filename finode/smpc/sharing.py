"""Shares at the edge: what owners and queriers make of weights, inputs and outputs. numpy alone, no torch.

A real number becomes a fixed-point integer (scale 2^f, rounded to nearest), an integer becomes N uniform elements of
Z_2^64 that sum to it: N - 1 of them from a cryptographic stream of a fresh seed, the last one the difference. A value
that is not finite, or that does not fit, is an error here and never a silent wrap later.

All weights of a plan, biases too, are at scale 2^f. The engine lifts a bias to the scale of the products that it is
added to by a public shift of its share; that costs half a unit in the last place of the result at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from finode.errors import InputError, ModelError, RangeExceeded, RemoteProtocolError
from finode.smpc.engine import AnswerSpec, Buffer, Output, Program
from finode.smpc.plan import Plan
from finode.smpc.randomness import Stream, fresh_seed

ELEMENT_BYTES = 8
INPUT_RANGE_BITS = 11
"""An input must satisfy |x| < 2^11 unless its plan states another range."""
WEIGHT_RANGE_BITS = 20
"""A weight must satisfy |w| < 2^20: far above any trained one, far below what would wrap."""
LEAST_SCORES = 2.0**-8
"""Scores of a prior vote that add up to less are not divided by their sum: that would make noise of their rounding."""

Elements = npt.NDArray[np.int64]


def encode(
    x: npt.ArrayLike, fractional_bits: int, *, range_bits: int = INPUT_RANGE_BITS, name: str = "input"
) -> Elements:
    """Return `x` as fixed-point integers at scale 2^fractional_bits, rounded to nearest.

    Raises `InputError` for NaN, infinities and what is not real numbers, `RangeExceeded` unless |x| < 2^range_bits.
    """
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not an array of real numbers", hint="pass floats or integers") from None
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(f"{name} holds {values[place]} at {list(place)}", hint="remove NaN and infinite values")
    largest = float(np.abs(values).max(initial=0.0))
    if largest >= 2**range_bits:
        raise RangeExceeded(
            f"{name} holds {largest:g}; the fixed-point range here is |x| < {2**range_bits}",
            hint="scale it as the service states, or import the model with more range_bits",
        )
    return np.rint(values * float(2**fractional_bits)).astype(np.int64)


def share_elements(elements: Elements, parties: int, *, seed: bytes | None = None) -> list[bytes]:
    """Split ring elements into one uniform share per party, each the bytes of little-endian int64 in C order.

    A secret 32-byte `seed` makes the sharing repeatable: it must never serve two different secrets.
    """
    stream = Stream(fresh_seed() if seed is None else seed)
    shares = [stream.integers(elements.size) for _ in range(parties - 1)]
    last = np.ascontiguousarray(elements, dtype="<i8").reshape(-1).copy()
    for share in shares:
        last -= share
    return [share.tobytes() for share in (*shares, last)]


def share_bytes(plan: Plan) -> int:
    """Return the size of one party's share of all weights of `plan`."""
    return ELEMENT_BYTES * plan.weight_numel()


def encode_weights(plan: Plan, weights: Mapping[str, npt.ArrayLike], fractional_bits: int) -> Elements:
    """Return all weights as fixed-point integers, one after the other in the order of `plan.weights`.

    Raises `ModelError` for a missing weight or one of another shape, and what `encode` raises.
    """
    parts = []
    for spec in plan.weights:
        if spec.name not in weights:
            raise ModelError(f"weight {spec.name!r} of the plan is missing", hint="import the model again")
        encoded = encode(
            weights[spec.name], fractional_bits, range_bits=WEIGHT_RANGE_BITS, name=f"weight {spec.name!r}"
        )
        if encoded.shape != spec.shape:
            raise ModelError(f"weight {spec.name!r} has shape {encoded.shape}, its plan says {spec.shape}")
        parts.append(encoded.reshape(-1))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def share_weights(
    plan: Plan,
    weights: Mapping[str, npt.ArrayLike],
    parties: int,
    fractional_bits: int,
    *,
    seed: bytes | None = None,
) -> list[bytes]:
    """Split a model's weights into one uniform share per party; raises as `encode_weights` does.

    With a `seed` (32 secret bytes of one deployment) the same shares come out again.
    """
    return share_elements(encode_weights(plan, weights, fractional_bits), parties, seed=seed)


def input_bytes(plan_or_shape: Plan | Sequence[int], batch: int) -> int:
    """Return the size of one party's share of `batch` inputs of a plan, or of a sample's shape."""
    shape = plan_or_shape.input_shape if isinstance(plan_or_shape, Plan) else plan_or_shape
    return ELEMENT_BYTES * batch * math.prod(shape)


def share_input(
    x: npt.ArrayLike, parties: int, fractional_bits: int, *, range_bits: int = INPUT_RANGE_BITS
) -> list[bytes]:
    """Split inputs (batch first) into one uniform share per party; raises as `encode` does."""
    return share_elements(encode(x, fractional_bits, range_bits=range_bits), parties)


def output_shape(program: Program | AnswerSpec) -> tuple[int, ...]:
    """Return the shape of the output: one row per input, of all classes, of (label, value), or of the label."""
    columns = {"probabilities": program.classes, "top1": 2, "label": 1}
    return (program.answers, columns[program.reveal])


def output_bytes(program: Program | AnswerSpec) -> int:
    """Return the size of one party's share of the program's output."""
    return ELEMENT_BYTES * math.prod(output_shape(program))


def reconstruct(program: Program | AnswerSpec, shares: Sequence[Buffer], count: int | None = None) -> Output:
    """Add the parties' output shares and read the answer to the first `count` inputs, all by default.

    Raises `RemoteProtocolError` whose `peer` is the decimal party index for a share of the wrong size, and with no
    peer when the sum is no answer at all, which means that some party computed wrongly.
    """
    if len(shares) != program.parties:
        raise InputError(f"{len(shares)} output shares of {program.parties} parties")
    total = np.zeros(output_shape(program), dtype=np.int64)
    for party, share in enumerate(shares):
        if len(memoryview(share).cast("B")) != output_bytes(program):
            raise RemoteProtocolError(
                f"party {party} sent an output share of {len(share)} bytes instead of {output_bytes(program)}",
                peer=str(party),
            )
        total += np.frombuffer(share, dtype="<i8").reshape(total.shape)
    return read_output(program, total[:count])


def read_output(program: Program | AnswerSpec, elements: Elements) -> Output:
    """Return the answer that the opened output elements stand for.

    Soft votes arrive as the sum of the models' probabilities at scale 2^f, hard votes as counts; both are divided by
    the number of models here, after the opening: that number is public, so the quotient tells no more than the sum.
    Weighted votes of all kinds arrive as a mean, at scale 2^f. The scores of a prior vote need not add up to 1
    (smpc/prior.py); where all are revealed they are divided by their sum here, unless that is below `LEAST_SCORES` (and
    below 16 units): such a row stays as it is, and says by its small numbers that no model knows the input.
    """
    models = program.models if program.vote in ("soft", "hard") else 1
    unit = float(models * (1 if program.vote == "hard" else 2**program.fractional_bits))
    labels = np.argmax(elements, axis=1) if program.reveal == "probabilities" else elements[:, 0].copy()
    values = elements if program.reveal == "probabilities" else elements[:, 1:]
    # Fixed point may leave a probability a few units outside of [0, 1]; anything further out is no answer.
    tolerance = 2.0**-6
    scores = values / unit
    if (scores < -tolerance).any() or (scores > 1 + tolerance).any() or not _are_labels(labels, program):
        raise RemoteProtocolError(
            "the output shares do not add up to an answer", hint="a party computed wrongly: ask another committee"
        )
    sums = scores.sum(axis=1)
    adds_up = sums <= program.models + 2.0**-4 if program.vote == "prior" else np.abs(sums - 1) <= 2.0**-4
    if program.reveal == "probabilities" and not adds_up.all():
        raise RemoteProtocolError(
            "the revealed probabilities do not add up to 1", hint="a party computed wrongly: ask another committee"
        )
    scores = np.clip(scores, 0.0, 1.0)
    if program.vote == "prior" and program.reveal == "probabilities":
        sums = scores.sum(axis=1, keepdims=True)
        scores /= np.where(sums < max(LEAST_SCORES, 2.0 ** (4 - program.fractional_bits)), 1.0, sums)
    return Output(
        labels=labels,
        probabilities=scores if program.reveal == "probabilities" else None,
        top=scores.max(axis=1) if program.reveal != "label" else None,
    )


def _are_labels(labels: Elements, program: Program | AnswerSpec) -> bool:
    return bool(((labels >= 0) & (labels < program.classes)).all())
