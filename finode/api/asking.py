"""One query for one HTTP request, cancelled when the client goes away.

`AnswerStream` answers `POST /finode/v1/queries` with one JSON object per line:

    {"type": "progress", "session": ..., "phase": ..., "done": ..., "total": ..., "detail": ...}     any number
    {"type": "alive"}                       after each pause of 5 s, so that a client can tell a daemon that hangs
    {"type": "answer", ...} or {"type": "error", "code": ..., "message": ..., "hint": ..., ...}      the last one

The query and the connection are watched side by side: a client that disconnects cancels the query, and with it the
session at every member.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec
import trio
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from finode.api.errors import INTERNAL, describe
from finode.errors import FinodeError
from finode.node.interface import NodeService, QueryAnswer, QueryProgress, QueryRequest

ALIVE_INTERVAL_S: Final = 5.0
PENDING_LINES: Final = 64  # a client that reads slowly misses old progress, and never holds up the query


async def ask(service: NodeService, request: QueryRequest, receive: Receive) -> QueryAnswer | None:
    """Run the query and return its answer; None if the client went away, which cancels the query."""

    async def ignore(_: QueryProgress) -> None:
        await trio.lowlevel.checkpoint()

    answer: QueryAnswer | None = None
    failure: FinodeError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
        try:
            answer = await service.query(request, ignore)
        except FinodeError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return answer


class _Lines:
    """Lines on their way to the client: bounded, the oldest progress goes first, the last line never."""

    def __init__(self) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=PENDING_LINES)
        self._wake = trio.Event()

    def put(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._wake.set()

    async def take(self) -> list[dict[str, Any]]:
        """Return all lines there are; after a silence of `ALIVE_INTERVAL_S`, a line that says so."""
        with trio.move_on_after(ALIVE_INTERVAL_S) as pause:
            await self._wake.wait()
        if pause.cancelled_caught:
            return [{"type": "alive"}]
        self._wake = trio.Event()
        lines = list(self._lines)
        self._lines.clear()
        return lines


class AnswerStream(Response):
    """Runs a query and streams its progress and its answer; see the top of this module."""

    media_type = "application/x-ndjson"

    def __init__(self, service: NodeService, request: QueryRequest, log: FilteringBoundLogger) -> None:
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.body = b""
        self.init_headers()
        del self.headers["content-length"]
        self._service = service
        self._request = request
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        lines = _Lines()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            nursery.start_soon(self._run, lines)
            last = False
            while not last:
                for line in await lines.take():
                    last = line["type"] in ("answer", "error")
                    await send({"type": "http.response.body", "body": _encode(line), "more_body": not last})
            nursery.cancel_scope.cancel()

    async def _run(self, lines: _Lines) -> None:
        async def report(progress: QueryProgress) -> None:
            lines.put({"type": "progress", **msgspec.to_builtins(progress)})
            await trio.lowlevel.checkpoint()

        try:
            answer = await self._service.query(self._request, report)
        except FinodeError as error:
            lines.put({"type": "error", **describe(error)})
        except Exception:  # the edge: the response has begun, so this is the only place left to say it
            self._log.exception("api: a query failed", service=self._request.service)
            lines.put({"type": "error", **describe(FinodeError(INTERNAL))})
        else:
            lines.put({"type": "answer", **msgspec.to_builtins(answer)})


def _encode(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
