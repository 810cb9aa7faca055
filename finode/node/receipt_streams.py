"""Routes the streams of /finode/receipts/1: the first message says whom a stream is for.

streams = ReceiptStreams(network)
streams.route(FIRST_MESSAGES, keeper.serve_sync)
streams.open()
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from finode.errors import LocalProtocolError
from finode.net.interface import Network, Stream
from finode.wire.message import Message
from finode.wire.receipts import PROTOCOL

FIRST_TIMEOUT_S = 10.0
"""Deadline of a stream's first message."""

Serve = Callable[[Stream, Message], Awaitable[None]]
"""Serves a stream from its first message on."""


class ReceiptStreams:
    """The one handler of /finode/receipts/1."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._routes: dict[type[Message], Serve] = {}

    def route(self, first: tuple[type[Message], ...], serve: Serve) -> None:
        """Have `serve` serve the streams that begin with one of these messages."""
        for cls in first:
            if cls in self._routes:
                raise LocalProtocolError(f"streams that begin with {cls.__name__} are served already")
            self._routes[cls] = serve

    def open(self) -> None:
        """Begin to serve."""
        self._network.serve(PROTOCOL, self._serve)

    async def _serve(self, stream: Stream) -> None:
        message = await stream.receive(*self._routes, timeout_s=FIRST_TIMEOUT_S)
        await self._routes[type(message)](stream, message)
