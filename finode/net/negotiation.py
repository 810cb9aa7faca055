"""multistream-select on one stream: both ends agree on a protocol [libp2p connections spec, "Protocol negotiation"].

    each side first sends   <varint length> /multistream/1.0.0 \\n
    opener                  <varint length> PROTOCOL \\n
    listener                the same line back, or  na \\n

The opener sends its two lines at once, so opening a stream costs one round trip. libp2p's own negotiation reads byte
by byte, with a window update for each, and a line that is not UTF-8 escapes it as an exception that ends the host.
"""

from __future__ import annotations

from collections.abc import Container

from finode.net.stream import Pipe

MULTISTREAM = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
MAX_LINE = 256
"""Bytes of a line; protocol ids are far shorter."""
MAX_TRIES = 16
"""Protocols that an opener may ask for before the stream is reset."""


class NegotiationError(Exception):
    """The peer does not follow multistream-select."""


class NotAvailable(NegotiationError):
    """The peer does not serve the protocol, or not to us."""


def line(text: str) -> bytes:
    """Return a line with its length in front."""
    data = text.encode() + b"\n"
    head = bytearray()
    size = len(data)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data


class LineReader:
    """Reads lines from a pipe, and keeps what it read too many."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._buffer = bytearray()

    @property
    def unread(self) -> bytearray:
        return self._buffer

    async def next(self) -> str:
        """Return the next line; raise `NegotiationError` when there is none or it is malformed."""
        size = shift = 0
        while True:
            byte = await self._byte()
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 14:
                raise NegotiationError("a line's length is too long")
        if not 1 <= size <= MAX_LINE:
            raise NegotiationError(f"a line of {size} bytes")
        while len(self._buffer) < size:
            await self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise NegotiationError("a line that is not UTF-8") from None
        if not text.endswith("\n"):
            raise NegotiationError("a line without its end")
        return text[:-1]

    async def _byte(self) -> int:
        while not self._buffer:
            await self._more()
        return self._buffer.pop(0)

    async def _more(self) -> None:
        data = await self._pipe.read()
        if not data:
            raise NegotiationError("the stream ended")
        self._buffer += data


async def ask(pipe: Pipe, protocol: str) -> bytearray:
    """Ask for `protocol` and return bytes that came after the answer.

    Raises `NotAvailable` when the peer says no, `NegotiationError` or `PipeError` when it says nothing sensible.
    """
    await pipe.write(line(MULTISTREAM) + line(protocol))
    reader = LineReader(pipe)
    greeting = await reader.next()
    if greeting != MULTISTREAM:
        raise NegotiationError(f"the peer greets with {greeting!r}")
    answer = await reader.next()
    if answer == NOT_AVAILABLE:
        raise NotAvailable(f"the peer does not serve {protocol} to us")
    if answer != protocol:
        raise NegotiationError(f"the peer answers {answer!r} to {protocol}")
    return reader.unread


async def answer(pipe: Pipe, protocols: Container[str]) -> tuple[str, bytearray]:
    """Serve the listener's side; return the protocol agreed on and bytes that came after it.

    Raises `NegotiationError` or `PipeError`.
    """
    await pipe.write(line(MULTISTREAM))
    reader = LineReader(pipe)
    greeting = await reader.next()
    if greeting != MULTISTREAM:
        raise NegotiationError(f"the peer greets with {greeting!r}")
    for _ in range(MAX_TRIES):
        wanted = await reader.next()
        if wanted in protocols:
            await pipe.write(line(wanted))
            return wanted, reader.unread
        await pipe.write(line(NOT_AVAILABLE))
    raise NegotiationError(f"the peer asked for {MAX_TRIES} protocols that are not served")
