"""Serves the API: hypercorn's HTTP on listeners and connections of our own, in the daemon's nursery.

The accept loop is ours, not hypercorn's, for three reasons: port 0 must tell the real port, shutdown must be quick, and
one broken connection must not end the daemon. hypercorn writes in a shielded scope, so a client that stopped reading
would hold up a cancelled server for ever; here its socket is closed under it.
"""

from __future__ import annotations

import errno
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio
from fastapi import FastAPI
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from structlog.typing import FilteringBoundLogger

from finode.config import split_host_port
from finode.errors import ConfigError

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that py-libp2p brings lack trio.TaskStatus

SECONDS: Final = 1.0
GRACE_S: Final = 0.5 * SECONDS  # what is being written when the server is cancelled may end
KEEP_ALIVE_S: Final = 60 * SECONDS
STALLED_CLIENT_MS: Final = 60_000  # the kernel drops a client that takes no byte for so long
MAX_CONNECTIONS: Final = 256


async def serve_api(
    app: FastAPI,
    bind: str,
    *,
    log: FilteringBoundLogger | None = None,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `HOST:PORT` until cancelled; `task_status.started` gets the address really bound.

    Raises `ConfigError` if the address cannot be listened on.
    """
    listeners = await _listen(bind)
    server = _Server(app, log if log is not None else structlog.get_logger())
    host, port = listeners[0].socket.getsockname()[:2]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, server.serve, listeners))
        task_status.started(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        try:
            await trio.sleep_forever()
        finally:
            await server.end()


class _Server:
    """The connections that are open, each served by hypercorn."""

    def __init__(self, app: FastAPI, log: FilteringBoundLogger) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type] # two descriptions of the same ASGI callable
        self._log = log
        self._config = Config()
        self._config.errorlog = logging.getLogger("hypercorn.error")  # routed by finode.daemon.logs
        self._config.include_server_header = False
        self._config.keep_alive_timeout = KEEP_ALIVE_S
        self._context = WorkerContext(None)
        self._streams: set[trio.SocketStream] = set()
        self._empty = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end."""
        if len(self._streams) >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_CLIENT_MS)
        self._streams.add(stream)
        try:
            server: Any = TCPServer(
                self._app,
                self._config,
                self._context,
                ConnectionState({}),
                stream,  # type: ignore[arg-type] # hypercorn's own listeners pass plain streams too
            )
            await server.run()
        except Exception:  # the edge: bytes that hypercorn chokes on end their connection, not the daemon
            self._log.exception("api: a connection failed")
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._empty.set()

    async def end(self) -> None:
        """Let what is being written end, then close every socket."""
        if not self._streams:
            return
        self._empty = trio.Event()
        with trio.CancelScope(deadline=trio.current_time() + GRACE_S, shield=True):
            await self._empty.wait()
        for stream in self._streams:
            stream.socket.close()


async def _listen(bind: str) -> list[trio.SocketListener]:
    host, port = split_host_port(bind)
    # One address: with port 0, "localhost" would get a port for each of 127.0.0.1 and ::1.
    host = "127.0.0.1" if host == "localhost" else host
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        hint = "another daemon may listen there: choose another --api HOST:PORT, or port 0 for a free one"
        reason = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(
            f"the API cannot listen on {bind}: {reason}", hint=hint if error.errno == errno.EADDRINUSE else ""
        ) from None
    for other in listeners[1:] if port == 0 else ():
        await other.aclose()
    return list(listeners[:1] if port == 0 else listeners)
