"""The querier's talk with the members of a sealed committee: one stream each, one question, one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import trio

from finode.config import Config
from finode.errors import FinodeError, LocalProtocolError, RemoteError, RemoteProtocolError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.verdicts import VerdictReached, verdict_of
from finode.wire import shares
from finode.wire.shares import (
    Failed,
    Fault,
    HandOut,
    Meter,
    Phase,
    Prepare,
    Prepared,
    SessionProgress,
    SessionResult,
    StartSession,
    Verdict,
)

NOBODYS = frozenset({Fault.TIMEOUT, Fault.NOT_SEALED})
"""Faults that need no culprit: a session took longer than its terms allow, or its committee ended."""
GOODBYE_TIMEOUT_S = 1.0
"""Telling a member why its session ends must not hold up the next attempt."""
Tell = Callable[..., Awaitable[None]]


@dataclass(slots=True)
class Story:
    """Why a session ends early: what the first member that failed says, told to all others.

    `round` is the latest that was heard of, so that the querier's own observation says when it was.
    """

    own: PeerId
    members: frozenset[PeerId]
    verdict: Verdict | None = None
    round: int = -1

    def because(self, error: BaseException) -> Verdict:
        """Return the session's verdict after `error`; the first error of a member decides."""
        if self.verdict is None and isinstance(error, FinodeError):
            self.verdict = verdict_of(error, self.own, self.round)
        return self.verdict or Verdict(culprit=self.own, round=self.round, fault=Fault.CANCELLED)

    def told(self, teller: PeerId, verdict: Verdict) -> VerdictReached:
        """Return a member's verdict as an error. One that names this node, or no member, is the teller's own fault:
        a member must not shift blame to whom it likes."""
        if verdict.culprit not in ("", *self.members) or (not verdict.culprit and verdict.fault not in NOBODYS):
            verdict = replace(verdict, culprit=teller)
        return VerdictReached(verdict)


class Members:
    """Asks members. A member that fails raises `VerdictReached` with its verdict, or a `RemoteError` naming it."""

    def __init__(self, network: Network, config: Config) -> None:
        self._network = network
        self._config = config

    async def order(self, peer: PeerId, message: HandOut | Prepare, story: Story) -> Prepared:
        """Have an owner hand out its shares, or a party prepare its seat, and wait until it has."""
        async with self._asking(peer, shares.PROTOCOL, message.committee, story) as stream:
            await stream.send(message)
            reply = await stream.receive(Prepared, Failed, timeout_s=2 * self._config.session.deploy_timeout_s)
            if isinstance(reply, Failed):
                raise story.told(peer, reply.verdict)
            if not isinstance(reply, Prepared) or reply.committee != message.committee:
                raise RemoteProtocolError(f"{peer} answered about another committee", peer=peer)
            return reply

    async def compute(
        self,
        peer: PeerId,
        start: StartSession,
        piece: Callable[[], Awaitable[bytes]],
        output_bytes: int,
        tell: Tell,
        story: Story,
    ) -> tuple[bytearray, Meter]:
        """Give one party its share of the input and return its share of the output."""
        async with self._asking(peer, shares.PROTOCOL, start.session, story) as stream:
            await stream.send(start)
            await stream.send_bulk(await piece())
            result = await self._follow(stream, start, tell, story)
            if result.output_bytes != output_bytes:
                raise RemoteProtocolError(
                    f"{peer} announces an output share of {result.output_bytes} bytes, {output_bytes} are due",
                    peer=peer,
                )
            timeout_s = self._config.session.round_timeout_s
            return await stream.receive_bulk(output_bytes, timeout_s=timeout_s), result.meter

    @asynccontextmanager
    async def _asking(self, peer: PeerId, protocol: str, subject: bytes, story: Story) -> AsyncIterator[Stream]:
        """Open a stream to a member; when the body fails, tell the member with which verdict."""
        try:
            stream = await self._network.open(peer, protocol, timeout_s=self._config.session.answer_timeout_s)
        except RemoteError as error:
            story.because(error)
            raise
        try:
            yield stream
        except BaseException as error:
            verdict = story.because(error)
            closed = suppress(RemoteError, LocalProtocolError)
            with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_TIMEOUT_S), closed:
                await stream.send(Failed(subject=subject, verdict=verdict))
            raise
        finally:
            await stream.close()

    async def _follow(self, stream: Stream, start: StartSession, tell: Tell, story: Story) -> SessionResult:
        session_s = self._config.querier.deadline_s
        while True:
            message = await stream.receive(SessionProgress, SessionResult, Failed, timeout_s=session_s)
            match message:
                case Failed(verdict=verdict):
                    raise story.told(stream.peer, verdict)
                case SessionResult() if message.session == start.session:
                    return message
                case SessionProgress() if message.session == start.session:
                    story.round = message.done if message.phase is Phase.ROUNDS else -1
                    await tell(message.phase, message.done, message.total)
                case _:
                    raise RemoteProtocolError(f"{stream.peer} answered about another session", peer=stream.peer)
