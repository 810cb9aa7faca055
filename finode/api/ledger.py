"""Receipts and rewards under /finode/v1: what the ledger holds, what follows from it, and labels that come later.

GET  /finode/v1/receipts?epoch=&limit=                the latest first
GET  /finode/v1/receipts/{id}                         one; its id, its session, or the first digits of either
GET  /finode/v1/receipts/export?epoch=                a file for `finode receipts verify`, application/octet-stream
GET  /finode/v1/rewards?epoch=                        balances of all organizations
GET  /finode/v1/rewards/{organization}?epoch=         why one of them has its balance, amount by amount
POST /finode/v1/feedback {"session", "labels"}        labels of a session's inputs, -1 for one without
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from finode.api.inputs import parse, read_body
from finode.node.interface import LedgerService

MOST_RECEIPTS: Final = 1000
"""Receipts of one listing; a whole ledger is exported."""
MAX_LABELS: Final = 4096  # inputs of the largest session

Epoch = Annotated[int | None, Query(ge=0, lt=1 << 53)]
Limit = Annotated[int, Query(ge=1, le=MOST_RECEIPTS)]
Label = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)]


class FeedbackBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /finode/v1/feedback`."""

    session: Annotated[str, msgspec.Meta(max_length=64)]
    labels: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]


def ledger_routes(service: LedgerService, *, max_body_bytes: int) -> APIRouter:
    """Return the routes of receipts, rewards and feedback."""
    routes = APIRouter(prefix="/finode/v1")

    @routes.get("/receipts")
    async def receipts(epoch: Epoch = None, limit: Limit = 100) -> Response:
        return _json({"receipts": await service.receipts(epoch, limit)})

    # Before the route of one receipt, which would take "export" for an id.
    @routes.get("/receipts/export")
    async def export_receipts(epoch: Epoch = None) -> Response:
        exported = await service.export_receipts(epoch)
        return Response(exported, media_type="application/octet-stream")

    @routes.get("/receipts/{id}")
    async def receipt(id: str) -> Response:
        return _json(await service.receipt(id))

    @routes.get("/rewards")
    async def rewards(epoch: Epoch = None) -> Response:
        return _json(await service.rewards(epoch))

    # A path: the name of an organization may have a slash in it.
    @routes.get("/rewards/{organization:path}")
    async def explain(organization: str, epoch: Epoch = None) -> Response:
        return _json(await service.explain(organization, epoch))

    @routes.post("/feedback")
    async def feedback(request: Request) -> Response:
        body = parse(await read_body(request, max_body_bytes), FeedbackBody)
        return _json(await service.feedback(body.session, body.labels))

    return routes


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
