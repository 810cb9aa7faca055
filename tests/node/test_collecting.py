"""A collector that is asked to see the same session through twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing

from finode.config import load
from finode.node.collecting import Collector
from finode.node.signer import Signer
from finode.node.signing_book import SigningBook
from tests.node.test_witness import P0, P1, SEALING, _party


@pytest.mark.trio
async def test_two_sessions_of_one_id_end_no_daemon(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    book = SigningBook(tmp_path)
    nothing = cast("Any", None)  # a collector that stands down asks nobody
    collector = Collector(nothing, Signer(P1, book), book, nothing, load(tmp_path), structlog.get_logger())
    assert P0.peer_id == SEALING.terms.parties[0]  # who would collect first
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.see_through, SEALING, _party(1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(collector.see_through, SEALING, replace(_party(1), transcript=bytes(32)))
        await trio.testing.wait_all_tasks_blocked()
        collector.stand_down(b"i" * 16)
        collector.stopping = True
    book.close()
