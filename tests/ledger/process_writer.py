"""Adds receipts to a ledger as fast as it can and says which are acknowledged: `process_writer.py PATH`.

For each number on standard input a child begins to write receipts from that number on; it says its process id, and
after each `add_all` the number of the next receipt. Its end is said, too. Children are forked, so that a kill costs no
new start of Python. The receipts carry signatures that nobody made: verifying is not what is tested here.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from finode.ledger.store import Ledger
from tests.ledger.unsigned import unsigned_receipt

BATCH = 5


def say(what: object) -> None:
    # One write each: the pipe takes it whole or not at all.
    os.write(sys.stdout.fileno(), f"{what}\n".encode())


def write(path: Path, first: int) -> None:
    say(os.getpid())
    ledger = Ledger.open(path)
    for number in itertools.count(first, BATCH):
        ledger.add_all([unsigned_receipt(number + offset) for offset in range(BATCH)])
        say(number + BATCH)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            write(Path(sys.argv[1]), int(line))
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main()
