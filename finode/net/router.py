"""From a protocol id to its handler, and from what a handler raises to the peer's standing and the log."""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from finode.errors import (
    LocalProtocolError,
    PeerTimeout,
    RemoteError,
    RemoteProtocolError,
    WireError,
)
from finode.identity import PeerId
from finode.net.interface import Handler
from finode.net.standing import PeerFault
from finode.net.stream import FrameStream

Blame = Callable[[PeerId, float, str], None]
"""Lowers a peer's standing: peer, points, reason."""


class Router:
    """The protocols that this node serves."""

    def __init__(self, log: FilteringBoundLogger, blame: Blame) -> None:
        self._log = log
        self._blame = blame
        self._handlers: dict[str, Handler] = {}

    def serve(self, protocol: str, handler: Handler) -> None:
        """Enter a handler; raise `LocalProtocolError` when the protocol has one."""
        if protocol in self._handlers:
            raise LocalProtocolError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    def serves(self, protocol: str) -> bool:
        return protocol in self._handlers

    @property
    def protocols(self) -> frozenset[str]:
        return frozenset(self._handlers)

    async def run(self, protocol: str, stream: FrameStream) -> None:
        """Run the protocol's handler on an inbound stream, which is closed at its end."""
        log = self._log.bind(peer=stream.peer, protocol=protocol)
        try:
            await self._handlers[protocol](stream)
        except RemoteError as error:
            await stream.reset()
            blamed = PeerId(error.peer) if error.peer else stream.peer
            self._lower(blamed, error)
            log.info("stream_failed", error=error.message, blamed=blamed)
        except WireError as error:
            await stream.reset()
            self._blame(stream.peer, PeerFault.PROTOCOL.value, error.message)
            log.info("stream_failed", error=error.message, blamed=stream.peer)
        except Exception:
            # A bug in a handler is ours: it costs this stream, not the host and not the peer's standing.
            await stream.reset()
            log.exception("handler_failed")
        finally:
            await stream.close()

    def _lower(self, peer: PeerId, error: RemoteError) -> None:
        if isinstance(error, RemoteProtocolError):
            self._blame(peer, PeerFault.PROTOCOL.value, error.message)
        elif isinstance(error, PeerTimeout):
            self._blame(peer, PeerFault.NO_ANSWER.value, error.message)
