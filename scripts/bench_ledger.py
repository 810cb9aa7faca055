"""Measures the ledger: `PYTHONPATH=. python scripts/bench_ledger.py [--records N] [--json]`.

- verification of one receipt (3 parties, 5 models, 5 signatures and the order's), the fastest of several repetitions
- receipts a second from bytes into the ledger: parsed, verified, written and synced, in batches of 500
- loading: opening a ledger of N receipts, and reading all of them as whoever works out balances does
- bytes and round trips of a sync of 10,000 receipts that differ by 10, over a stream of real messages
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import structlog
import trio

from finode.identity import Identity
from finode.ledger.envelopes import envelope, open_envelope, verify
from finode.ledger.records import VerifiedReceipt
from finode.ledger.store import Ledger
from finode.net.directory import Offer
from finode.net.interface import Stream
from finode.net.memory import MemoryFederation, MemoryNetwork
from finode.node.ledger_keeper import FIRST_MESSAGES, LedgerKeeper
from finode.node.receipt_streams import ReceiptStreams
from finode.wire.message import HEADER, Message
from finode.wire.receipts import ModelUse, Receipt, SignedReceipt, Work
from tests.ledger.making import (
    DEALER,
    FEDERATION,
    FIRST,
    OWNER,
    QUERIER,
    SECOND,
    STRANGER,
    co_signed,
    hash_of,
    order_of,
    receipt_of,
    signed_receipt,
)

BATCH = 500
REPETITIONS = 7
THIRD = STRANGER
SIGNERS = (FIRST, SECOND, THIRD, DEALER, QUERIER)
PARTIES = (FIRST.peer_id, SECOND.peer_id, THIRD.peer_id)


def typical(number: int) -> Receipt:
    """Return the receipt of a query to five models on three parties; ten sessions to an hour."""
    started_ms = 1_700_000_000_000 + number * 360_000
    return receipt_of(
        number,
        started_ms=started_ms,
        ended_ms=started_ms + 300,
        parties=PARTIES,
        models=tuple(
            ModelUse(version=hash_of(f"m{k}"), owner=OWNER.peer_id, deployment=hash_of(f"d{k}")) for k in range(5)
        ),
        work=tuple(
            Work(peer=peer, rounds=24, bytes_sent=640_000, bundle_bytes=80_000, milliseconds=90)
            for peer in (*PARTIES, DEALER.peer_id)
        ),
    )


def stand_in(number: int) -> VerifiedReceipt:
    """Return a typical receipt with made-up signatures of the right size, to fill ledgers fast."""
    receipt = typical(number)
    body = receipt.encode()
    signatures = tuple(
        dataclasses.replace(one, signature=hash_of(f"{one.peer} {number}") * 2)
        for one in co_signed(b"", Receipt, SIGNERS)
    )
    order = dataclasses.replace(order_of(receipt), signature=hash_of(f"order {number}") * 2)
    signed = SignedReceipt(body=body, order=order, signatures=signatures)
    signers = frozenset(one.peer for one in signatures)
    return VerifiedReceipt(id=receipt.id, receipt=receipt, signed=signed, signers=signers, withheld=())


def fastest(work: Callable[[], object], times: int) -> float:
    """Return the seconds of one of `times` calls, in the fastest repetition."""
    best = float("inf")
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        best = min(best, (time.perf_counter() - began) / times)
    return best


def measure_verification() -> dict[str, float]:
    record = envelope(signed_receipt(typical(0), SIGNERS))
    seconds = fastest(lambda: verify(open_envelope(record)), 50)
    return {"receipt_bytes": len(record.data), "verify_ms": 1000 * seconds}


def measure_intake(folder: Path) -> dict[str, float]:
    received = [envelope(signed_receipt(typical(number), SIGNERS)) for number in range(REPETITIONS * BATCH)]
    verifying = writing = float("inf")
    with closing(Ledger.open(folder / "intake.sqlite")) as ledger:
        for start in range(0, len(received), BATCH):
            began = time.perf_counter()
            records = [verify(open_envelope(one)) for one in received[start : start + BATCH]]
            verified = time.perf_counter()
            ledger.add_all(records)
            verifying, writing = min(verifying, verified - began), min(writing, time.perf_counter() - verified)
    return {
        "receipts_per_s": BATCH / (verifying + writing),
        "written_per_s": BATCH / writing,
    }


def measure_loading(folder: Path, count: int) -> dict[str, float]:
    path = folder / "large.sqlite"
    with closing(Ledger.open(path)) as ledger:
        for start in range(0, count, BATCH):
            ledger.add_all(stand_in(number) for number in range(start, min(count, start + BATCH)))
    began = time.perf_counter()
    with closing(Ledger.open(path)) as ledger:
        opened = time.perf_counter()
        read = sum(1 for _ in ledger.records())
        done = time.perf_counter()
        listing = fastest(ledger.receipts, 1)
    return {
        "records": read,
        "open_s": opened - began,
        "read_all_s": done - opened,
        "latest_100_ms": 1000 * listing,
        "file_mb": path.stat().st_size / 1e6,
    }


class Counted:
    """A stream that counts what goes over it, frames' headers included."""

    def __init__(self, stream: Stream, traffic: dict[str, float]) -> None:
        self._stream = stream
        self._traffic = traffic

    async def send(self, message: Message, *, timeout_s: float) -> None:
        self._count(message)
        self._traffic["sync_round_trips"] += 1
        await self._stream.send(message, timeout_s=timeout_s)

    async def receive(self, *types: type[Message], timeout_s: float) -> Message:
        message = await self._stream.receive(*types, timeout_s=timeout_s)
        self._count(message)
        return message

    def _count(self, message: Message) -> None:
        size = HEADER.size + len(message.encode())
        self._traffic["sync_bytes"] += size
        self._traffic[type(message).__name__] = self._traffic.get(type(message).__name__, 0) + size

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


