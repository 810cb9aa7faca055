"""CrypTen's communicator over a run's rounds: every collective call is one frame to each other party.

A frame is a header (magic, call, sender, round, bytes of payload: 24 bytes, little-endian) and the elements of the
tensors, one after the other, as little-endian int64. Shapes are not sent: all parties run the same program, so a frame
of another size or with another header is malformed. Where a call moves data to one party alone, the others' frames are
headers; where it moves data from one party alone, the others' elements are zeros, because all frames that a party
waits for in a round have one size.

The transcript of the run has what all parties know after a call: the result of a reduction for all, the elements of a
broadcast, all parties' elements of a gathering for all; of calls that tell one party something, that they were made.

Calls between two parties alone, and those that pickle objects, are refused: no program makes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed import ReduceOp

from finode.errors import LocalError, RemoteProtocolError
from finode.smpc.engine import Buffer
from finode.smpc.transcript import Transcript

_HEADER = struct.Struct("<4sHHQQ")
_MAGIC = b"fct1"
_DESCRIPTION = struct.Struct("<QQ")

Elements = npt.NDArray[np.int64]
Swap = Callable[[Mapping[int, Buffer], int], Mapping[int, Buffer]]
"""Send frame j to party j and return theirs, each of exactly so many bytes."""


class Call(IntEnum):
    """The collective that a frame belongs to."""

    ALL_REDUCE = 1
    REDUCE = 2
    GATHER = 3
    ALL_GATHER = 4
    BROADCAST = 5
    SCATTER = 6
    BARRIER = 7


def _elements(tensors: Sequence[Tensor]) -> Elements:
    if any(tensor.dtype != torch.int64 for tensor in tensors):
        raise LocalError(f"only ring elements are sent, not {[tensor.dtype for tensor in tensors]}")
    parts = [tensor.detach().contiguous().numpy().reshape(-1) for tensor in tensors]
    return np.concatenate(parts).astype("<i8", copy=False) if parts else np.zeros(0, "<i8")


def _cut(elements: Elements, like: Sequence[Tensor]) -> list[Tensor]:
    sizes = [tensor.numel() for tensor in like]
    parts = np.split(elements, np.cumsum(sizes)[:-1]) if sizes else []
    return [torch.from_numpy(part).view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _combine(total: Elements, other: Elements, op: Any) -> None:
    if op == ReduceOp.SUM:
        total += other
    elif op == ReduceOp.BXOR:
        total ^= other
    else:
        raise LocalError(f"reduction by {op}")


class Refusals:
    """What no communicator here does."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise LocalError("CrypTen called what its communicator here does not do: only collectives on ring elements")

    send = recv = isend = irecv = _refuse
    send_obj = recv_obj = broadcast_obj = _refuse
    get_ttp_rank = set_name = get_name = get_distributed_backend = _refuse


