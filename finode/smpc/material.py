"""Correlated randomness: described once per gate, walked by the dealer, by every party, and by a counter of bytes.

A gate says what it needs in one function `material(source)`. The source decides what that means:

    source              uniform piece                 piece of a dealt value
    DealerSource        the sum of all streams        the value; writes value - (sum of streams 0..N-2)
    PartySource         its own stream                its own stream; the last party reads what was written
    CountingSource      nothing                       adds up the bytes that will be written

So only party N-1 needs data, and only for what must have a given value; whatever is merely uniform costs nothing.
Streams and corrections are separate per gate, named by the gate's tag: parties may take them in any order. A bundle
gives each gate's material once; a second take raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finode.errors import LocalError, LocalProtocolError
from finode.smpc.devices import CPU
from finode.smpc.engine import Buffer
from finode.smpc.randomness import Stream, subkey
from finode.smpc.weights import DealerWeights, PartyWeights, WeightRef

Shape = tuple[int, ...]
Value = Callable[[], Tensor]

# Pieces of a correction start at multiples of 8 bytes, so that they can be used in place.
_ALIGNMENT = 8
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger[Any]]] = {
    8: np.dtype("<u1"),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}
_WORDS = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


class Source(Protocol):
    """Where a gate's material comes from. `value` is called at the dealer alone, where pieces are the secrets."""

    def uniform(self, shape: Shape, width: int = 64) -> Tensor:
        """Additive sharing of uniform elements of Z_2^width (8, 16, 32 or 64), as int64. No correction."""

    def dealt(self, shape: Shape, value: Value, width: int = 64) -> Tensor:
        """Additive sharing of `value` over Z_2^width, as int64; width / 8 bytes of correction each."""

    def bits(self, shape: Shape) -> Tensor:
        """XOR sharing of uniform bits, as uint8. No correction."""

    def dealt_bits(self, shape: Shape, value: Value) -> Tensor:
        """XOR sharing of the bits `value`, as uint8; 1 bit of correction each."""

    def dealt_words(self, shape: Shape, value: Value, width: int) -> Tensor:
        """XOR sharing of words of `width` bits, as integers of that size; width / 8 bytes of correction each."""

    def mask(self, weight: WeightRef) -> Tensor:
        """Additive sharing of a weight's mask A, from the deployment's mask seeds."""


def width_for(bits: int) -> int:
    """Return the narrowest width of 8, 16, 32 and 64 that holds `bits` bits."""
    return next(width for width in _UNSIGNED if bits <= width)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _numbers(raw: npt.NDArray[np.uint8], shape: Shape, width: int) -> Tensor:
    if width == 64:
        return torch.from_numpy(raw.view("<i8")).view(shape)
    return torch.from_numpy(raw.view(_UNSIGNED[width]).astype(np.int64)).view(shape)


def _unpacked(raw: npt.NDArray[np.uint8], shape: Shape) -> Tensor:
    return torch.from_numpy(np.unpackbits(raw, count=math.prod(shape), bitorder="little")).view(shape)


def _words(raw: npt.NDArray[np.uint8], shape: Shape, width: int) -> Tensor:
    signed = raw if width == 8 else raw.view(np.dtype(f"<i{width // 8}"))
    return torch.from_numpy(signed).view(shape)