async def measure_sync(folder: Path) -> dict[str, float]:
    """Sync two ledgers of 10,000 receipts, over 42 days, to which each adds five, verified ones, that the other
    lacks."""
    traffic: dict[str, float] = {"sync_bytes": 0.0, "sync_round_trips": 0.0}
    shared = [stand_in(number) for number in range(10_000) if number % 1000 != 500]
    different = [verify(signed_receipt(typical(number), SIGNERS)) for number in range(500, 10_000, 1000)]
    federation = MemoryFederation(FEDERATION)
    keepers: list[tuple[LedgerKeeper, MemoryNetwork]] = []
    async with (
        federation.node(Identity.generate(), "A", Offer) as one,
        federation.node(Identity.generate(), "B", Offer) as other,
    ):
        for number, network in enumerate((one, other)):
            for member in (*SIGNERS, OWNER):
                network._organizations[member.peer_id] = "a member"
            ledger = Ledger.open(folder / f"sync{number}.sqlite")
            ledger.add_all([*shared, *different[number::2]])
            keeper = LedgerKeeper(ledger, network, federation=FEDERATION, interval_s=600, log=structlog.get_logger())
            streams = ReceiptStreams(network)
            streams.route(FIRST_MESSAGES, keeper.serve_sync)
            streams.open()
            keepers.append((keeper, network))
        keeper, network = keepers[0]
        stream = await network.open(keepers[1][1].peer_id, "/finode/receipts/1", timeout_s=5)
        began = time.perf_counter()
        await keeper._reconcile(Counted(stream, traffic))  # type: ignore[arg-type]
        traffic["sync_s"] = time.perf_counter() - began
        await stream.close()
        dumps = {keeper.ledger.dump() for keeper, _ in keepers}
        traffic["sync_equal"] = len(dumps) == 1
        for keeper, _ in keepers:
            keeper.ledger.close()
    return traffic


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000, help="receipts of the ledger that is loaded")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            **measure_verification(),
            **measure_intake(folder),
            **trio.run(measure_sync, folder),
            **measure_loading(folder, arguments.records),
            "load_average": os.getloadavg()[0],
        }
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        for key, value in figures.items():
            sys.stdout.write(f"{key:>18}  {value:,.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
