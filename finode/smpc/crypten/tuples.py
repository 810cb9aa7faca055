"""What CrypTen's operators need from outside: asked for in a dry run, dealt by the dealer, taken by the parties.

CrypTen asks its provider for tuples in the order in which it computes. That order, and the shapes, follow from the
program alone, so a dry run without values records them (`Recorder`), the dealer makes them in that order (`deal`), and
each party takes them in that order (`PartyProvider`). The last party, whose corrections depend on it, checks that.

    request   sharings                                                          correction to the last party
    triple    a, b uniform, c = op(a, b)                         additive       c
    square    r uniform, r2 = r * r                              additive       r2
    binary    a, b uniform words, c = a & b                      XOR            c
    wraps     r uniform, theta = wraps of r's shares             additive       theta
    bit       r a uniform bit by XOR; the same bit               additive       the latter

What is uniform comes from each party's seed; what must have a given value is corrected at the last party [as in
`finode.smpc.material`]. So the dealer alone knows a tuple, and no party chooses any of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from finode.errors import LocalError, LocalProtocolError
from finode.smpc.crypten.compat import library
from finode.smpc.engine import Buffer
from finode.smpc.randomness import Stream, subkey

Shape = tuple[int, ...]
_OPS = {"mul", "matmul", "conv2d"}
CHUNK_BYTES = 256 * 1024
"""Small corrections are handed out together in chunks of about this size, each a message between processes."""


class Kind(StrEnum):
    """What is asked for."""

    TRIPLE = "triple"
    SQUARE = "square"
    BINARY = "binary"
    WRAPS = "wraps"
    BIT = "bit"


@dataclass(frozen=True, slots=True)
class Request:
    """One tuple. `shapes` are those of the uniform values, `corrected` that of the value that needs correction."""

    kind: Kind
    shapes: tuple[Shape, ...]
    corrected: Shape
    op: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def correction_bytes(self) -> int:
        return 8 * math.prod(self.corrected)


class Provider(Protocol):
    """CrypTen's interface of a tuple provider, under CrypTen's names."""

    def generate_additive_triple(self, size0: Shape, size1: Shape, op: str, device: Any = None, **options: Any) -> Any:
        """Return [a], [b] and [c] with c = op(a, b)."""

    def square(self, size: Shape, device: Any = None) -> Any:
        """Return [r] and [r * r]."""

    def generate_binary_triple(self, size0: Shape, size1: Shape, device: Any = None) -> Any:
        """Return XOR sharings of a, b and a & b."""

    def wrap_rng(self, size: Shape, device: Any = None) -> Any:
        """Return [r], and a sharing of how often its shares wrap around when they are added up."""

    def B2A_rng(self, size: Shape, device: Any = None) -> Any:  # noqa: N802 - the name is CrypTen's
        """Return [r] and an XOR sharing of the same bit r."""


def triple(size0: Shape, size1: Shape, op: str, options: dict[str, Any]) -> Request:
    """Return the request for a triple; the shape of c is found without computing it."""
    if op not in _OPS:
        raise LocalError(f"a triple for {op!r}, which no program here computes")
    shapes = (tuple(size0), tuple(size1))
    a, b = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in shapes)
    # Lists come in as options where CrypTen passes them on from torch; a request is a value.
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    corrected = tuple(getattr(torch, op)(a, b, **kept).shape)
    return Request(Kind.TRIPLE, shapes, corrected, op, tuple(sorted(kept.items())))


def binary(size0: Shape, size1: Shape) -> Request:
    """Return the request for a binary triple."""
    shapes = (tuple(size0), tuple(size1))
    return Request(Kind.BINARY, shapes, np.broadcast_shapes(*shapes))


def single(kind: Kind, size: Shape) -> Request:
    """Return the request for a square, wraps or a bit."""
    return Request(kind, (tuple(size),), tuple(size))


class _Asking:
    """Turns CrypTen's calls into requests, and pieces into CrypTen's tensors."""

    def take(self, request: Request) -> tuple[Tensor, ...]:
        """Return this party's pieces: of the uniform values, then of the corrected one."""
        raise NotImplementedError

    def generate_additive_triple(self, size0: Shape, size1: Shape, op: str, device: Any = None, **options: Any) -> Any:
        return _additive(self.take(triple(size0, size1, op, options)))

    def square(self, size: Shape, device: Any = None) -> Any:
        return _additive(self.take(single(Kind.SQUARE, size)))

    def generate_binary_triple(self, size0: Shape, size1: Shape, device: Any = None) -> Any:
        return _xor(self.take(binary(size0, size1)))

    def wrap_rng(self, size: Shape, device: Any = None) -> Any:
        return _additive(self.take(single(Kind.WRAPS, size)))

    def B2A_rng(self, size: Shape, device: Any = None) -> Any:  # noqa: N802 - the name is CrypTen's
        bit, number = self.take(single(Kind.BIT, size))
        return (*_additive((number,)), *_xor((bit,)))


