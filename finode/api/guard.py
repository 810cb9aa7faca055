"""Who may ask, checked before anything else reads the request; and the edge where an unexpected exception ends.

The API takes plaintext inputs and shows answers, so it must not be open to whatever else runs on the machine:

1. `Host` must name a loopback address when the connection came in over loopback. A web page whose name was rebound
   to 127.0.0.1 still says its own name there.
2. A browser's cross-site request (`Origin` other than `Host`, or `Sec-Fetch-Site`) is refused: loopback alone does
   not protect against a page that posts to it.
3. The bearer token, when one is set. Off loopback it must be set.

An exception that is no `FinodeError` is logged here and told as "internal error" without its words.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from finode.api.errors import internal
from finode.config import is_loopback


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: int
    message: str
    challenge: bool = False


class Guard:
    """ASGI middleware; see the top of this module."""

    def __init__(self, app: ASGIApp, *, token: str, log: FilteringBoundLogger) -> None:
        self._app = app
        self._token = _hash(token.encode()) if token else b""
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            headers = [(b"www-authenticate", b'Bearer realm="finode"')] if refusal.challenge else []
            await _respond(send, refusal.status, {"error": refusal.message}, headers)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableMapping.setdefault(message, "headers", [])
                # An answer is the querier's alone: no cache on the way keeps it.
                message["headers"] = [*headers, (b"cache-control", b"no-store")]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:  # the edge: whatever a handler did not foresee ends here, logged
            self._log.exception("api: a request failed", method=scope["method"], path=scope["path"])
            if not started:
                await _respond(send, 500, internal(), [])

    def _refusal(self, scope: Scope) -> _Refusal | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return _Refusal(400, "a request names its Host once")
        local = is_loopback((scope.get("server") or ("", 0))[0])
        if local and not is_loopback(_name_of(hosts[0])):
            return _Refusal(403, f"the Host {hosts[0]!r} is not this machine; ask for 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None and (not hosts[0] or urlsplit(origin).netloc != hosts[0]):
            return _Refusal(403, f"requests from web pages of {origin!r} are refused")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _Refusal(403, "requests from other web pages are refused")
        if self._token:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(_bytes(given.strip())), self._token):
                return _Refusal(401, "this daemon demands its bearer token ([api] token of its settings)", True)
        elif not local:
            return _Refusal(403, "off loopback the API needs a bearer token: set FINODE_API__TOKEN")
        return None


def _name_of(host: str) -> str:
    """The name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _hash(token: bytes) -> bytes:
    # Hashed, so that the comparison takes the same time for any length too.
    return hashlib.sha256(token).digest()


def _bytes(header: str) -> bytes:
    return header.encode("latin-1")  # as starlette decoded it


async def _respond(
    send: Send, status: int, body: MutableMapping[str, Any] | dict[str, str], headers: list[tuple[bytes, bytes]]
) -> None:
    data = json.dumps(body).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})
