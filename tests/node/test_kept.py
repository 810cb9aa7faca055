"""What a worker keeps: deployments as long as their files are the same, bundles until they are used or burned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from finode.errors import LocalError, LocalProtocolError
from finode.node.channel import Buffer
from finode.node.kept import BundleKeep, HoldingCache, KeptBundle
from finode.smpc.engine import Engine, Holding, Prepared, Program
from tests.fakes.federation import toy_plan


@dataclass
class FakeHolding:
    size_bytes: int


class FakeEngine:
    name = "fake"

    def __init__(self) -> None:
        self.held = 0

    def hold(
        self,
        program: Program,
        party_index: int,
        constants: Sequence[Buffer],
        mask_seeds: Sequence[bytes],
        weight_shares: Sequence[Buffer],
    ) -> FakeHolding:
        self.held += 1
        return FakeHolding(sum(map(len, (*constants, *weight_shares))))


class FakePrepared:
    def __init__(self, corrections: Buffer, pieces: int) -> None:
        self.corrections = corrections
        self.left = pieces
        self.size_bytes = len(corrections)

    def advance(self) -> bool:
        self.left -= 1
        if self.left < -1:
            raise LocalError("a piece that is none")
        return self.left >= 0


def _program(deployment: bytes) -> Program:
    return Program(
        plans=(toy_plan(),),
        deployments=(deployment,),
        parties=2,
        batch=1,
        fractional_bits=16,
        vote="soft",
        reveal="label",
    )


def _get(cache: HoldingCache, engine: FakeEngine, root: Path, name: str, seed: bytes = b"m" * 32) -> Holding:
    paths = [root / f"{name}-{kind}" for kind in ("constants", "share")]
    for path in paths:
        if not path.exists():
            path.write_bytes(bytes(50))
    constants, share = ([str(path)] for path in paths)
    return cache.get(cast(Engine, engine), _program(name.encode() * 32), 0, constants, share, (seed,))


def test_a_deployment_is_read_once_while_its_files_and_masks_are_the_same(tmp_path: Path) -> None:
    cache, engine = HoldingCache(1000), FakeEngine()

    first = _get(cache, engine, tmp_path, "a")
    assert _get(cache, engine, tmp_path, "a") is first
    assert _get(cache, engine, tmp_path, "a", b"n" * 32) is not first
    os.utime(tmp_path / "a-share", ns=(1, 1))
    assert _get(cache, engine, tmp_path, "a") is not first
    assert engine.held == 3


def test_the_least_recently_used_deployments_go_and_withdrawn_ones_at_once(tmp_path: Path) -> None:
    cache, engine = HoldingCache(250), FakeEngine()
    a, b = _get(cache, engine, tmp_path, "a"), _get(cache, engine, tmp_path, "b")
    assert _get(cache, engine, tmp_path, "a") is a
    _get(cache, engine, tmp_path, "c")
    assert len(cache) == 2
    assert _get(cache, engine, tmp_path, "a") is a
    (tmp_path / "a-share").unlink()
    assert _get(cache, engine, tmp_path, "b") is not b
    assert len(cache) == 2
    assert engine.held == 4


def _keep(size: int, pieces: int = 2) -> tuple[BundleKeep, list[FakePrepared]]:
    keep, made = BundleKeep(), list[FakePrepared]()

    def prepare(corrections: Buffer) -> Prepared:
        made.append(FakePrepared(corrections, pieces))
        return made[-1]

    keep.begin(b"one", KeptBundle(cast(Any, None), prepare, bytearray(size)))
    return keep, made


def test_a_bundle_comes_in_pieces_is_prepared_ahead_and_taken_once() -> None:
    keep, made = _keep(5)
    with pytest.raises(LocalProtocolError, match="second time"):
        keep.begin(b"one", KeptBundle(cast(Any, None), cast(Any, None), bytearray()))
    keep.feed(b"one", b"abc")
    assert not keep.advance()
    keep.feed(b"one", memoryview(b"de"))
    keep.close(b"one")

    assert made[0].corrections == b"abcde"
    assert [keep.advance() for _ in range(4)] == [True, True, False, False]
    assert keep.take(b"one").prepared is made[0]
    with pytest.raises(LocalProtocolError, match="used, burned, or never came"):
        keep.take(b"one")
    assert len(keep) == 0


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"abcd", b"ef"], []])
def test_a_bundle_of_another_size_is_burned(pieces: list[bytes]) -> None:
    keep, made = _keep(5)
    for piece in pieces:
        keep.feed(b"one", piece)
    with pytest.raises(LocalError, match="5 bytes of corrections came with"):
        keep.close(b"one")
    assert not made
    assert len(keep) == 0


def test_a_burned_bundle_is_neither_prepared_nor_taken() -> None:
    keep, _ = _keep(0)
    keep.close(b"one")
    keep.burn(b"one")
    keep.burn(b"one")
    keep.feed(b"one", b"late")
    assert not keep.advance()
    with pytest.raises(LocalProtocolError):
        keep.take(b"one")
    with pytest.raises(LocalProtocolError, match="burned"):
        keep.close(b"one")


def test_a_bundle_whose_preparation_fails_is_burned_and_others_go_on() -> None:
    keep, _ = _keep(0, pieces=-1)
    keep.close(b"one")
    with pytest.raises(LocalError, match="none"):
        keep.advance()
    assert len(keep) == 0
    assert not keep.advance()
