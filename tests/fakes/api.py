"""A real HTTP server around a fake node: on trio where a test runs on trio, in a thread of its own elsewhere."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from queue import Queue

import structlog
import trio

from finode.api import build_app, serve_api
from finode.node.interface import NodeService

MAX_BODY_BYTES = 1 << 20


@asynccontextmanager
async def serving(service: NodeService, *, token: str = "", bind: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve on a free port while the block runs; gives `HOST:PORT`."""
    log = structlog.get_logger()
    app = build_app(service, token=token, max_body_bytes=MAX_BODY_BYTES, log=log)
    async with trio.open_nursery() as nursery:
        bound: str = await nursery.start(partial(serve_api, app, bind, log=log))
        yield bound
        nursery.cancel_scope.cancel()


@contextmanager
def serving_in_thread(service: NodeService, *, token: str = "") -> Iterator[str]:
    """Serve from a thread with its own trio loop, for tests that block or run on asyncio; gives `HOST:PORT`."""
    ready: Queue[tuple[str, trio.lowlevel.TrioToken, trio.CancelScope]] = Queue()

    async def main() -> None:
        async with serving(service, token=token) as bound:
            with trio.CancelScope() as scope:
                ready.put((bound, trio.lowlevel.current_trio_token(), scope))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    bound, token_of_loop, scope = ready.get(timeout=10)
    try:
        yield bound
    finally:
        token_of_loop.run_sync_soon(scope.cancel)
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
