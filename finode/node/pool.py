"""The daemon's worker processes: started before the first query, replaced when one dies.

A session is bound to one worker for its life. When a worker dies, every request to it raises `WorkerDied`, which ends
that worker's sessions and no others; a new one takes its place. A worker that says at its start why it cannot compute
(there is no GPU) is not replaced, as the next one could not either: with its reason the pool ends, and so the node.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from finode.errors import FinodeError, LocalError, RemoteProtocolError, WorkerDied, error_class
from finode.node.allocation import worker_environment
from finode.node.channel import AsyncChannel, Buffer, Envelope

WARM_TIMEOUT_S = 60.0
"""Importing torch takes 2 to 10 s, on a cold disk longer."""
REQUEST_TIMEOUT_S = 60.0
END_TIMEOUT_S = 0.5
"""A worker that is not computing ends at once; the daemon has 3 s in all."""
RESTART_PAUSE_S = 1.0
"""A worker that dies at its start must not be restarted in a tight loop."""


class WorkerProcess:
    """One worker as the daemon sees it."""

    def __init__(self, process: trio.Process, channel: AsyncChannel) -> None:
        self._process = process
        self._channel = channel
        self._ids = itertools.count(1)
        self._waiting: dict[int, trio.Event] = {}
        self._replies: dict[int, Envelope] = {}
        self.warm = trio.Event()
        self.died = trio.Event()
        self.dead = False
        self.refusal: FinodeError | None = None
        """Why it cannot compute at all, as it said at its start."""
        self.sessions = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count one more session on this worker."""
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    async def request(
        self, header: dict[str, Any], parts: Sequence[Buffer] = (), *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> Envelope:
        """Send one request and return its reply.

        Raises `WorkerDied`, or the error that the worker's reply carries. A worker that does not answer in time is
        killed: it is frozen, and its other sessions with it.
        """
        number = next(self._ids)
        event = self._waiting[number] = trio.Event()
        try:
            if self.dead:
                raise self._died()
            try:
                await self._channel.send(Envelope({"id": number, **header}, tuple(parts)))
            except trio.BrokenResourceError:
                raise self._died() from None
            with trio.move_on_after(timeout_s) as patience:
                await event.wait()
            if patience.cancelled_caught:
                self._process.kill()
                raise WorkerDied(f"worker process {self.pid} did not answer within {timeout_s:.0f} s")
            reply = self._replies.pop(number, None)
        finally:
            self._waiting.pop(number, None)
            self._replies.pop(number, None)
        if reply is None:
            raise self._died()
        if "error" in reply.header:
            raise _error(reply.header)
        return reply

    async def post(self, header: dict[str, Any]) -> None:
        """Send a request whose reply does not matter."""
        await self.feed(header, ())

    async def feed(self, header: dict[str, Any], parts: Sequence[Buffer]) -> None:
        """As `post`, with parts; returns once the worker's socket has taken them."""
        with suppress(trio.BrokenResourceError):
            await self._channel.send(Envelope({"id": next(self._ids), **header}, tuple(parts)))

    async def pump(self) -> None:
        """Route replies to their requests until the worker's end of the channel closes."""
        while (reply := await self._channel.receive()) is not None:
            if reply.header.get("warm"):
                self.warm.set()
            elif reply.header["id"] == 0:
                self.refusal = _error(reply.header)
            elif (event := self._waiting.get(reply.header["id"])) is not None:
                self._replies[reply.header["id"]] = reply
                event.set()
        self.dead = True
        self.died.set()
        for event in self._waiting.values():
            event.set()

    async def end(self) -> None:
        """Close the channel, which ends the worker; kill it if it computes on."""
        self.dead = True
        self.died.set()
        await self._channel.aclose()
        with trio.move_on_after(END_TIMEOUT_S) as patience:
            await self._process.wait()
        if patience.cancelled_caught:
            self._process.kill()
            await self._process.wait()

    def _died(self) -> WorkerDied:
        return WorkerDied(f"worker process {self.pid} ended", hint="its sessions are lost; a new worker is starting")


def _error(header: dict[str, Any]) -> FinodeError:
    cls = error_class(header["error"])
    if cls is RemoteProtocolError:
        return RemoteProtocolError(header["message"], peer=header["peer"], hint=header["hint"])
    return cls(header["message"], hint=header["hint"])


class WorkerPool:
    """A fixed number of workers. `acquire` gives the one with the fewest sessions."""

    def __init__(self, size: int, threads: int, log: FilteringBoundLogger, device: str = "cpu") -> None:
        """`device` is where the workers compute (`[node] device`)."""
        self._size = size
        self._threads = threads
        self._device = device
        self._log = log
        self._refusal: FinodeError | None = None
        self._workers: list[WorkerProcess] = []
        self._changed = trio.Event()

    @property
    def warm(self) -> int:
        """The number of workers that are ready to compute."""
        return sum(worker.warm.is_set() and not worker.dead for worker in self._workers)

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the living workers."""
        return tuple(worker.pid for worker in self._workers if not worker.dead)

    @asynccontextmanager
    async def acquire(self, timeout_s: float = WARM_TIMEOUT_S) -> AsyncIterator[WorkerProcess]:
        """Hold a session's place at the least busy warm worker; wait until there is one.

        Raises `WorkerDied` when there is none within `timeout_s`.
        """
        if self._size == 0:
            raise LocalError("this node has neither the role of a party nor of a dealer: it has no workers")
        worker = await self._least_busy(timeout_s)
        with worker.busy():
            yield worker

    async def _least_busy(self, timeout_s: float) -> WorkerProcess:
        with trio.move_on_after(timeout_s):
            while True:
                ready = [worker for worker in self._workers if worker.warm.is_set() and not worker.dead]
                if ready:
                    return min(ready, key=lambda worker: worker.sessions)
                await self._changed.wait()
        raise WorkerDied(f"no worker process became ready within {timeout_s:.0f} s", hint="see the daemon's log")

    async def serve(self) -> None:
        """Keep the workers alive until cancelled; then end them.

        Raises what a worker says at its start if it cannot compute: a `ConfigError` for a device that is not there.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._size):
                nursery.start_soon(self._keep_one, nursery.cancel_scope)
        if self._refusal is not None:
            raise self._refusal

    async def _keep_one(self, all_of_them: trio.CancelScope) -> None:
        while True:
            worker = await self._start()
            self._workers.append(worker)
            self._log.debug("worker started", pid=worker.pid)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._announce_warm, worker)
                    await worker.pump()
                    nursery.cancel_scope.cancel()
            finally:
                self._workers.remove(worker)
                with trio.CancelScope(shield=True):
                    await worker.end()
            if worker.refusal is not None:
                self._log.error(
                    "worker cannot compute", pid=worker.pid, device=self._device, reason=str(worker.refusal)
                )
                self._refusal = worker.refusal
                all_of_them.cancel()
                return
            self._log.error("worker died; its sessions are lost, a new one starts", pid=worker.pid)
            await trio.sleep(RESTART_PAUSE_S)

    async def _announce_warm(self, worker: WorkerProcess) -> None:
        await worker.warm.wait()
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._log.info("worker warm", pid=worker.pid)

    async def _start(self) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        descriptor = theirs.fileno()
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "finode.node.worker", str(descriptor), str(self._threads), self._device],
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            env=worker_environment(os.environ),
        )
        theirs.close()
        return WorkerProcess(process, AsyncChannel(ours))
