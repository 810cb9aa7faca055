"""The querier's talk with the members of a sealed committee: one stream each, one question, one answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

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
    Prepare,
    Prepared,
    SessionProgress,
    SessionResult,
    StartSession,
    Verdict,
)

GOODBYE_TIMEOUT_S = 1.0
"""Telling a member why its session ends must not hold up the next attempt."""
Tell = Callable[..., Awaitable[None]]


@dataclass(slots=True)
class Story:
    """Why a session ends early: what the first member that failed says, told to all others."""

    verdict: Verdict | None = None

    def because(self, error: BaseException, own: PeerId) -> Verdict:
        """Return the session's verdict after `error`; the first error of a member decides."""
        if self.verdict is None and isinstance(error, FinodeError):
            self.verdict = verdict_of(error, own)
        return self.verdict or Verdict(culprit=own, round=-1, fault=Fault.CANCELLED)


class Members:
    """Asks members. A member that fails raises `VerdictReached` with its verdict, or a `RemoteError` naming it."""

    def __init__(self, network: Network, config: Config) -> None:
        self._network = network
        self._config = config

    async def order(self, peer: PeerId, message: HandOut | Prepare) -> Prepared:
        """Have an owner hand out its shares, or a party prepare its seat, and wait until it has."""
        stream = await self._network.open(peer, shares.PROTOCOL, timeout_s=self._config.session.answer_timeout_s)
        try:
            await stream.send(message)
            reply = await stream.receive(Prepared, Failed, timeout_s=2 * self._config.session.deploy_timeout_s)
        finally:
            await stream.close()
        match reply:
            case Prepared():
                return reply
            case Failed(verdict=verdict):
                raise VerdictReached(verdict)
            case _:
                raise RemoteProtocolError(f"{peer} answered something else", peer=peer)

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
        stream = await self._network.open(peer, shares.PROTOCOL, timeout_s=self._config.session.answer_timeout_s)
        try:
            await stream.send(start)
            await stream.send_bulk(await piece())
            result = await self._follow(stream, start, tell)
            if result.output_bytes != output_bytes:
                raise RemoteProtocolError(
                    f"{peer} announces an output share of {result.output_bytes} bytes, {output_bytes} are due",
                    peer=peer,
                )
            timeout_s = self._config.session.round_timeout_s
            return await stream.receive_bulk(output_bytes, timeout_s=timeout_s), result.meter
        except BaseException as error:
            await self._say_why(stream, start.session, story.because(error, self._network.peer_id))
            raise
        finally:
            await stream.close()

    async def _follow(self, stream: Stream, start: StartSession, tell: Tell) -> SessionResult:
        session_s = self._config.querier.deadline_s
        while True:
            message = await stream.receive(SessionProgress, SessionResult, Failed, timeout_s=session_s)
            match message:
                case Failed(verdict=verdict):
                    raise VerdictReached(verdict)
                case SessionResult() if message.session == start.session:
                    return message
                case SessionProgress() if message.session == start.session:
                    await tell(message.phase, message.done, message.total)
                case _:
                    raise RemoteProtocolError(f"{stream.peer} answered about another session", peer=stream.peer)

    @staticmethod
    async def _say_why(stream: Stream, session: bytes, verdict: Verdict) -> None:
        # LocalProtocolError: what was being sent when the session ended was cut off, and so the stream was reset.
        expected = suppress(RemoteError, LocalProtocolError)
        with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_TIMEOUT_S), expected:
            await stream.send(Failed(subject=session, verdict=verdict))
