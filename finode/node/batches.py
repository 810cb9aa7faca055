"""How a query's inputs become sessions: filled up to a batch for which bundles are dealt, or cut into several.

Bundles are dealt for powers of two, and for the most that a session may have. A smaller batch is filled up with inputs
of zeros, which the querier shares like any other: no party can tell them from the rest, they count against the quota
like any other, and the parties leave their rows out of the answer. That is right only where a row of the answer depends
on no other row; a vote that looks at the whole batch gets exactly its batch, and is never cut.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import trio

from finode.errors import InputError
from finode.smpc import sharing
from finode.smpc.engine import Output
from finode.wire.directory import ServiceSpec

SHARED_AT_ONCE = 1 << 15
"""Values that are shared in under a millisecond: no thread is worth its start for them."""
ROW_WISE_VOTES = frozenset({"soft", "hard", "weighted", "entropy", "augmented", "prior"})
"""Votes that answer each input by itself."""


def is_row_wise(vote: str) -> bool:
    """Whether each row of the answer depends on its own input alone."""
    return vote in ROW_WISE_VOTES


def session_batch(vote: str, inputs: int, most: int, copies: int = 0) -> int:
    """Return the batch of the session that answers `inputs` inputs, of which a session may have `most`, those that are
    the `copies` of each input included."""
    if not is_row_wise(vote):
        return inputs
    return (1 + copies) * min(1 << (inputs - 1).bit_length(), most // (1 + copies))


def filled(inputs: npt.NDArray[np.float64], batch: int) -> npt.NDArray[np.float64]:
    """Return `inputs` with inputs of zeros behind them, `batch` in all."""
    if len(inputs) == batch:
        return inputs
    return np.concatenate([inputs, np.zeros((batch - len(inputs), *inputs.shape[1:]))])


def joined(outputs: list[Output]) -> Output:
    """Return the answers of several sessions as one, in their order."""
    if len(outputs) == 1:
        return outputs[0]
    probabilities = [output.probabilities for output in outputs if output.probabilities is not None]
    tops = [output.top for output in outputs if output.top is not None]
    return Output(
        labels=np.concatenate([output.labels for output in outputs]),
        probabilities=np.concatenate(probabilities) if probabilities else None,
        top=np.concatenate(tops) if tops else None,
    )


def check_inputs(inputs: npt.NDArray[np.float64], vote: str, spec: ServiceSpec, most: int) -> None:
    """Raise `InputError` unless a query may have these inputs, where a session may have `most`."""
    expected = spec.input.shape
    if inputs.ndim != len(expected) + 1 or inputs.shape[1:] != expected:
        raise InputError(f"service {spec.name!r} takes inputs of shape {expected}, got {inputs.shape[1:]}")
    if not len(inputs):
        raise InputError("the query has no inputs")
    if not np.isfinite(inputs).all():
        raise InputError("the input has a NaN or an infinite value")
    if len(inputs) > most and not is_row_wise(vote):
        raise InputError(
            f"{len(inputs)} inputs in one query: a {vote} vote looks at all of them together, and {most} are allowed",
            hint="ask in smaller batches, or raise [querier] max_batch",
        )


class SharedInput:
    """The parties' shares of an input, made once, when the first of them is wanted."""

    def __init__(self, inputs: npt.NDArray[np.float64], parties: int, fractional_bits: int) -> None:
        self._inputs = inputs
        self._parties = parties
        self._fractional_bits = fractional_bits
        self._making = trio.Lock()
        self._pieces: list[bytes] = []

    async def piece(self, index: int) -> bytes:
        """Return one party's share. Large inputs are shared in a thread, while streams are being opened."""
        async with self._making:
            if not self._pieces:
                arguments = (self._inputs, self._parties, self._fractional_bits)
                if self._inputs.size > SHARED_AT_ONCE:
                    self._pieces = await trio.to_thread.run_sync(sharing.share_input, *arguments)
                else:
                    self._pieces = sharing.share_input(*arguments)
        return self._pieces[index]
