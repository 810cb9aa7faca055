"""Work that lasts only as long as the peer that asked for it stays on its stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from finode.errors import PeerUnreachable
from finode.net.interface import Stream
from finode.node.tasks import together
from finode.node.verdicts import VerdictReached
from finode.wire.shares import Failed, Fault, Verdict

T = TypeVar("T")


async def while_asked(stream: Stream, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work` and return its result; end it when the peer closes the stream or sends a verdict.

    Raises `VerdictReached` then: with the peer's verdict, or that it cancelled.
    """
    results: list[T] = []
    watching = trio.CancelScope()

    async def watch() -> None:
        with watching:
            await _until_told_otherwise(stream)

    async def do() -> None:
        try:
            results.append(await work())
        finally:
            watching.cancel()

    calls: list[Callable[[], Awaitable[None]]] = [watch, do]
    await together(calls)
    return results[0]


async def _until_told_otherwise(stream: Stream) -> None:
    try:
        message = await stream.receive_frame(Failed, raw_limit=0, timeout_s=None)
    except PeerUnreachable as error:
        cancelled = Verdict(culprit=stream.peer, round=-1, fault=Fault.CANCELLED, detail=error.message[:1024])
        raise VerdictReached(cancelled) from None
    if isinstance(message, Failed):
        raise VerdictReached(message.verdict)
