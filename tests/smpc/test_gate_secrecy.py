"""What the parties see of the gates of functions, products and votes: frames, and what they open with them, are
uniform whatever the input, and no mask serves twice."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finode.smpc.gates import spline
from finode.smpc.gates.base import Gate
from finode.smpc.gates.log_softmax import Log, LogSoftmax
from finode.smpc.gates.piecewise import PiecewiseLinear, clip, leaky
from finode.smpc.gates.product import MatrixProduct
from finode.smpc.gates.softmax import EXP_BITS, reciprocal_table
from finode.smpc.gates.spline import Spline
from finode.smpc.gates.votes import Distance, Lookup
from finode.smpc.simulation import GateRun, simulate
from tests.smpc.statistics import IMPROBABLE, chi_square
from tests.smpc.test_secrecy import ENTRY, HEADER, payload

F, BITS = 16, 28
ONE = 1 << F


def full(value: float, *shape: int, bits: int = 2 * F) -> Tensor:
    return torch.full(shape, round(value * 2**bits))


GATES: dict[str, tuple[Gate[Any], list[tuple[Tensor, ...]]]] = {
    **{
        curve.name: (
            Spline((512,), F, F, BITS, curve),
            [(full(value, 512),) for value in (0.0, -2047.0, 2047.0, curve.start)],
        )
        for curve in (spline.GELU, spline.SIGMOID, spline.EXP)
    },
    "clip": (PiecewiseLinear((2048,), F, BITS, clip(0, 6 * ONE)), [(full(v, 2048),) for v in (0.0, 6.0, -2047.0)]),
    "leaky": (PiecewiseLinear((2048,), F, BITS, leaky(6554, ONE)), [(full(v, 2048),) for v in (0.0, -2047.0)]),
    "matmul": (
        MatrixProduct((1, 1, 32, 32), (1, 1, 32, 32)),
        [(full(v, 1, 1, 32, 32, bits=F), full(1.0, 1, 1, 32, 32, bits=F)) for v in (0.0, 1.0)],
    ),
    "log_softmax": (LogSoftmax((64, 10), F, F, BITS), [(full(v, 64, 10),) for v in (0.0, 2000.0)]),
    "log": (Log((512,), 10), [(full(v, 512, bits=EXP_BITS),) for v in (1.0, 10.0)]),
    "distance": (Distance((64, 10), F, BITS), [(full(v, 64, 10),) for v in (0.0, -2000.0)]),
    "lookup": (Lookup((512,), 40, reciprocal_table(8)), [(full(v, 512, bits=40),) for v in (1.0, 8.0)]),
}


def opened(done: GateRun) -> Iterator[bytes]:
    """What all parties learn in each round: sums of elements, xors of bits."""
    for frames in done.frames:
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
            position += -(-size // 8) * 8


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("name", GATES)
def test_frames_and_opened_values_are_uniform_whatever_the_input(name: str, parties: int) -> None:
    gate, inputs = GATES[name]

    for x in inputs:
        done = simulate(gate, *x, parties=parties)
        seen = [payload(frames[sender]) for frames in done.frames for sender in range(parties)]
        assert chi_square(b"".join(seen)) < IMPROBABLE
        assert all(chi_square(data) < IMPROBABLE for data in (*seen, *opened(done)) if len(data) > 4000)


@pytest.mark.parametrize("name", GATES)
def test_no_mask_serves_twice(name: str) -> None:
    gate, inputs = GATES[name]

    # Equal inputs under equal masks would open equal values: no word of eight bytes may come twice, in any round.
    words = [
        data[place : place + 8]
        for _ in range(2)
        for data in opened(simulate(gate, *inputs[0], parties=2))
        for place in range(0, len(data) - 7, 8)
    ]

    assert len(words) > 500
    assert len(set(words)) == len(words)
