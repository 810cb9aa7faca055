from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from finode.errors import LocalError, RemoteProtocolError
from finode.smpc import frames
from finode.smpc.frames import Frame, Opening


def _openings(seed: int) -> dict[str, list[Opening]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    return {
        "z/last": [frames.elements(draw(2**62, 2, 3))],
        "a/first": [frames.bits(draw(2, 5, 13).to(torch.uint8)), frames.residues(draw(32, 11), 5)],
    }


def test_what_is_opened_adds_up_by_kind() -> None:
    made = [_openings(seed) for seed in range(3)]
    sent = [Frame(party, 7, openings) for party, openings in enumerate(made)]

    opened = sent[1].open({party: sent[party].data for party in (0, 2)})

    assert torch.equal(opened["z/last"][0], torch.stack([m["z/last"][0].data for m in made]).sum(0))
    bits = [m["a/first"][0].data for m in made]
    assert torch.equal(opened["a/first"][0], bits[0] ^ bits[1] ^ bits[2])
    assert torch.equal(opened["a/first"][1], torch.stack([m["a/first"][1].data for m in made]).sum(0) % 32)
    assert sent[0].payload_bits == 6 * 64 + 65 + 11 * 5
    assert len({len(frame.data) for frame in sent}) == 1


def test_a_frame_does_not_depend_on_the_order_of_its_openings() -> None:
    openings = _openings(1)

    assert Frame(0, 3, openings).data == Frame(0, 3, dict(reversed(openings.items()))).data


def _cut(frame: bytearray) -> bytes:
    return bytes(frame[:-1])


def _flip(position: int) -> Callable[[bytearray], bytes]:
    def flip(frame: bytearray) -> bytes:
        frame[position] ^= 1
        return bytes(frame)

    return flip


@pytest.mark.parametrize(
    "spoil",
    [_cut, lambda f: b"", lambda f: bytes(f) + b"\0", _flip(0), _flip(4), _flip(6), _flip(8), _flip(16), _flip(24)],
    ids=["short", "empty", "long", "magic", "sender", "entries", "round", "tag", "kind"],
)
def test_a_malformed_frame_names_its_party_and_round(spoil: Callable[[bytearray], bytes]) -> None:
    own, other = Frame(0, 4, _openings(1)), Frame(2, 4, _openings(2))

    with pytest.raises(RemoteProtocolError, match="party 2 in round 4") as caught:
        own.open({2: spoil(other.data)})

    assert caught.value.peer == "2"


def test_a_frame_of_another_program_is_malformed() -> None:
    own = Frame(0, 0, {"conv1": [frames.elements(torch.zeros(4, dtype=torch.int64))]})
    renamed = Frame(1, 0, {"conv2": [frames.elements(torch.zeros(4, dtype=torch.int64))]})

    with pytest.raises(RemoteProtocolError, match="openings that the program does not make"):
        own.open({1: renamed.data})


def test_wide_residues_are_refused() -> None:
    with pytest.raises(LocalError, match="17 bits"):
        frames.residues(torch.zeros(1, dtype=torch.int64), 17)
