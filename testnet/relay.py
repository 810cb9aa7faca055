"""The process that stands for the network: a TCP relay between every two nodes of a testnet.

    python -m finode.testnet.relay PLAN STATE

PLAN is JSON: {"routes": [{"source", "target", "port", "rtt_ms", "mbit"}, ...]}, one entry for each directed pair. For
each the relay listens on a free port of 127.0.0.1, and what connects there is joined with the target's own `port`
through two pipes (`shaping`). When all are open it writes STATE: {"control": PORT, "ports": [...]}, in PLAN's order.

On the control port one JSON line is answered with one: {"do": "traffic"} with the bytes of each directed pair, and
{"do": "link", "routes": [...]} gives pairs other links from now on.

It is one loop on epoll and one timer. Links of 0.3 ms need times of a few microseconds, and epoll's own time-out is in
whole milliseconds; so the timer is a timerfd. That is also why it is a process of its own: neither a node's load nor
Python's lock then adds to the link.

A connection takes a round trip to come about, as with TCP: whoever dials may send after one, and the target sees it
after one and a half.
"""

from __future__ import annotations

import ctypes
import gc
import heapq
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from finode.testnet.links import Link
from finode.testnet.shaping import Pipe, Window

HOST: Final = "127.0.0.1"
MAX_LINE: Final = 1 << 20
RECEIVE_BUFFER: Final = 512 * 1024
"""What lies in it is not on the link yet, as in a host's own send buffer. Without a bound the kernel grows it to tens
of megabytes, and a sender would believe them sent."""
MAX_FILES: Final = 16_384
READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT


class Timer:
    """A timerfd: readable at a time, to the nanosecond, which epoll's time-out is not. Python has it from 3.13 on."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = int(self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._value = (ctypes.c_long * 4)()  # struct itimerspec: interval and value, each in seconds and nanoseconds
        self._armed: float | None = None

    def set(self, when: float | None) -> None:
        """Fire at `when` on the monotonic clock; never, if None."""
        if when == self._armed:
            return
        self._armed = when
        # A value of zero would disarm it; a time that has passed fires at once.
        nanoseconds = 0 if when is None else max(1, round(when * 1e9))
        self._value[2], self._value[3] = divmod(nanoseconds, 1_000_000_000)
        if self._libc.timerfd_settime(self.fd, 1, self._value, None):  # 1: an absolute time
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def fired(self) -> None:
        self._armed = None


class Loop:
    """Sockets, and calls that are due at a time."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self.stopped = False
        self._epoll = select.epoll()
        self._timer = Timer()
        # Edge-triggered: setting it anew clears it, so that nobody need read it.
        self._epoll.register(self._timer.fd, READ | select.EPOLLET)
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._wanted: dict[int, int] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), call))

    def add(self, file: socket.socket, handler: Callable[[int], None]) -> None:
        """Have `handler` told of a socket's events, once some are wanted."""
        self._handlers[file.fileno()] = handler
        self._wanted[file.fileno()] = 0

    def want(self, file: socket.socket, events: int, on: bool = True) -> None:
        """Wait for these events of a socket, or no longer."""
        fd = file.fileno()
        before = self._wanted[fd]
        after = self._wanted[fd] = before | events if on else before & ~events
        if not before and after:
            self._epoll.register(fd, after)
        elif before and not after:
            # Taken out, for epoll reports a hang-up even to those who want nothing, again and again.
            self._epoll.unregister(fd)
        elif before != after:
            self._epoll.modify(fd, after)

    def forget(self, file: socket.socket) -> None:
        fd = file.fileno()
        if self._handlers.pop(fd, None) is not None and self._wanted.pop(fd):
            self._epoll.unregister(fd)

    def run(self) -> None:
        """Serve until `stopped`."""
        due, clock = self._due, self.clock
        while not self.stopped:
            while due and due[0][0] <= clock():
                heapq.heappop(due)[2]()
            self._timer.set(due[0][0] if due else None)
            for fd, events in self._epoll.poll():
                if fd == self._timer.fd:
                    self._timer.fired()
                elif (handler := self._handlers.get(fd)) is not None:
                    handler(events)


