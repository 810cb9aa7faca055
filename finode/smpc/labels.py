"""Labels as the querier shares them for feedback: indices, never one-hot vectors. numpy alone, no torch.

A label of C classes is a residue mod 2^m, where m is the number of bits of C: so 2^m > C, and there is always a residue
that is no class. It is split into one uniform residue per party, little-endian uint16. The parties open it under a mask
and turn a dealt one-hot vector by what they see (contribution.py): whatever a querier sends counts one class of one
input at most, so it cannot weigh one label more than another, nor count it negatively.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from finode.errors import InputError
from finode.smpc.randomness import Stream, fresh_seed

UNLABELLED = -1
"""Stands for "no label is known of this input"; it is shared like any label, as the residue 2^m - 1."""
LABEL_BYTES = 2
MAX_CLASSES = 1 << 15

Labels = npt.NDArray[np.int64]


def label_bits(classes: int) -> int:
    """Return m, the bits of a residue that stands for a label of so many classes."""
    return classes.bit_length()


def label_bytes(count: int) -> int:
    """Return the size of one party's share of `count` labels."""
    return LABEL_BYTES * count


def share_labels(labels: npt.ArrayLike, classes: int, parties: int) -> list[bytes]:
    """Split labels (one per input, in the session's order) into one uniform share per party.

    Raises `InputError` for what is not a list of whole numbers from 0 to classes - 1, or `UNLABELLED`.
    """
    if not 1 <= classes <= MAX_CLASSES:
        raise InputError(f"labels of {classes} classes: 1 to {MAX_CLASSES} can be shared")
    given = np.asarray(labels)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise InputError("labels are not a list of whole numbers", hint="give one class index for each input")
    values: Labels = given.astype(np.int64)
    wrong = np.flatnonzero((values < UNLABELLED) | (values >= classes))
    if wrong.size:
        raise InputError(
            f"label {values[wrong[0]]} of input {wrong[0]}: the classes are 0 to {classes - 1}",
            hint=f"give {UNLABELLED} where no label is known",
        )
    modulus = 1 << label_bits(classes)
    stream = Stream(fresh_seed())
    shares = [stream.read(LABEL_BYTES * values.size).view("<u2") & (modulus - 1) for _ in range(parties - 1)]
    last = (values - sum(share.astype(np.int64) for share in shares)) & (modulus - 1)
    return [share.astype("<u2").tobytes() for share in (*shares, last)]
