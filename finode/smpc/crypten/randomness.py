"""Zero-sharings and coins for CrypTen, from cryptographic streams; it would take them from Mersenne Twisters.

CrypTen's parties stand in a ring, and each has a generator in common with the party before it and one with the party
after it: `prev` and `next`. The difference of their outputs is a sharing of zero. Here both come from the pairwise
keys that the dealer does not have. `local` is for what a party chooses alone: its shares of random bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from finode.errors import LocalError
from finode.smpc.randomness import Stream, fresh_seed, subkey


def ring_streams(zero_keys: Mapping[int, bytes], party: int, parties: int) -> dict[str, Stream]:
    """Return the streams of one party for one run; `zero_keys` as in `Engine.run`."""
    after, before = (party + 1) % parties, (party - 1) % parties
    # Named for the party that the pair begins with: of two parties, each is both before and after the other.
    return {
        "prev": Stream(subkey(zero_keys[before], "crypten ring", before)),
        "next": Stream(subkey(zero_keys[after], "crypten ring", party)),
        "local": Stream(fresh_seed()),
    }


class StreamGenerator:
    """Stands where CrypTen has a `torch.Generator`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def elements(self, shape: tuple[int, ...], bits: int, device: torch.device) -> Tensor:
        """Return uniform integers of `bits` bits; 64 of them are an element of the ring."""
        if device.type != "cpu":
            raise LocalError(f"randomness for a tensor on {device}")
        elements = torch.from_numpy(self._stream.integers(math.prod(shape))).view(shape)
        return elements if bits == 64 else elements & ((1 << bits) - 1)


class NoGenerator:
    """Stands there in a dry run: shapes and no values."""

    def elements(self, shape: tuple[int, ...], bits: int, device: torch.device) -> Tensor:
        """Return a tensor without values."""
        return torch.empty(shape, dtype=torch.int64, device=device)


Generator = StreamGenerator | NoGenerator
