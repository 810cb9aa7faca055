"""A counting of labels that fails leaves nothing behind in its worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from finode.config import load
from finode.errors import InputError, PeerUnreachable
from finode.node.ballots import Ballots
from finode.node.channel import Buffer, Envelope
from finode.node.feedback import AskedSession, AskedSessions, FeedbackTaker
from tests.node.test_witness import P0, SEALING
from tests.smpc import models


class FakeWorker:
    """One that asks for an exchange, whatever it is asked."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []

    async def request(self, header: dict[str, Any], parts: object = ()) -> Envelope:
        return Envelope({"state": "exchange", "parties": [1], "expected_bytes": 8}, (bytes(8),))

    async def post(self, header: dict[str, Any]) -> None:
        self.posted.append(header)


class LostStream:
    async def send_raw(self, frame: Buffer) -> None:
        raise PeerUnreachable("the party was lost", peer=SEALING.terms.parties[1])


@pytest.mark.trio
async def test_a_run_whose_party_is_lost_is_dropped(tmp_path: Path) -> None:
    worker, nothing = FakeWorker(), cast("Any", None)
    network = cast("Any", SimpleNamespace(peer_id=P0.peer_id))
    taker = FeedbackTaker(network, nothing, nothing, nothing, lambda: 0, load(tmp_path), structlog.get_logger())
    program = models.program_of([models.mlp(1)], statistics=True)
    ballots = Ballots(b"i" * 16, SEALING.terms, program, 1, b"", {1: bytes(32)})

    with pytest.raises(PeerUnreachable):
        await taker._run(cast("Any", worker), ballots, b"", {1: cast("Any", LostStream())})

    assert worker.posted == [{"kind": "drop", "run": b"feedback" + b"i" * 16}]


def test_a_query_is_named_before_one_of_its_sessions() -> None:
    terms = cast("Any", None)  # not read here
    first, second = (AskedSession(bytes([byte]) * 16, terms, 3) for byte in (0xAB, 0xCD))
    asked = AskedSessions()
    asked.put(first.id, (first, second))

    assert asked.of("ab") == (first.id, (first, second))
    assert asked.of("CD") == (second.id, (second,))
    for unknown in ("", "ef"):
        with pytest.raises(InputError, match="remember"):
            asked.of(unknown)