class Stretch:
    """One direction of one connection: from a socket, over a pipe, into another socket.

    `back` is the pipe of the other direction, which acknowledgements take; `on_end` is told when all of it has arrived
    (False) or a socket is broken (True).
    """

    def __init__(
        self,
        loop: Loop,
        pipe: Pipe,
        back: Pipe,
        source: socket.socket,
        target: socket.socket,
        on_end: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._pipe = pipe
        self._back = back
        self._window = Window()
        self._source = source
        self._target = target
        self._on_end = on_end
        self._moving: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0
        self._is_waiting = False
        self.is_blocked = False
        self.is_over = False

    def readable(self) -> None:
        """Take what the source has, as far as the window allows."""
        now = self._loop.clock()
        self._window.hear(now)
        room = min(self._window.room(now), self._pipe.chunk)
        if not room:
            self._loop.want(self._source, READ, False)
            self._is_waiting = True
            self._wait_for_room()
            return
        try:
            data = self._source.recv(room)
        except BlockingIOError:
            return
        except OSError:
            self._on_end(True)
            return
        if data:
            self._window.sent(len(data), now, self._pipe.link.delay_s + self._back.link.delay_s)
            due = self._pipe.carry(len(data), now)
        else:
            self._loop.want(self._source, READ, False)
            due = now + self._pipe.link.delay_s
        # A link that has just become shorter does not let bytes overtake others.
        self._last_due = max(self._last_due, due)
        self._moving.append((self._last_due, data))
        self._loop.call_at(self._last_due, self.deliver)

    def deliver(self) -> None:
        """Give the target what has arrived, as far as it takes it."""
        now = self._loop.clock()
        while self._moving and self._moving[0][0] <= now and not (self.is_blocked or self.is_over):
            due, data = self._moving[0]
            try:
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    self.is_over = True
                    self._on_end(False)
                    return
                written = self._target.send(data)
            except BlockingIOError:
                written = 0
            except OSError:
                self._on_end(True)
                return
            if written:
                self._window.arrived(written, now + self._back.link.delay_s)
                if self._is_waiting:
                    self._wait_for_room()
            if written == len(data):
                self._moving.popleft()
            else:
                self._moving[0] = (due, data[written:])
                self.is_blocked = True
                self._loop.want(self._target, WRITE)

    def writable(self) -> None:
        """Go on after the target took no more."""
        self._loop.want(self._target, WRITE, False)
        self.is_blocked = False
        self.deliver()

    def _wait_for_room(self) -> None:
        # Acknowledgements are looked at only when somebody waits for them: a timer for each would double the wake-ups.
        if (when := self._window.room_at()) is not None:
            self._loop.call_at(when, self._look_for_room)

    def _look_for_room(self) -> None:
        if self.is_over or not self._is_waiting:
            return
        now = self._loop.clock()
        self._window.hear(now)
        if self._window.room(now):
            self._is_waiting = False
            self._loop.want(self._source, READ)
        else:
            self._wait_for_room()


class Connection:
    """A node that dialed, and the target that it dialed: two sockets, two stretches."""

    def __init__(self, loop: Loop, dialed: socket.socket, port: int, there: Pipe, back: Pipe) -> None:
        self._loop = loop
        self._near = dialed
        self._far = socket.socket()
        self._port = port
        self._is_closed = False
        _tune(self._near)
        _tune(self._far)
        self._there = Stretch(loop, there, back, self._near, self._far, self._on_end)
        self._back = Stretch(loop, back, there, self._far, self._near, self._on_end)
        loop.add(self._near, partial(self._handle, self._there, self._back))
        sent = loop.clock()
        round_trip = there.link.delay_s + back.link.delay_s
        loop.call_at(sent + round_trip, self._open)
        # Never before `_open`, whose bytes would find no socket to go to.
        loop.call_at(sent + round_trip + there.link.delay_s, self._reach)

    def _open(self) -> None:
        if not self._is_closed:
            self._loop.want(self._near, READ)

    def _reach(self) -> None:
        if self._is_closed:
            return
        try:
            self._far.connect((HOST, self._port))  # on loopback this is done or refused at once
        except OSError:
            self.close()
            return
        self._far.setblocking(False)
        self._loop.add(self._far, partial(self._handle, self._back, self._there))
        self._loop.want(self._far, READ)

    def _handle(self, outgoing: Stretch, incoming: Stretch, events: int) -> None:
        """Serve the events of the socket that is the source of `outgoing` and the target of `incoming`."""
        if events & ~READ and incoming.is_blocked:
            incoming.writable()
        if events & ~WRITE and not self._is_closed:
            outgoing.readable()

    def _on_end(self, is_broken: bool) -> None:
        if is_broken or (self._there.is_over and self._back.is_over):
            self.close()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._there.is_over = self._back.is_over = True
        for file in (self._near, self._far):
            self._loop.forget(file)
            file.close()


class Relay:
    """All routes of a plan, and the control port."""

    def __init__(self, loop: Loop, routes: Sequence[dict[str, Any]]) -> None:
        self._loop = loop
        self._pipes = {(route["source"], route["target"]): Pipe(_link(route)) for route in routes}
        self.ports = tuple(
            self._listen(partial(self._dialed, route["source"], route["target"], int(route["port"])))
            for route in routes
        )
        self.control = self._listen(self._asked)

    def _listen(self, on_accept: Callable[[socket.socket], None]) -> int:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        listener.bind((HOST, 0))
        listener.listen(128)
        listener.setblocking(False)

        def accept(_: int) -> None:
            with suppress(BlockingIOError, ConnectionAbortedError):
                on_accept(listener.accept()[0])

        self._loop.add(listener, accept)
        self._loop.want(listener, READ)
        return int(listener.getsockname()[1])

    def _dialed(self, source: str, target: str, port: int, file: socket.socket) -> None:
        file.setblocking(False)
        Connection(self._loop, file, port, self._pipes[source, target], self._pipes[target, source])

    def _asked(self, file: socket.socket) -> None:
        file.setblocking(False)
        received = bytearray()

        def read(_: int) -> None:
            try:
                data = file.recv(MAX_LINE)
            except OSError:
                data = b""
            received.extend(data)
            if data and not received.endswith(b"\n") and len(received) < MAX_LINE:
                return
            self._loop.forget(file)
            with suppress(OSError, ValueError, KeyError, TypeError):
                file.setblocking(True)
                file.sendall(json.dumps(self.answer(json.loads(received))).encode() + b"\n")
            file.close()

        self._loop.add(file, read)
        self._loop.want(file, READ)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a line on the control port says."""
        match request["do"]:
            case "link":
                for route in request["routes"]:
                    self._pipes[route["source"], route["target"]].link = _link(route)
                return {}
            case "traffic":
                carried = [
                    {"source": source, "target": target, "bytes": pipe.carried}
                    for (source, target), pipe in self._pipes.items()
                ]
                return {"traffic": carried}
        raise ValueError(f"unknown request {request['do']!r}")


def _link(route: dict[str, Any]) -> Link:
    return Link(float(route["rtt_ms"]), float(route["mbit"]))


def _tune(file: socket.socket) -> None:
    file.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    file.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def main(plan: Path, state: Path) -> None:
    """Serve a plan until SIGINT or SIGTERM."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # 32 nodes have 992 routes
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))
    gc.disable()  # a pause of the collector would be a pause of every link, and nothing here is in cycles for long
    loop = Loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    relay = Relay(loop, json.loads(plan.read_bytes())["routes"])
    partial_state = state.with_suffix(".partial")
    partial_state.write_text(json.dumps({"control": relay.control, "ports": relay.ports}), encoding="utf-8")
    partial_state.replace(state)
    loop.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
