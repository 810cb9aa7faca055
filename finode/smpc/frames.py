"""The bytes of one round: what a party opens in it, to every other party alike.

    header      magic "fnd1" | sender u16 | entries u16 | round u32 | zero u32               16 bytes
    entries     tag (8 bytes of BLAKE2b) | kind u8 | width u8 | zero (6 bytes) | count u64   24 bytes each
    buffers     raw, each padded with zeros to 8 bytes, in the order of the entries

All integers are little-endian. Entries are sorted by tag, so the frame does not depend on the order in which tasks
ran. Every party runs the same program and knows what the others must open: a frame whose header or entries differ
from the receiver's own, or whose length is wrong, is malformed, and nothing in it is used.

Kinds: elements of Z_2^64 as int64; bits, packed eight to a byte; residues mod 2^width, as `width` planes of bits.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finode.errors import LocalError, RemoteProtocolError
from finode.smpc.engine import Buffer
from finode.smpc.transcript import Transcript

_MAGIC = b"fnd1"
_HEADER = struct.Struct("<4sHHII")
_ENTRY = struct.Struct("<8sBB6xQ")
_ALIGNMENT = 8
MAX_RESIDUE_BITS = 16

Raw = npt.NDArray[np.uint8]


class Kind(IntEnum):
    """How an opening's shares add up, and how they are packed."""

    ELEMENTS = 0
    BITS = 1
    RESIDUES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """A share to be opened. `width` is the number of bits of each value that travel."""

    kind: Kind
    width: int
    data: Tensor = field(repr=False)

    @property
    def count(self) -> int:
        return self.data.numel()

    def pack(self) -> Raw:
        """Return the raw buffer of this share."""
        flat = self.data.cpu().contiguous().view(-1).numpy()
        if self.kind is Kind.ELEMENTS:
            return flat.astype("<i8", copy=False).view(np.uint8)
        if self.kind is Kind.BITS:
            return np.packbits(flat, bitorder="little")
        planes = (flat[None, :] >> np.arange(self.width, dtype=np.int64)[:, None]) & 1
        return np.packbits(planes.astype(np.uint8), axis=1, bitorder="little").reshape(-1)

    def combine(self, own: Raw, others: Sequence[memoryview]) -> Tensor:
        """Return the opened values from all parties' raw buffers, in the shape of the share."""
        return torch.from_numpy(self._combined(own, others)).view(self.data.shape)

    def _combined(self, own: Raw, others: Sequence[memoryview]) -> npt.NDArray[Any]:
        if self.kind is Kind.ELEMENTS:
            total = own.view("<i8").copy()
            for other in others:
                total += np.frombuffer(other, dtype="<i8")
            return total
        if self.kind is Kind.BITS:
            packed = own.copy()
            for other in others:
                packed ^= np.frombuffer(other, dtype=np.uint8)
            return _unpack(packed, self.count)
        residues = np.zeros(self.count, dtype=np.int64)
        for raw in (own, *(np.frombuffer(other, dtype=np.uint8) for other in others)):
            planes = raw.reshape(self.width, -1)
            for bit in range(self.width):
                residues += _unpack(planes[bit], self.count).astype(np.int64) << bit
        return residues & ((1 << self.width) - 1)

    def raw_bytes(self) -> int:
        """Return the size of the raw buffer."""
        if self.kind is Kind.ELEMENTS:
            return 8 * self.count
        return self.width * (-(-self.count // 8))


def elements(share: Tensor) -> Opening:
    """Open elements of Z_2^64 (int64)."""
    return Opening(Kind.ELEMENTS, 64, share)


def bits(share: Tensor) -> Opening:
    """Open XOR-shared bits (uint8, 0 or 1)."""
    return Opening(Kind.BITS, 1, share)


def residues(share: Tensor, width: int) -> Opening:
    """Open residues mod 2^width, width <= 16 (int64; only the low bits count)."""
    if not 0 < width <= MAX_RESIDUE_BITS:
        raise LocalError(f"residues of {width} bits: 1 to {MAX_RESIDUE_BITS} can be opened")
    return Opening(Kind.RESIDUES, width, share)


class Frame:
    """One round's openings of one party, and how to read the same openings of the others."""

    __slots__ = ("_offsets", "_openings", "_raw", "_round", "data")

    def __init__(self, sender: int, round_: int, openings: Mapping[str, Sequence[Opening]]) -> None:
        """Write the frame. `openings` are by tag; each tag is unique in its round."""
        self._round = round_
        self._openings = [(tag, opening) for tag in sorted(openings) for opening in openings[tag]]
        offset = _HEADER.size + _ENTRY.size * len(self._openings)
        self._offsets = [offset]
        for _, opening in self._openings:
            offset += -(-opening.raw_bytes() // _ALIGNMENT) * _ALIGNMENT
            self._offsets.append(offset)
        self.data = bytearray(offset)
        _HEADER.pack_into(self.data, 0, _MAGIC, sender, len(self._openings), round_, 0)
        self._raw = []
        for index, (tag, opening) in enumerate(self._openings):
            digest = hashlib.blake2b(tag.encode(), digest_size=8).digest()
            _ENTRY.pack_into(
                self.data, _HEADER.size + index * _ENTRY.size, digest, opening.kind, opening.width, opening.count
            )
            raw = opening.pack()
            np.frombuffer(self.data, np.uint8, raw.size, self._offsets[index])[:] = raw
            self._raw.append(raw)

    @property
    def payload_bits(self) -> int:
        """Bits of opened values, without header, entries and padding."""
        return sum(opening.width * opening.count for _, opening in self._openings)

    def open(self, frames: Mapping[int, Buffer]) -> dict[str, list[Tensor]]:
        """Combine our shares with those in the other parties' frames; return the opened values by tag.

        They are on the processor, wherever the shares are (`placed`).
        Raises `RemoteProtocolError` whose `peer` is the decimal index of the party with a malformed frame.
        """
        views = [self._checked(party, memoryview(frames[party]).cast("B")) for party in sorted(frames)]
        opened: dict[str, list[Tensor]] = {}
        for index, (tag, opening) in enumerate(self._openings):
            start = self._offsets[index]
            others = [view[start : start + opening.raw_bytes()] for view in views]
            opened.setdefault(tag, []).append(opening.combine(self._raw[index], others))
        return opened

    def transcribe(self, opened: Mapping[str, Sequence[Tensor]], transcript: Transcript) -> None:
        """Add to the transcript what `open` gave: the entries without the header, which names the sender, and the
        opened values, packed as shares are but for the padding."""
        values = {tag: iter(tensors) for tag, tensors in opened.items()}
        packed = (replace(opening, data=next(values[tag])).pack() for tag, opening in self._openings)
        transcript.add(self._round, self.data[_HEADER.size : self._offsets[0]], (raw.data for raw in packed))

    def placed(self, opened: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Return what `open` gave, each value on the device of our share of it."""
        values = {tag: iter(tensors) for tag, tensors in opened.items()}
        placed: dict[str, list[Tensor]] = {tag: [] for tag in opened}
        for tag, opening in self._openings:
            placed[tag].append(next(values[tag]).to(opening.data.device))
        return placed

    def _checked(self, party: int, frame: memoryview) -> memoryview:
        head = _HEADER.size + _ENTRY.size * len(self._openings)
        expected = bytearray(self.data[:head])
        _HEADER.pack_into(expected, 0, _MAGIC, party, len(self._openings), self._round, 0)
        if len(frame) != len(self.data):
            problem = f"{len(frame)} bytes instead of {len(self.data)}"
        elif frame[: _HEADER.size] != expected[: _HEADER.size]:
            problem = "the header of another sender, round or program"
        elif frame[_HEADER.size : head] != expected[_HEADER.size :]:
            problem = "openings that the program does not make in this round"
        else:
            return frame
        raise RemoteProtocolError(
            f"malformed frame of party {party} in round {self._round}: {problem}", peer=str(party)
        )


def _unpack(packed: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    return np.unpackbits(packed, count=count, bitorder="little")
