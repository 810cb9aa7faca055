"""Moves one run of the engine: frames from the worker to the lanes, frames from the inbox to the worker.

What follows a run (`RunOutcome.more`) stays in its worker only if the caller asks for it, by `keep_rest`, and takes it
later by `rest` or gives it up by `abandon`; else it is dropped as the run finishes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from finode.errors import RemoteProtocolError
from finode.identity import PeerId
from finode.node.channel import Buffer, Envelope
from finode.node.inbox import Inbox
from finode.node.lanes import Lane, transfer_timeout_s
from finode.node.pool import WorkerProcess
from finode.node.tasks import together
from finode.wire.session import ROUND_HEADER

STEP_TIMEOUT_S = 60.0
"""Longest computation between two rounds. The other parties wait for less; this one ends a worker that is frozen."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run: the engine's value as parts, and what it cost on this side."""

    parts: tuple[Buffer, ...]
    rounds: int
    bytes_sent: int
    compute_s: float
    prepare_s: float = 0.0
    """Of the bundle's preparation, as far as it was left to the run."""
    transcript: bytes = field(default=b"", repr=False)
    """The engine's digest of all that was opened: to be hashed under a key of the parties before it leaves."""
    more: bool = False
    """Whether something follows, on the same bundle, and waits for `RunDriver.rest`."""


@dataclass(slots=True)
class RunDriver:
    """One run at one party. `first_round` is added to the engine's round numbers on the lanes. `on_round` is told which
    round begins, and the bytes sent in those before it."""

    run: bytes
    worker: WorkerProcess
    lanes: Mapping[int, Lane]
    inbox: Inbox
    parties: Sequence[PeerId]
    round_timeout_s: float
    on_round: Callable[[int, int], None]
    first_round: int = 0
    frame_bytes: int = 0

    async def exchange(self, round: int, frames: Mapping[int, Buffer], expected_bytes: int) -> dict[int, Buffer]:
        """Send one frame to each other party and return theirs."""
        self.frame_bytes += sum(ROUND_HEADER.size + len(frame) for frame in frames.values())
        queued = {party for party, frame in frames.items() if self.lanes[party].queue_round(self.run, round, frame)}
        if len(queued) == len(frames):
            timeout_s = transfer_timeout_s(expected_bytes, self.round_timeout_s)
            return await self.inbox.gather(round, expected_bytes, timeout_s)
        gathered: dict[int, Buffer] = {}

        async def gather() -> None:
            timeout_s = transfer_timeout_s(expected_bytes, self.round_timeout_s)
            gathered.update(await self.inbox.gather(round, expected_bytes, timeout_s))

        async def send(party: int, frame: Buffer) -> None:
            await self.lanes[party].send_round(self.run, round, frame)

        # Waiting begins before sending ends: with a full window both sides must read to make room.
        calls: list[Callable[[], Awaitable[None]]] = [
            gather,
            *(partial(send, party, frame) for party, frame in frames.items() if party not in queued),
        ]
        await together(calls)
        return gathered

    async def drive(self, header: dict[str, Any], parts: Sequence[Buffer], *, keep_rest: bool = False) -> RunOutcome:
        """Start the run at the worker with a request and move it to its end.

        Raises `VerdictReached`, a `RemoteError` with the peer, or `WorkerDied`. The run is dropped at the worker then.
        With `keep_rest` what follows it waits there for `rest` or `abandon`: the caller must do one of them.
        """
        before = self.frame_bytes
        try:
            reply = await self._request({"run": self.run, **header}, parts)
            prepare_s = reply.header.get("prepare_s", 0.0)
            while reply.header["state"] == "exchange":
                round = self.first_round + reply.header["round"]
                self.on_round(round, self.frame_bytes)
                frames = dict(zip(reply.header["parties"], reply.parts, strict=True))
                theirs = await self.exchange(round, frames, reply.header["expected_bytes"])
                request = {"kind": "resume", "run": self.run, "parties": list(theirs)}
                reply = await self._request(request, list(theirs.values()))
        except BaseException:
            await self.abandon()
            raise
        summary = reply.header
        if summary["more"] and not keep_rest:
            await self.abandon()
        return RunOutcome(
            reply.parts,
            summary["rounds"],
            self.frame_bytes - before,
            summary["compute_s"],
            prepare_s,
            summary["transcript"],
            summary["more"] and keep_rest,
        )

    async def rest(self) -> RunOutcome:
        """Move what follows a finished run to its end, in further rounds of the same lanes; as `drive`.

        Its parts are those of an `engine.StatisticsShare`: sums and ballots.
        """
        return await self.drive({"kind": "rest"}, ())

    async def abandon(self) -> None:
        """Drop the run at its worker, and what would follow it."""
        with trio.CancelScope(shield=True):
            await self._drop()

    async def _request(self, header: dict[str, Any], parts: Sequence[Buffer]) -> Envelope:
        try:
            return await self.worker.request(header, parts, timeout_s=STEP_TIMEOUT_S)
        except RemoteProtocolError as error:
            if error.peer.isdigit():  # the engine knows parties by their index alone
                raise RemoteProtocolError(error.message, peer=self.parties[int(error.peer)]) from None
            raise

    async def _drop(self) -> None:
        with trio.move_on_after(1.0):
            if not self.worker.dead:
                await self.worker.post({"kind": "drop", "run": self.run})


def feedback_request(
    engine: str,
    program: bytes,
    party_index: int,
    count: int,
    ballots: Buffer,
    label_share: Buffer,
    zero_keys: Mapping[int, bytes],
) -> tuple[dict[str, Any], list[Buffer]]:
    """Return the request, header and parts, to count the votes of an earlier session that fit its labels.

    `program` is the session's, encoded. The ballots must never be used again, whatever comes of it. The outcome's part
    is the counts' share.
    """
    header = {
        "kind": "feedback",
        "engine": engine,
        "program": program,
        "party_index": party_index,
        "count": count,
        "zero_parties": list(zero_keys),
    }
    return header, [ballots, label_share, *zero_keys.values()]
