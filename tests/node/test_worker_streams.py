"""Bundles pass through workers in pieces: neither the dealer's nor a party's holds the whole of one twice."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from finode.node.channel import Buffer, Envelope
from finode.node.worker import Worker
from finode.smpc.engine import Dealing, Engine, Program
from finode.wire import canonical
from tests.fakes.federation import toy_plan

PIECE_BYTES = 1 << 20
PIECES = 8


@dataclass
class Held:
    size_bytes: int = 0


class PieceEngine:
    """Deals `PIECES` pieces and counts those that it made; prepares by keeping what it is given."""

    name = "pieces"

    def __init__(self) -> None:
        self.made: list[bytes] = []
        self.prepared: list[Buffer] = []

    def deal(self, program: Program, secret: bytes) -> Dealing:
        return Dealing((bytes(32), bytes(32)), PIECES * PIECE_BYTES, self._pieces())

    def _pieces(self) -> Iterator[Buffer]:
        for number in range(PIECES):
            self.made.append(bytes([number]) * PIECE_BYTES)
            yield self.made[-1]

    def correction_bytes(self, program: Program) -> int:
        return PIECES * PIECE_BYTES

    def memory_bytes(self, program: Program) -> int:
        return 0

    def hold(self, *arguments: object) -> Held:
        return Held()

    def prepare(self, program: Program, party_index: int, holding: Held, seed: bytes, corrections: Buffer) -> Held:
        self.prepared.append(corrections)
        return Held()


@pytest.fixture
def engine() -> PieceEngine:
    return PieceEngine()


@pytest.fixture
def worker(engine: PieceEngine) -> Worker:
    return Worker({engine.name: cast(Engine, engine)})


def _handled(worker: Worker, kind: str, *parts: Buffer, **header: Any) -> Envelope:
    reply = worker.handle(Envelope({"kind": kind, **header}, parts))
    assert "error" not in reply.header, reply.header
    return reply


def _program() -> dict[str, Any]:
    program = Program(
        plans=(toy_plan(),),
        deployments=(b"d" * 32,),
        parties=2,
        batch=1,
        fractional_bits=16,
        vote="soft",
        reveal="label",
    )
    return {"engine": "pieces", "program": canonical.encode(program)}


def test_a_piece_of_a_bundle_is_answered_before_the_one_after_the_next_is_made(
    worker: Worker, engine: PieceEngine
) -> None:
    _handled(worker, "deal", bytes(32), run=b"r", **_program())
    for number in range(PIECES):
        assert len(engine.made) <= number + 1
        reply = _handled(worker, "next", run=b"r")
        assert reply.header["more"]
        assert reply.parts[0] is engine.made[number]
        assert len(engine.made) <= number + 2
    assert not _handled(worker, "next", run=b"r").header["more"]


def test_a_bundle_is_prepared_from_the_buffer_it_came_in_and_nothing_else_of_it_stays(
    worker: Worker, engine: PieceEngine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    files = {"constants": [str(tmp_path / "file")], "shares": [str(tmp_path / "file")]}
    tracemalloc.start()
    try:
        _handled(worker, "bundle", bytes(32), bytes(32), bundle=b"b", party_index=1, **files, **_program())
        for _ in range(PIECES):
            _handled(worker, "feed", bytes(PIECE_BYTES), bundle=b"b")
        _handled(worker, "stored", bundle=b"b")
        held, peak = tracemalloc.get_traced_memory()
        size = len(engine.prepared.pop())
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert size == PIECES * PIECE_BYTES
    assert size <= held <= peak < size + 3 * PIECE_BYTES
    assert left < PIECE_BYTES
    assert worker.bundles == 1
