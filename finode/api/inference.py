"""Open Inference Protocol v2, the JSON form of REST [open-inference-protocol, inference_rest].

A service is what the protocol calls a model. It has one input, `input` (FP64), and these outputs: `labels` (BYTES),
`label_indices` (INT64), and as much of `probabilities` and `top` (FP64) as is revealed. Request parameters `parties`,
`vote`, `reveal`, `deadline_s`, `engine` choose how the query runs; response parameters say who served, how long it
took and what it moved. Parameters of a response are plain values, as the protocol demands: lists are joined with
commas.
"""

from __future__ import annotations

from typing import Any, Final

import trio
from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

import finode
from finode.api.asking import ask
from finode.api.inputs import InferRequest, find, infer_request, parse, read_body
from finode.errors import InputError
from finode.node.interface import NodeService, QueryAnswer, QueryRequest

NOT_READY: Final = 400  # the protocol: 200 indicates true, a 4xx false
OUTPUTS: Final = ("labels", "label_indices", "probabilities", "top")


def inference_routes(service: NodeService, *, max_body_bytes: int) -> APIRouter:
    """Return the routes under /v2."""
    routes = APIRouter(prefix="/v2")

    @routes.get("")
    async def server_metadata() -> dict[str, Any]:
        return {"name": "finode", "version": finode.__version__, "extensions": []}

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> Response:
        is_ready = service.ready()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else NOT_READY)

    @routes.get("/models/{name}")
    async def model_metadata(name: str) -> dict[str, Any]:
        view = find(name, service.services())
        classes = len(view.classes)
        return {
            "name": view.name,
            "platform": "finode",
            "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, *view.input.shape]}],
            "outputs": [
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
                {"name": "label_indices", "datatype": "INT64", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP64", "shape": [-1, classes]},
                {"name": "top", "datatype": "FP64", "shape": [-1]},
            ],
            "classes": list(view.classes),
            "models": len(view.offers),
        }

    @routes.get("/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        view = find(name, service.services())
        is_ready = service.ready() and bool(view.offers)
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else NOT_READY)

    @routes.post("/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        view = find(name, service.services())
        if "inference-header-content-length" in request.headers:
            raise InputError("the binary data extension is not supported", hint="send tensors as JSON")
        body = await read_body(request, max_body_bytes)
        # In threads: decoding megabytes and resizing images must not hold up the daemon's heartbeats.
        asked = await trio.to_thread.run_sync(parse, body, InferRequest)
        wanted = [output.name for output in asked.outputs or ()]
        for output in wanted:
            if output not in OUTPUTS:
                raise InputError(f"there is no output {output!r}", hint=f"outputs: {', '.join(OUTPUTS)}")
        query = await trio.to_thread.run_sync(infer_request, asked, view)
        return _Inference(service, query, asked.id, wanted or list(OUTPUTS))

    return routes


class _Inference(Response):
    """Runs the query while it watches the connection, then sends the answer as one body."""

    def __init__(self, service: NodeService, request: QueryRequest, id: str | None, wanted: list[str]) -> None:
        self.background: BackgroundTask | None = None
        self._service = service
        self._request = request
        self._id = id
        self._wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await ask(self._service, self._request, receive)
        if answer is not None:
            body = infer_response(answer, self._wanted, self._id)
            await JSONResponse(body)(scope, receive, send)


def infer_response(answer: QueryAnswer, wanted: list[str], id: str | None) -> dict[str, Any]:
    """Return the body of an inference response. An output that is not revealed is left out."""
    batch = len(answer.labels)
    outputs: dict[str, dict[str, Any]] = {
        "labels": {"shape": [batch], "datatype": "BYTES", "data": list(answer.labels)},
        "label_indices": {"shape": [batch], "datatype": "INT64", "data": list(answer.label_indices)},
    }
    if answer.probabilities is not None:
        flat = [value for row in answer.probabilities for value in row]
        outputs["probabilities"] = {"shape": [batch, len(answer.classes)], "datatype": "FP64", "data": flat}
    if answer.top is not None:
        outputs["top"] = {"shape": [batch], "datatype": "FP64", "data": list(answer.top)}
    timings, traffic, committee = answer.timings, answer.traffic, answer.committee
    body: dict[str, Any] = {
        "model_name": answer.service,
        "parameters": {
            "session": answer.session,
            "committee": committee.id,
            "parties": ",".join(committee.parties),
            "dealer": committee.dealer,
            "owners": ",".join(committee.owners),
            "left_out": ",".join(dict.fromkeys(one.owner for one in committee.left_out)),
            "engine": answer.engine,
            "attempts": answer.attempts,
            "negotiation_s": timings.negotiation_s,
            "deployment_s": timings.deployment_s,
            "offline_s": timings.offline_s,
            "online_s": timings.online_s,
            "total_s": timings.total_s,
            "rounds": traffic.rounds,
            "bytes_sent_per_party": ",".join(map(str, traffic.bytes_sent_per_party)),
            "offline_bytes": traffic.offline_bytes,
        },
        "outputs": [{"name": name, **outputs[name]} for name in wanted if name in outputs],
    }
    return body if id is None else {**body, "id": id}
