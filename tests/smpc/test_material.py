from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from finode.errors import LocalError, LocalProtocolError
from finode.smpc.material import Bundle, CountingSource, DealerSource, PartySource, Source, gate_stream, width_for
from finode.smpc.randomness import fresh_seed

Piece = Callable[[Source], Tensor]
NUMBERS = torch.arange(-6, 7)
BITS = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1], dtype=torch.uint8)


def _xor(pieces: list[Tensor]) -> Tensor:
    total = pieces[0].clone()
    for piece in pieces[1:]:
        total ^= piece
    return total


def _add(width: int) -> Callable[[list[Tensor]], Tensor]:
    def add(pieces: list[Tensor]) -> Tensor:
        total = torch.stack(pieces).sum(0)
        return total if width == 64 else total & ((1 << width) - 1)

    return add


CASES: list[tuple[str, Piece, Callable[[list[Tensor]], Tensor]]] = [
    *((f"uniform{w}", lambda s, w=w: s.uniform((3, 5), w), _add(w)) for w in (8, 16, 32, 64)),
    *((f"dealt{w}", lambda s, w=w: s.dealt((13,), lambda: NUMBERS, w), _add(w)) for w in (8, 16, 32, 64)),
    ("bits", lambda s: s.bits((3, 7)), _xor),
    ("dealt_bits", lambda s: s.dealt_bits((11,), lambda: BITS), _xor),
    *((f"words{w}", lambda s, w=w: s.dealt_words((13,), lambda: NUMBERS, w), _xor) for w in (8, 16, 32, 64)),
    ("broadcast", lambda s: s.dealt((4, 13), lambda: NUMBERS), _add(64)),
]


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize(("piece", "combine"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_parties_pieces_combine_to_what_the_dealer_knows(
    parties: int, piece: Piece, combine: Callable[[list[Tensor]], Tensor]
) -> None:
    seeds = [fresh_seed() for _ in range(parties)]
    dealer, counter = DealerSource([gate_stream(seed, "g") for seed in seeds], None), CountingSource()
    # Each piece is taken twice: the second one starts where the first one ended, on both sides.
    secrets = [piece(dealer), piece(dealer)]
    piece(counter), piece(counter)
    written = b"".join(raw.tobytes() for raw in dealer.written)
    sources = [
        PartySource(gate_stream(seed, "g"), memoryview(written) if i == parties - 1 else None, None)
        for i, seed in enumerate(seeds)
    ]

    shares = [[piece(source), piece(source)] for source in sources]

    assert counter.size == len(written)
    for index, secret in enumerate(secrets):
        # Of a dealt value the dealer keeps all bits, the sharing its low ones: `combine` cuts both alike.
        assert torch.equal(combine([share[index] for share in shares]), combine([secret]))
    assert not torch.equal(shares[0][0], shares[0][1])


def test_a_bundle_gives_each_gate_once() -> None:
    seed = fresh_seed()
    bundle = Bundle(seed, [("a", 16), ("b", 8)], bytes(24), True, None)

    bundle.take("a")

    with pytest.raises(LocalProtocolError, match="'a' is used up"):
        bundle.take("a")
    with pytest.raises(LocalProtocolError, match="never dealt"):
        bundle.take("c")
    bundle.take("b")
    assert repr(bundle) == "Bundle(0 gates left)"


def test_corrections_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(LocalError, match="23 bytes instead of 24"):
        Bundle(fresh_seed(), [("a", 16), ("b", 8)], bytes(23), True, None)
    with pytest.raises(LocalError, match="8 bytes instead of 0"):
        Bundle(fresh_seed(), [("a", 8)], bytes(8), False, None)


def test_corrections_in_a_writable_buffer_are_used_in_place() -> None:
    corrections = bytearray(np.arange(4, dtype="<i8").tobytes())
    bundle = Bundle(fresh_seed(), [("a", 32)], corrections, True, None)

    piece = bundle.take("a").dealt((4,), lambda: torch.zeros(4))

    corrections[0] = 77
    assert piece.tolist() == [77, 1, 2, 3]


def test_the_last_partys_corrections_are_uniform_whatever_is_dealt() -> None:
    dealer = DealerSource([gate_stream(fresh_seed(), "g") for _ in range(2)], None)

    dealer.dealt((1 << 15,), lambda: torch.zeros(1, dtype=torch.int64))

    written = np.concatenate(dealer.written)
    assert np.bincount(written, minlength=256).std() < 2 * np.sqrt(len(written) / 256)


def test_widths() -> None:
    assert [width_for(bits) for bits in (1, 8, 9, 16, 17, 33, 64)] == [8, 8, 16, 16, 32, 64, 64]
