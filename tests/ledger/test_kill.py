"""A ledger survives `kill -9` at any moment: fifty times over, in the middle of writing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from finode.ledger.records import VerifiedReceipt
from finode.ledger.store import Ledger
from finode.wire.reconciliation import RecordKind
from tests.ledger.process_writer import BATCH
from tests.ledger.unsigned import unsigned_receipt

KILLS = 50
ROOT = Path(__file__).resolve().parents[2]


def write_until_killed(commands: IO[str], answers: IO[str], first: int, seconds: float, opening: bool) -> int:
    """Have receipts written from `first` on, kill the writer after that time, and return where it said it was.

    The time counts from the writer's start if it is to be killed in `opening`, otherwise from its first batch.
    """
    commands.write(f"{first}\n")
    commands.flush()
    writer = int(answers.readline())
    reached = first if opening else int(answers.readline())
    time.sleep(seconds)
    os.kill(writer, signal.SIGKILL)
    while (line := answers.readline()) != "ended\n":
        reached = int(line)
    return reached


@pytest.mark.slow
def test_what_was_acknowledged_survives_fifty_kills(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    moments = random.Random(4)  # noqa: S311 - moments of a kill, no secret
    known: list[bytes] = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ledger.process_writer", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for kill in range(KILLS):
            first = len(known)
            reached = write_until_killed(process.stdin, process.stdout, first, moments.uniform(0, 0.05), kill % 5 == 0)
            with closing(Ledger.open(path)) as ledger:
                count = ledger.counts()[RecordKind.RECEIPT]
                # A batch whose commit was not said any more may be there, whole.
                assert count in (reached, reached + BATCH)
                known += [unsigned_receipt(number).id for number in range(first, count)]
                assert [one.id for one in ledger.records() if isinstance(one, VerifiedReceipt)] == known
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
