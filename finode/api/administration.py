"""Administration under /finode/v1: what the commands and `finode.Client` speak.

    GET    /finode/v1/status | peers | services | models | sessions
    DELETE /finode/v1/sessions/{id}      cancel a session that this node asked for
    POST   /finode/v1/reload             read roster and model registry again
    POST   /finode/v1/queries            a query, its progress and its answer as lines of JSON (`asking.py`)

Lists are objects with one key, so that they can grow: `{"peers": [...]}`.
"""

from __future__ import annotations

import msgspec
import trio
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from structlog.typing import FilteringBoundLogger

from finode.api.asking import AnswerStream
from finode.api.inputs import compact_request, read_body
from finode.node.interface import NodeService


def administration_routes(service: NodeService, *, max_body_bytes: int, log: FilteringBoundLogger) -> APIRouter:
    """Return the routes under /finode/v1."""
    routes = APIRouter(prefix="/finode/v1")

    @routes.get("/status")
    async def status() -> Response:
        return _json(service.status())

    @routes.get("/peers")
    async def peers() -> Response:
        return _json({"peers": service.peers()})

    @routes.get("/services")
    async def services() -> Response:
        return _json({"services": service.services()})

    @routes.get("/models")
    async def models() -> Response:
        return _json({"models": service.models()})

    @routes.get("/sessions")
    async def sessions() -> Response:
        return _json({"sessions": service.sessions()})

    @routes.delete("/sessions/{session}")
    async def cancel(session: str) -> Response:
        if await service.cancel(session):
            return _json({"cancelled": True})
        return JSONResponse({"error": f"this node asked for no session {session!r} that still runs"}, 404)

    @routes.post("/reload")
    async def reload() -> Response:
        await service.reload()
        return _json({"reloaded": True})

    @routes.post("/queries")
    async def queries(request: Request) -> Response:
        body = await read_body(request, max_body_bytes)
        # In a thread: decoding megabytes and resizing images must not hold up the daemon's heartbeats.
        asked = await trio.to_thread.run_sync(compact_request, body, service.services())
        return AnswerStream(service, asked, log)

    return routes


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
