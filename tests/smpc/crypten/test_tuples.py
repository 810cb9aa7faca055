"""Tuples: what the dealer makes fits together among the parties, and each is taken once and in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finode.errors import LocalError, LocalProtocolError
from finode.smpc.crypten import tuples
from finode.smpc.crypten.compat import library
from finode.smpc.crypten.tuples import Kind, PartyProvider, Request
from finode.smpc.randomness import fresh_seed

REQUESTS = (
    tuples.triple((2, 3), (3,), "mul", {}),
    tuples.triple((2, 3), (3, 4), "matmul", {}),
    tuples.triple((1, 2, 5, 5), (4, 1, 3, 3), "conv2d", {"stride": [2, 1], "padding": (1, 1), "groups": 2}),
    tuples.single(Kind.SQUARE, (7,)),
    tuples.binary((2, 1, 3), (4, 1)),
    tuples.single(Kind.WRAPS, (50,)),
    tuples.single(Kind.BIT, (3, 11)),
)


def _dealt(parties: int, requests: tuple[Request, ...] = REQUESTS) -> list[PartyProvider]:
    seeds = [fresh_seed() for _ in range(parties)]
    corrections = b"".join(tuples.deal(requests, seeds))
    return [
        PartyProvider(seed, corrections, requests) if i == parties - 1 else PartyProvider(seed, b"", None)
        for i, seed in enumerate(seeds)
    ]


def _xor(pieces: list[Tensor]) -> Tensor:
    total = pieces[0].clone()
    for piece in pieces[1:]:
        total ^= piece
    return total


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_the_parties_pieces_make_correct_tuples(parties: int) -> None:
    providers = _dealt(parties)

    for request in REQUESTS:
        pieces = [provider.take(request) for provider in providers]
        sums = [torch.stack([own[i] for own in pieces]).sum(0) for i in range(len(pieces[0]))]
        xors = [_xor([own[i] for own in pieces]) for i in range(len(pieces[0]))]
        match request.kind:
            case Kind.TRIPLE:
                assert torch.equal(sums[2], getattr(torch, request.op)(sums[0], sums[1], **dict(request.options)))
            case Kind.SQUARE:
                assert torch.equal(sums[1], sums[0] * sums[0])
            case Kind.BINARY:
                assert torch.equal(xors[2], xors[0] & xors[1])
            case Kind.WRAPS:
                # Over the integers the shares sum to their sum in the ring and 2^64 for each wrap.
                exact = [sum(int(own[0][i]) for own in pieces) for i in range(50)]
                wraps = [(total - int(sums[0][i])) // 2**64 for i, total in enumerate(exact)]
                assert sums[1].tolist() == wraps
            case Kind.BIT:
                assert set(xors[0].reshape(-1).tolist()) == {0, 1}
                assert torch.equal(sums[1], xors[0])
    for provider in providers:
        provider.finish()


def test_crypten_gets_its_tensors_in_its_order() -> None:
    library()
    provider = _dealt(2, REQUESTS[-1:])[0]

    number, bit = provider.B2A_rng((3, 11))

    assert type(number).__name__ == "ArithmeticSharedTensor"
    assert type(bit).__name__ == "BinarySharedTensor"
    assert set(bit.share.reshape(-1).tolist()) <= {0, 1}


def test_the_last_partys_pieces_alone_are_uniform() -> None:
    requests = (tuples.triple((4096,), (4096,), "mul", {}),)
    last = _dealt(2, requests)[-1]

    for piece in last.take(requests[0]):
        bits = np.unpackbits(piece.numpy().view(np.uint8)).mean()
        assert abs(bits - 0.5) < 0.01


def test_a_request_out_of_order_or_left_over_or_twice_is_an_error() -> None:
    with pytest.raises(LocalProtocolError, match="was dealt"):
        _dealt(2)[-1].take(REQUESTS[1])
    one = _dealt(2, REQUESTS[:1])[-1]
    with pytest.raises(LocalProtocolError, match="never asked for"):
        _dealt(2, REQUESTS[:1])[-1].finish()
    one.take(REQUESTS[0])
    one.finish()
    with pytest.raises(LocalProtocolError, match="where None was dealt"):
        one.take(REQUESTS[0])


@pytest.mark.parametrize("requests", [REQUESTS, None], ids=["last", "other"])
def test_corrections_of_another_size_are_refused(requests: tuple[Request, ...] | None) -> None:
    with pytest.raises(LocalError, match="the bundle's corrections have"):
        PartyProvider(fresh_seed(), bytes(8), requests)


def test_only_what_programs_compute_is_dealt() -> None:
    options: dict[str, Any] = {}
    with pytest.raises(LocalError, match="conv1d"):
        tuples.triple((1,), (1,), "conv1d", options)
