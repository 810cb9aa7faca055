"""What frames carry (finode/smpc/frames.py), read from their bytes alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

HEADER, ENTRY = 16, struct.Struct("<8sBB6xQ")


def payload(frame: bytes) -> bytes:
    """The raw buffers of a frame without header, entries and padding (finode/smpc/frames.py)."""
    (entries,) = struct.unpack_from("<H", frame, 6)
    position = HEADER + entries * ENTRY.size
    parts = []
    for index in range(entries):
        _, kind, width, count = ENTRY.unpack_from(frame, HEADER + index * ENTRY.size)
        size = 8 * count if kind == 0 else width * -(-count // 8)
        if kind == 0:
            parts.append(frame[position : position + size])
        else:
            # Of each plane of packed bits only whole bytes: the last one may be filled up with zeros.
            planes = range(position, position + size, -(-count // 8))
            parts.extend(frame[plane : plane + count // 8] for plane in planes)
        position += -(-size // 8) * 8
    assert position == len(frame)
    return b"".join(parts)


def opened(rounds: list[list[bytes]]) -> Iterator[bytes]:
    """What all parties learn in each round: sums of elements, xors of bits, and sums of residues, plane by plane."""
    for frames in rounds:
        (entries,) = struct.unpack_from("<H", frames[0], 6)
        position = HEADER + entries * ENTRY.size
        for index in range(entries):
            _, kind, width, count = ENTRY.unpack_from(frames[0], HEADER + index * ENTRY.size)
            size = 8 * count if kind == 0 else width * -(-count // 8)
            parts = [np.frombuffer(frame, np.uint8, size, position) for frame in frames]
            if kind == 0:
                yield np.sum([part.view("<u8") for part in parts], axis=0, dtype=np.uint64).tobytes()
            elif kind == 1:
                yield np.bitwise_xor.reduce(parts)[: count // 8].tobytes()
            else:
                planes = [np.unpackbits(part.reshape(width, -1), axis=1, bitorder="little") for part in parts]
                places = np.arange(width)[:, None]
                total = np.sum([(plane.astype(np.int64) << places).sum(0) for plane in planes], axis=0)
                whole = (total >> places & 1)[:, : count // 8 * 8]
                yield np.packbits(whole.astype(np.uint8), axis=1).tobytes()
            position += -(-size // 8) * 8