class RoundCommunicator(Refusals):
    """The communicator of one party's run. Methods take and give what CrypTen's `DistributedCommunicator` does."""

    def __init__(self, party: int, parties: int, swap: Swap, transcript: Transcript) -> None:
        self._party = party
        self._parties = parties
        self._swap = swap
        self._transcript = transcript
        self._others = [other for other in range(parties) if other != party]
        self._round = 0

    def get_rank(self) -> int:
        return self._party

    def get_world_size(self) -> int:
        return self._parties

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Return the sum (or XOR) of all parties' tensors, or of each in a list: one round for the list."""
        tensors = list(input) if batched else [input]
        total = _elements(tensors).copy()
        received = self._exchange(Call.ALL_REDUCE, dict.fromkeys(self._others, total.copy()), total.size)
        for other in received.values():
            _combine(total, other, op)
        self._note(Call.ALL_REDUCE, total)
        reduced = _cut(total, tensors)
        return reduced if batched else reduced[0]

    def reduce(self, input: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """The same for party `dst` alone; None for the others."""
        tensors = list(input) if batched else [input]
        total = _elements(tensors).copy()
        received = self._collect(Call.REDUCE, total.copy(), dst)
        if received is None:
            return None
        for other in received.values():
            _combine(total, other, op)
        reduced = _cut(total, tensors)
        return reduced if batched else reduced[0]

    def gather(self, tensor: Tensor, dst: int) -> list[Tensor | None]:
        """Return all parties' tensors, in the order of the parties, to party `dst` alone."""
        received = self._collect(Call.GATHER, _elements([tensor]), dst)
        return [None] if received is None else self._ordered(tensor, received)

    def all_gather(self, tensor: Tensor) -> list[Tensor | None]:
        """Return all parties' tensors, in the order of the parties."""
        own = _elements([tensor])
        received = self._exchange(Call.ALL_GATHER, dict.fromkeys(self._others, own), own.size)
        self._note(Call.ALL_GATHER, *({**received, self._party: own}[i] for i in range(self._parties)))
        return self._ordered(tensor, received)

    def broadcast(self, input: Any, src: int, group: Any = None, batched: bool = False) -> Any:
        """Overwrite the tensor, or each in a list, with that of party `src`."""
        tensors = list(input) if batched else [input]
        own = _elements(tensors)
        sent = own if self._party == src else np.zeros_like(own)
        received = self._exchange(Call.BROADCAST, dict.fromkeys(self._others, sent), own.size)
        self._note(Call.BROADCAST, own if self._party == src else received[src])
        if self._party != src:
            for tensor, new in zip(tensors, _cut(received[src], tensors), strict=True):
                tensor.copy_(new)
        return input

    def scatter(self, scatter_list: Sequence[Tensor], src: int, size: Any = None, device: Any = None) -> Tensor:
        """Return this party's of the tensors, all of one shape, that party `src` has for the parties."""
        like = scatter_list[self._party] if size is None else torch.zeros(size, dtype=torch.int64)
        zeros = np.zeros(like.numel(), "<i8")
        sent = {other: _elements([scatter_list[other]]) if self._party == src else zeros for other in self._others}
        received = self._exchange(Call.SCATTER, sent, like.numel())
        self._note(Call.SCATTER)
        return scatter_list[self._party] if self._party == src else _cut(received[src], [like])[0]

    def barrier(self) -> None:
        """Wait for all parties."""
        nothing = np.zeros(0, "<i8")
        self._exchange(Call.BARRIER, dict.fromkeys(self._others, nothing), 0)
        self._note(Call.BARRIER)

    def _collect(self, call: Call, own: Elements, dst: int) -> dict[int, Elements] | None:
        nothing = np.zeros(0, "<i8")
        sent = {other: own if other == dst else nothing for other in self._others}
        received = self._exchange(call, sent, own.size if self._party == dst else 0)
        self._note(call)
        return received if self._party == dst else None

    def _ordered(self, own: Tensor, received: Mapping[int, Elements]) -> list[Tensor | None]:
        return [own if i == self._party else _cut(received[i], [own])[0] for i in range(self._parties)]

    def _note(self, call: Call, *known: Elements) -> None:
        """Add what all parties know after the last call to the transcript."""
        description = _DESCRIPTION.pack(call, sum(elements.size for elements in known))
        self._transcript.add(self._round - 1, description, (elements.data for elements in known))

    def _exchange(self, call: Call, sent: Mapping[int, Elements], expected: int) -> dict[int, Elements]:
        round, self._round = self._round, self._round + 1
        frames = {j: self._header(call, self._party, round, part.size) + part.tobytes() for j, part in sent.items()}
        received = self._swap(frames, _HEADER.size + 8 * expected)
        return {j: self._checked(call, j, round, expected, memoryview(received[j]).cast("B")) for j in sorted(received)}

    @staticmethod
    def _header(call: Call, party: int, round: int, count: int) -> bytes:
        return _HEADER.pack(_MAGIC, call, party, round, 8 * count)

    def _checked(self, call: Call, party: int, round: int, count: int, frame: memoryview) -> Elements:
        if len(frame) != _HEADER.size + 8 * count:
            problem = f"{len(frame)} bytes instead of {_HEADER.size + 8 * count}"
        elif frame[: _HEADER.size] != self._header(call, party, round, count):
            problem = "the header of another sender, round or call"
        else:
            # A copy, so that a tensor made of it can be written to, whatever holds the frame.
            return np.frombuffer(frame, "<i8", count, _HEADER.size).copy()
        raise RemoteProtocolError(f"malformed frame of party {party} in round {round}: {problem}", peer=str(party))


class DryCommunicator(Refusals):
    """The communicator of a dry run: tensors without values, and nobody to talk to."""

    def __init__(self, parties: int) -> None:
        self._parties = parties

    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return self._parties

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Return tensors of the same shapes."""
        return [tensor.clone() for tensor in input] if batched else input.clone()

    def gather(self, tensor: Tensor, dst: int) -> list[Tensor | None]:
        """Return tensors of the same shape."""
        return [tensor.clone() for _ in range(self._parties)]

    reduce = broadcast = scatter = all_gather = barrier = Refusals._refuse


Communicator = RoundCommunicator | DryCommunicator
