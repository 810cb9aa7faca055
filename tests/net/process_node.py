"""A node in a process of its own, for tests that stop, kill or measure one.

    python process_node.py HOME SEED_HEX [BOOTSTRAP]

It prints one line of JSON (its peer id and an address) once it listens, echoes raw frames on /finode/session/1, and
counts bulk on /finode/shares/1. It ends when its standard input does.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import structlog
import trio

from finode.config import load
from finode.identity import Identity
from finode.net.directory import Offer
from finode.net.host import open_network
from finode.net.interface import Stream
from finode.wire import session, shares
from finode.wire.message import MIB


async def echo(stream: Stream) -> None:
    while True:
        await stream.send_raw(await stream.receive_raw(64 * MIB, timeout_s=60))


async def sink(stream: Stream) -> None:
    while True:
        size = int.from_bytes(await stream.receive_raw(8, timeout_s=60), "big")
        data = await stream.receive_bulk(size, timeout_s=60)
        await stream.send_raw(len(data).to_bytes(8, "big"))


async def main(home: Path, seed: bytes, bootstrap: list[str]) -> None:
    log = structlog.get_logger()
    config = load(home, {"network": {"listen": ["/ip4/127.0.0.1/tcp/0"], "bootstrap": bootstrap}})
    async with open_network(config, Identity.from_seed(seed), Offer, log=log) as network:
        network.serve(session.PROTOCOL, echo)
        network.serve(shares.PROTOCOL, sink)
        print(json.dumps({"peer": network.peer_id, "address": network.addresses[0]}), flush=True)  # noqa: T201
        with trio.CancelScope():
            stdin = trio.lowlevel.FdStream(sys.stdin.fileno())
            await stdin.receive_some(1)


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    trio.run(main, Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3:])
