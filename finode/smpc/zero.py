"""Sharings of zero between the parties alone: what blinds a share before it leaves them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc.randomness import Stream, subkey


def check_zero_keys(zero_keys: Mapping[int, bytes], party_index: int, parties: int) -> None:
    """Raise `LocalError` unless there is one key with each other party."""
    if sorted(zero_keys) != [party for party in range(parties) if party != party_index]:
        raise LocalError(f"zero-sharing keys with parties {sorted(zero_keys)} in a run of {parties}")


def zero_share(zero_keys: Mapping[int, bytes], party_index: int, count: int, purpose: str = "zero") -> Tensor:
    """Return this party's share of a sharing of zero: what the dealer, who knows every mask, cannot predict.

    Each pair of parties expands its key; the lower one adds, the higher one subtracts [Cramer, Damgård, Ishai 2005].
    Under the same keys every `purpose` gives another sharing, and each may blind one value.
    """
    total: npt.NDArray[np.int64] = np.zeros(count, dtype=np.int64)
    for party, key in zero_keys.items():
        pad = Stream(subkey(key, purpose)).integers(count)
        total += pad if party_index < party else -pad
    return torch.from_numpy(total)


def shown_share(output: Tensor, count: int, zero_keys: Mapping[int, bytes], party_index: int) -> Tensor:
    """Return this party's share of what the querier sees of an output, one row for each input of the batch, as one
    vector: its first `count` rows. The others stand for padding, nobody paid for them, and they become zeros: a querier
    that fills a batch up with inputs of its own learns nothing of them."""
    shown = output.clone()
    shown[count:] = 0
    return shown.reshape(-1) + zero_share(zero_keys, party_index, shown.numel())
