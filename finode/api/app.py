"""Puts the API together: the guard around the routes, and every error as `{"error": ...}`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from structlog.typing import FilteringBoundLogger

import finode
from finode.api.administration import administration_routes
from finode.api.errors import body_of, status_of
from finode.api.guard import Guard
from finode.api.inference import inference_routes
from finode.api.ledger import ledger_routes
from finode.errors import FinodeError, InputError, LocalError
from finode.node.interface import NodeService


def build_app(service: NodeService, *, token: str, max_body_bytes: int, log: FilteringBoundLogger) -> FastAPI:
    """Return the API of a node.

    `token` is the bearer token that every request must bring; with "" none is asked for over loopback, and nothing is
    served elsewhere. `max_body_bytes` is the largest request.
    """
    # No documentation pages: they load scripts from elsewhere, into a page that may ask this API.
    app = FastAPI(title="finode", version=finode.__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(inference_routes(service, max_body_bytes=max_body_bytes))
    app.include_router(administration_routes(service, max_body_bytes=max_body_bytes, log=log))
    app.include_router(ledger_routes(service, max_body_bytes=max_body_bytes))
    app.add_middleware(Guard, token=token, log=log)

    async def finode_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, FinodeError)  # noqa: S101 - starlette's types do not say it
        if isinstance(error, LocalError):
            log.error("api: a bug of this node", path=request.url.path, error=error)
        return JSONResponse(body_of(error), status_of(error))

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    async def validation_error(_: Request, error: Exception) -> Response:
        # Not str(error): it names files of this machine.
        assert isinstance(error, RequestValidationError)  # noqa: S101
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return JSONResponse(body_of(InputError(f"the request is wrong: {wrong}")), 400)

    app.add_exception_handler(FinodeError, finode_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    return app
