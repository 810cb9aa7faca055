"""What the layers above see of the network: streams of frames, a way to open and to serve them, and the directory.

Nothing here is libp2p: `host.py` implements it on libp2p, `memory.py` in one process for tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from finode.identity import PeerId
from finode.wire.directory import NodeRecord
from finode.wire.message import KIB, Message

M = TypeVar("M", bound=Message)
Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """A framed stream to one authenticated peer.

    Every wait has a deadline. When the peer's connection is lost, or its heartbeats stop, every pending call raises
    `PeerUnreachable` at once. All errors are `RemoteError`s that carry the peer, and the stream is reset after any.
    One task may send while another receives; two tasks must not receive at once. Sends are serialised.
    """

    @property
    def peer(self) -> PeerId: ...

    async def send(self, message: Message, *, timeout_s: float = ...) -> None:
        """Send one message."""

    async def send_raw(self, data: Buffer, *, timeout_s: float = ...) -> None:
        """Send one raw frame, without a copy where possible."""

    async def send_bulk(self, data: Buffer, *, timeout_s: float = ...) -> None:
        """Send `data` as raw frames of at most `CHUNK_BYTES`, paced so that rounds on other streams to the peer are
        not starved."""

    async def receive(self, *types: type[M], timeout_s: float) -> M:
        """Receive one message of one of `types`; the size limit of the announced type is checked before its bytes are
        read. Raises `RemoteProtocolError` for anything else, `PeerTimeout`, `PeerUnreachable`."""

    async def receive_raw(self, limit: int, *, timeout_s: float) -> bytearray:
        """Receive one raw frame of at most `limit` bytes."""

    async def receive_bulk(self, size: int, *, timeout_s: float) -> bytearray:
        """Receive exactly `size` bytes sent by `send_bulk`. `timeout_s` is the longest pause between two frames."""

    async def receive_frame(
        self, *types: type[Message], raw_limit: int, timeout_s: float | None
    ) -> Message | bytearray:
        """Receive whichever comes: a message of one of `types`, or a raw frame. None: wait until the peer is lost."""

    async def close(self) -> None:
        """End the stream; the peer reads an end of file. Never raises."""

    async def reset(self) -> None:
        """Abort the stream. Never raises."""


Handler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. `RemoteError` and `WireError` out of it are logged and cost the peer its standing; any
other exception is logged as a bug; none of them ends the host."""

Validator = Callable[[PeerId, bytes], bool]
"""Judges a gossip message: who passed it on, its payload. False drops it and lowers that peer's gossip score."""
MAX_GOSSIP = 96 * KIB
"""Bytes of a gossip message: a receipt of every size, but not every epoch statement."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """What the network knows of a peer now. `standing` is 0 for a newcomer, negative after faults, at least -100."""

    peer: PeerId
    organization: str
    connected: bool
    rtt_ms: float | None
    standing: float
    record: NodeRecord | None


class Network(Protocol):
    """The node's place in the federation."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses announced to others, without /p2p/..."""

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        """Open a stream, dialing the peer if need be. Raises `PeerUnreachable`, `PeerTimeout`, `PeerRefused` (not on
        the roster), `VersionMismatch`. That a peer does not serve the protocol may show at the first receive only."""

    def serve(self, protocol: str, handler: Handler) -> None:
        """Have `handler` serve inbound streams of `protocol`. Only peers that passed hello and roster reach it."""

    def states(self) -> Mapping[PeerId, PeerState]:
        """The peers known: on the roster, in the directory, or connected. Without this node itself."""

    def records(self) -> Mapping[PeerId, NodeRecord]:
        """The directory: every peer's current record, this node's own included."""

    def organization_of(self, peer: PeerId) -> str:
        """The organization of a peer: what the roster says, or its record when trust is open; "" if unknown."""

    def accepts(self, peer: PeerId) -> bool:
        """Whether the roster accepts the peer (always, when trust is open)."""

    def fault(self, peer: PeerId, points: float, reason: str) -> None:
        """Lower a peer's standing by `points`."""

    def standing(self, peer: PeerId) -> float:
        """A peer's standing now."""

    def condemn(self, peer: PeerId, reason: str) -> None:
        """Give a peer the lowest standing for good: there is a proof against it."""

    def on_link(self, callback: Callable[[PeerId], None]) -> None:
        """Have `callback` called with each peer that is connected from now on."""

    def subscribe(self, topic: str, validate: Validator) -> None:
        """Take part in a gossip topic: `validate` judges each message that comes."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip a message of at most `MAX_GOSSIP` bytes; it may be lost, and so may not be the only way to tell."""

    def announce(self) -> None:
        """Publish a new record soon: what this node offers has changed."""