def _additive(pieces: Sequence[Tensor]) -> tuple[Any, ...]:
    tensor = library().mpc.primitives.ArithmeticSharedTensor
    return tuple(tensor.from_shares(piece, precision=0) for piece in pieces)


def _xor(pieces: Sequence[Tensor]) -> tuple[Any, ...]:
    tensor = library().mpc.primitives.BinarySharedTensor
    return tuple(tensor.from_shares(piece) for piece in pieces)


class Recorder(_Asking):
    """The provider of a dry run."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def take(self, request: Request) -> tuple[Tensor, ...]:
        self.requests.append(request)
        shapes = (*request.shapes, request.corrected)
        return tuple(torch.empty(shape, dtype=torch.int64, device="meta") for shape in shapes)


class PartyProvider(_Asking):
    """The provider of one party: each tuple is taken once, in the order in which it was dealt."""

    def __init__(self, seed: bytes, corrections: Buffer, requests: Sequence[Request] | None) -> None:
        """`requests` are what was dealt, for the last party; the others have no corrections to find their way in."""
        view = memoryview(corrections).cast("B")
        expected = sum(request.correction_bytes for request in requests or ())
        if len(view) != expected:
            raise LocalError(f"the bundle's corrections have {len(view)} bytes instead of {expected}")
        self._requests = None if requests is None else iter(requests)
        self._stream = tuple_stream(seed)
        self._corrections = view
        self._offset = 0

    def __repr__(self) -> str:
        return "PartyProvider(...)"

    def take(self, request: Request) -> tuple[Tensor, ...]:
        pieces = [_uniform(self._stream, request.kind, shape) for shape in request.shapes]
        count = math.prod(request.corrected)
        if self._requests is None:
            corrected = self._stream.integers(count)
        else:
            if request != (dealt := next(self._requests, None)):
                raise LocalProtocolError(f"CrypTen asks for {request}, where {dealt} was dealt")
            # A copy: CrypTen adds to what it gets, and a bundle's memory may not be writable.
            corrected = np.frombuffer(self._corrections, "<i8", count, self._offset).copy()
            self._offset += request.correction_bytes
        return (*pieces, torch.from_numpy(corrected).view(request.corrected))

    def finish(self) -> None:
        """Raise `LocalProtocolError` if something was dealt and never asked for."""
        if self._requests is not None and (left := next(self._requests, None)) is not None:
            raise LocalProtocolError(f"CrypTen never asked for {left}, which was dealt")


def tuple_stream(seed: bytes) -> Stream:
    """Return the stream of a party's pieces under its bundle seed."""
    return Stream(subkey(seed, "crypten tuples"))


def _uniform(stream: Stream, kind: Kind, shape: Shape) -> Tensor:
    count = math.prod(shape)
    if kind is Kind.BIT:
        bits = np.unpackbits(stream.read(-(-count // 8)), count=count, bitorder="little")
        return torch.from_numpy(bits.astype(np.int64)).view(shape)
    return torch.from_numpy(stream.integers(count)).view(shape)


def deal(requests: Sequence[Request], seeds: Sequence[bytes]) -> Iterator[Buffer]:
    """Yield the last party's corrections, request by request, in chunks."""
    streams = [tuple_stream(seed) for seed in seeds]
    held = bytearray()
    for request in requests:
        held += _correction(request, streams).tobytes()
        if len(held) >= CHUNK_BYTES:
            yield held
            held = bytearray()
    if held:
        yield held


def _correction(request: Request, streams: Sequence[Stream]) -> np.ndarray[Any, np.dtype[np.int64]]:
    # Each party's pieces, read from its stream in the order in which the party reads them.
    pieces = [[_uniform(stream, request.kind, shape) for shape in request.shapes] for stream in streams]
    value = _value(request, pieces)
    rest = value.contiguous().numpy().reshape(-1).copy()
    for stream in streams[:-1]:
        piece = stream.integers(rest.size)
        if request.kind is Kind.BINARY:
            rest ^= piece
        else:
            rest -= piece
    return rest


def _value(request: Request, pieces: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the value that needs correction. `pieces` are the parties' pieces of the uniform values."""

    def summed(index: int) -> Tensor:
        return torch.stack([own[index] for own in pieces]).sum(0)

    def xored(index: int) -> Tensor:
        total = pieces[0][index].clone()
        for own in pieces[1:]:
            total ^= own[index]
        return total

    match request.kind:
        case Kind.TRIPLE:
            product: Callable[..., Tensor] = getattr(torch, request.op)
            return product(summed(0), summed(1), **dict(request.options))
        case Kind.SQUARE:
            return summed(0) * summed(0)
        case Kind.BINARY:
            return xored(0) & xored(1)
        case Kind.BIT:
            return xored(0)
        case Kind.WRAPS:
            wraps: Tensor = library().common.util.count_wraps([own[0] for own in pieces])
            return wraps