class PartySource:
    """A party's pieces of one gate's material."""

    def __init__(
        self,
        stream: Stream,
        corrections: memoryview | None,
        weights: PartyWeights | None,
        device: torch.device = CPU,
    ) -> None:
        """`corrections` are this gate's alone, and None for all parties but the last; pieces are put on `device`."""
        self._stream = stream
        self._device = device
        self._corrections = corrections
        self._weights = weights
        self._offset = 0

    def _dealt(self, size: int) -> npt.NDArray[np.uint8]:
        if self._corrections is None:
            return self._stream.read(size)
        piece = np.frombuffer(self._corrections, np.uint8, size, self._offset)
        self._offset += _aligned(size)
        return piece if piece.flags.writeable else piece.copy()

    def uniform(self, shape: Shape, width: int = 64) -> Tensor:
        return _numbers(self._stream.read(math.prod(shape) * width // 8), shape, width).to(self._device)

    def dealt(self, shape: Shape, value: Value, width: int = 64) -> Tensor:
        return _numbers(self._dealt(math.prod(shape) * width // 8), shape, width).to(self._device)

    def bits(self, shape: Shape) -> Tensor:
        return _unpacked(self._stream.read(-(-math.prod(shape) // 8)), shape).to(self._device)

    def dealt_bits(self, shape: Shape, value: Value) -> Tensor:
        return _unpacked(self._dealt(-(-math.prod(shape) // 8)), shape).to(self._device)

    def dealt_words(self, shape: Shape, value: Value, width: int) -> Tensor:
        return _words(self._dealt(math.prod(shape) * width // 8), shape, width).to(self._device)

    def mask(self, weight: WeightRef) -> Tensor:
        if self._weights is None:
            raise LocalError("a gate asks for weights in a run without any")
        return self._weights.mask(weight)


class DealerSource:
    """The dealer's side of one gate's material: the secrets themselves; `written` is what the last party gets."""

    def __init__(self, streams: Sequence[Stream], weights: DealerWeights | None, device: torch.device = CPU) -> None:
        self._streams = streams
        self._device = device
        self._weights = weights
        self.written: list[npt.NDArray[np.uint8]] = []

    def _write(self, raw: npt.NDArray[np.uint8]) -> None:
        self.written.append(raw)
        if padding := _aligned(raw.size) - raw.size:
            self.written.append(np.zeros(padding, dtype=np.uint8))

    def uniform(self, shape: Shape, width: int = 64) -> Tensor:
        size = math.prod(shape) * width // 8
        total = self._streams[0].read(size).view(_UNSIGNED[width])
        for stream in self._streams[1:]:
            total += stream.read(size).view(_UNSIGNED[width])
        return _numbers(total.view(np.uint8), shape, width).to(self._device)

    def dealt(self, shape: Shape, value: Value, width: int = 64) -> Tensor:
        secret = value().expand(shape)
        rest = secret.cpu().contiguous().numpy().astype(_UNSIGNED[width]).reshape(-1)
        for stream in self._streams[:-1]:
            rest -= stream.read(rest.nbytes).view(_UNSIGNED[width])
        self._write(rest.view(np.uint8))
        return secret

    def bits(self, shape: Shape) -> Tensor:
        size = -(-math.prod(shape) // 8)
        total = self._streams[0].read(size)
        for stream in self._streams[1:]:
            total ^= stream.read(size)
        return _unpacked(total, shape).to(self._device)

    def dealt_bits(self, shape: Shape, value: Value) -> Tensor:
        secret = value().expand(shape)
        self._write_masked(np.packbits(secret.cpu().contiguous().numpy().reshape(-1), bitorder="little"))
        return secret

    def dealt_words(self, shape: Shape, value: Value, width: int) -> Tensor:
        secret = value().expand(shape).to(_WORDS[width])
        self._write_masked(secret.cpu().contiguous().numpy().reshape(-1).view(np.uint8).copy())
        return secret

    def _write_masked(self, rest: npt.NDArray[np.uint8]) -> None:
        for stream in self._streams[:-1]:
            rest ^= stream.read(rest.size)
        self._write(rest)

    def mask(self, weight: WeightRef) -> Tensor:
        if self._weights is None:
            raise LocalError("a gate asks for weights in a program without any")
        return self._weights.mask(weight)


class CountingSource:
    """Adds up the bytes of corrections that will be written, and those of memory that a party's pieces will take.

    Its own pieces are empty and must not be looked at.
    """

    def __init__(self) -> None:
        self.size = 0
        self.memory = 0

    def _count(self, corrections: int, memory: int) -> Tensor:
        self.size += _aligned(corrections)
        self.memory += memory
        return torch.empty(0, dtype=torch.int64)

    def uniform(self, shape: Shape, width: int = 64) -> Tensor:
        return self._count(0, 8 * math.prod(shape))

    def dealt(self, shape: Shape, value: Value, width: int = 64) -> Tensor:
        return self._count(math.prod(shape) * width // 8, 8 * math.prod(shape))

    def bits(self, shape: Shape) -> Tensor:
        return self._count(0, math.prod(shape))

    def dealt_bits(self, shape: Shape, value: Value) -> Tensor:
        return self._count(-(-math.prod(shape) // 8), math.prod(shape))

    def dealt_words(self, shape: Shape, value: Value, width: int) -> Tensor:
        size = math.prod(shape) * width // 8
        return self._count(size, size)

    def mask(self, weight: WeightRef) -> Tensor:
        return self._count(0, 0)


def gate_stream(seed: bytes, tag: str) -> Stream:
    """Return the stream of one gate's pieces under a party's bundle seed."""
    return Stream(subkey(seed, "gate", tag))


class Bundle:
    """A party's correlated randomness for one run: each gate's share of it can be taken once."""

    def __init__(
        self,
        seed: bytes,
        sizes: Sequence[tuple[str, int]],
        corrections: Buffer,
        last: bool,
        weights: PartyWeights | None,
        device: torch.device = CPU,
    ) -> None:
        """`sizes` are the gates' tags with their bytes of corrections, in the order in which they were dealt."""
        view = memoryview(corrections).cast("B")
        expected = sum(size for _, size in sizes) if last else 0
        if len(view) != expected:
            raise LocalError(f"the bundle's corrections have {len(view)} bytes instead of {expected}")
        self._seed = seed
        self._weights = weights
        self._device = device
        self._left: dict[str, memoryview | None] = {}
        offset = 0
        for tag, size in sizes:
            self._left[tag] = view[offset : offset + size] if last else None
            offset += size

    def __repr__(self) -> str:
        return f"Bundle({len(self._left)} gates left)"

    def take(self, tag: str) -> PartySource:
        """Return the material of the gate `tag`; raise `LocalProtocolError` when it was taken before."""
        if tag not in self._left:
            raise LocalProtocolError(f"the correlated randomness of {tag!r} is used up or was never dealt")
        return PartySource(gate_stream(self._seed, tag), self._left.pop(tag), self._weights, self._device)
