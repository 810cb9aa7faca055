"""A stream that is used before the peer has said yes: its first message travels right behind the question.

    opener   -> listener   /multistream/1.0.0, PROTOCOL, and whatever is sent
    listener -> opener     /multistream/1.0.0, PROTOCOL, and whatever it answers

Every peer of a federation serves the same protocols, so the answer to the question of multistream-select is known but
for rare cases, and waiting for it would cost a round trip for each stream. go-libp2p does the same where it asks for
one protocol only ("lazy" negotiation). The answer is checked before anything else that the peer sends is believed;
what was sent to a peer that says no, it drops with the stream.

Whoever opens a stream so does not learn from opening it that the peer is alive: `Connections` does it only on links on
which the peer was heard a moment ago.
"""

from __future__ import annotations

from finode.net.interface import Buffer
from finode.net.negotiation import MULTISTREAM, NOT_AVAILABLE, line
from finode.net.stream import NotServed, Pipe, PipeError


class EarlyPipe:
    """A `Pipe` over another one, of which `protocol` has been asked and not answered. `ask` makes it."""

    def __init__(self, pipe: Pipe, protocol: str) -> None:
        self._pipe = pipe
        self._protocol = protocol
        self._answer = bytearray()
        self._is_agreed = False

    @classmethod
    async def ask(cls, pipe: Pipe, protocol: str) -> EarlyPipe:
        """Ask for `protocol` and return at once; raise `PipeError` when the connection is lost."""
        await pipe.write(line(MULTISTREAM) + line(protocol))
        return cls(pipe, protocol)

    async def read(self) -> bytes | bytearray:
        """As `Pipe.read`; the first time, raise `NotServed` or `PipeError` when the peer does not agree."""
        while not self._is_agreed:
            data = await self._pipe.read()
            if not data:
                raise PipeError("it closed the stream without an answer")
            self._answer += data  # kept here, so that a read that is cancelled later on loses nothing
            if (unread := self._rest()) is not None:
                self._is_agreed = True
                self._answer = bytearray()
                if unread:
                    return unread
        return await self._pipe.read()

    def _rest(self) -> bytearray | None:
        """Return what came after the peer's yes, None while it has not said all of it."""
        yes = line(MULTISTREAM) + line(self._protocol)
        no = line(MULTISTREAM) + line(NOT_AVAILABLE)
        if self._answer.startswith(yes):
            return self._answer[len(yes) :]
        if self._answer.startswith(no):
            raise NotServed(f"it does not serve {self._protocol} to us")
        if not any(expected.startswith(self._answer) for expected in (yes, no)):
            raise PipeError(f"it answers {bytes(self._answer[:64])!r} to {self._protocol}")
        return None

    async def write(self, *parts: Buffer) -> None:
        await self._pipe.write(*parts)

    async def close(self) -> None:
        await self._pipe.close()

    async def reset(self) -> None:
        await self._pipe.reset()
