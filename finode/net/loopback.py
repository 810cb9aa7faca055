"""Streams from a node to itself: an owner that is also a party gives itself a share the way it gives any other.

libp2p dials no own address. These streams run in memory, through the same framing, limits and handlers.
"""

from __future__ import annotations

import trio

from finode.errors import PeerRefused
from finode.identity import PeerId
from finode.net.interface import Stream
from finode.net.pipe import MemoryPipe
from finode.net.router import Router
from finode.net.stream import FrameStream, Pacer


class Loopback:
    """Opens streams to this node's own handlers."""

    def __init__(self, own: PeerId, router: Router, nursery: trio.Nursery) -> None:
        self._own = own
        self._router = router
        self._nursery = nursery
        self._pacer = Pacer()

    def open(self, protocol: str) -> Stream:
        """Return the near end of a stream whose far end the protocol's handler serves."""
        if not self._router.serves(protocol):
            raise PeerRefused(f"this node does not serve {protocol}", peer=self._own, reason="role-not-offered")
        near, far = MemoryPipe.pair()
        self._nursery.start_soon(self._router.run, protocol, FrameStream(far, self._own, pacer=self._pacer))
        return FrameStream(near, self._own, pacer=self._pacer)
