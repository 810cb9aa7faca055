"""Time the books: 100,000 receipts into empty accounts, one more, and one statement's shares. CPU seconds.

PYTHONPATH=. python scripts/measure_rewards.py
"""

from __future__ import annotations

import copy
import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from finode.daemon.schemes import sums_of_answers
from finode.ledger.accounts import Accounts
from finode.ledger.records import VerifiedReceipt
from finode.ledger.schemes import dawid_skene
from finode.wire import canonical
from finode.wire.committee import Scheme
from finode.wire.receipts import Receipt, ReceiptId
from tests.ledger.building import models, receipt, rewards, verified
from tests.ledger.votes import federation

RECEIPTS = 100_000
TEMPLATES = 1000
SPACING_MS = 500


def main() -> None:
    """Print each figure: the least of five."""
    source = _Source()
    records = [source.record(index) for index in range(RECEIPTS)]

    def all_of_them() -> Accounts:
        accounts = Accounts()
        for record in records:
            accounts.put_receipt(record)
        accounts.digest()
        return accounts

    accounts = all_of_them()
    later = (source.record(index) for index in range(RECEIPTS, RECEIPTS + 100))

    def one_more() -> None:
        accounts.put_receipt(next(later))
        accounts.digest()

    _show(f"balances over {RECEIPTS} receipts, five models, three parties", all_of_them)
    _show("one more receipt, and the digest", one_more)
    for k, c in ((5, 10), (5, 100), (64, 11)):
        sums = sums_of_answers(*federation(0, models=k, classes=c, inputs=400))
        _show(f"dawid_skene, {k} models, {c} classes", partial(dawid_skene.shares, sums))


def _show(what: str, work: Callable[[], object]) -> None:
    seconds = []
    for _ in range(5):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    sys.stdout.write(f"{what}: {1000 * min(seconds):.2f} ms\n")


class _Source:
    """Receipts of sessions of their own: shallow copies of some that were decoded, as from the wire."""

    def __init__(self) -> None:
        terms = rewards(Scheme.DAWID_SKENE)
        bodies = [receipt(f"{number}", terms=terms, used=models(5), classes=10) for number in range(TEMPLATES)]
        self._templates = [canonical.decode(body.encode(), Receipt) for body in bodies]
        self._proven = verified(bodies[0])

    def record(self, index: int) -> VerifiedReceipt:
        body = copy.copy(self._templates[index % TEMPLATES])
        object.__setattr__(body, "session", hashlib.sha256(str(index).encode()).digest()[:16])
        object.__setattr__(body, "ended_ms", body.ended_ms + index * SPACING_MS)
        id = ReceiptId(hashlib.sha256(f"id {index}".encode()).digest())
        return replace(self._proven, id=id, receipt=body)


if __name__ == "__main__":
    main()
