"""The bundles of one committee, as its querier knows them: which lie ready at all parties, which are being dealt.

One stream to the dealer, opened with the first bundle that is asked for. What the dealer says on it is read as long as
the committee is used; when the stream ends, no bundle of the committee can be had any more, and `lost` says why.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from finode.config import Config
from finode.errors import FinodeError, PeerTimeout, RemoteProtocolError
from finode.net.interface import Network, Stream
from finode.node.members import Story
from finode.node.verdicts import VerdictReached, verdict_of
from finode.wire.committee import Terms
from finode.wire.preprocessing import PROTOCOL, SERIAL_BYTES, Deal, Dealing, Dealt, Spent
from finode.wire.shares import Failed, Verdict

MAX_AHEAD = 1024
"""Bundles dealt ahead that a querier keeps track of; no dealer keeps as many for one committee."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A bundle for one session: one that lies `ready` at all parties, or one to be asked for."""

    serial: bytes
    batch: int
    ready: Dealt | None
    at_once: bool
    """Whether it lay ready when it was taken."""


class Supply:
    """One committee's bundles. `max_batch` is the most inputs that its parties take in one session; `on_lost` is
    called once, when no more bundles can be had."""

    def __init__(
        self,
        network: Network,
        terms: Terms,
        max_batch: int,
        nursery: trio.Nursery,
        config: Config,
        on_lost: Callable[[], None],
    ) -> None:
        self._network = network
        self.max_batch = max_batch
        self._terms = terms
        self._committee = terms.committee_id()
        self._nursery = nursery
        self._config = config
        self._on_lost = on_lost
        self._story = Story(network.peer_id, frozenset(terms.members()))
        self._opening = trio.Lock()
        self._stream: Stream | None = None
        self._users = 0
        self._retired = False
        self._ready: dict[bytes, Dealt] = {}
        self._coming: dict[bytes, int] = {}
        self._dealt: dict[bytes, Dealt] = {}
        self._refused: dict[bytes, Verdict] = {}
        self._waiting: set[bytes] = set()
        self._changed = trio.Event()
        self.lost: Verdict | None = None

    @property
    def ready(self) -> int:
        """How many bundles lie ready."""
        return len(self._ready)

    async def take(self, batch: int) -> Ticket:
        """Return a bundle for a session of `batch` inputs, and never the same again.

        Where none lies ready but one is being dealt ahead that nobody waits for yet, wait for that.
        """
        coming = next((serial for serial, size in self._coming.items() if size == batch), None)
        if coming is not None and all(dealt.batch != batch for dealt in self._ready.values()):
            del self._coming[coming]
            self._waiting.add(coming)
            try:
                with trio.move_on_after(self._config.session.deal_timeout_s):
                    while coming in self._waiting and coming not in self._dealt and self.lost is None:
                        await self._changed.wait()
            finally:
                self._waiting.discard(coming)
                dealt = self._dealt.pop(coming, None)
            if dealt is not None:
                return Ticket(coming, batch, dealt, at_once=False)
        for serial, dealt in self._ready.items():
            if dealt.batch == batch:
                del self._ready[serial]
                return Ticket(serial, batch, dealt, at_once=True)
        return Ticket(secrets.token_bytes(SERIAL_BYTES), batch, None, at_once=False)

    async def deal(self, ticket: Ticket) -> Dealt:
        """Have the dealer deal a ticket's bundle, and wait until all parties have it.

        Raises `VerdictReached` with the dealer's verdict, or with this node's own when the dealer is lost or late.
        """
        self._waiting.add(ticket.serial)
        try:
            with trio.move_on_after(self._config.session.deal_timeout_s):
                await self._ask(Deal(committee=self._committee, serial=ticket.serial, batch=ticket.batch))
                while ticket.serial not in (*self._dealt, *self._refused) and self.lost is None:
                    await self._changed.wait()
        except FinodeError as error:
            self._lose(verdict_of(error, self._network.peer_id))
        finally:
            self._waiting.discard(ticket.serial)
            dealt = self._dealt.pop(ticket.serial, None)
            verdict = self._refused.pop(ticket.serial, self.lost)
        if dealt is not None:
            return dealt
        if verdict is None:
            late = f"the dealer dealt no bundle within {self._config.session.deal_timeout_s:.0f} s"
            verdict = verdict_of(PeerTimeout(late, peer=self._terms.dealer), self._network.peer_id)
        raise VerdictReached(verdict)

    def give_up(self, ticket: Ticket) -> None:
        """A session ended early: its bundle is never used; have it burned wherever it lies."""
        if self._stream is not None and self.lost is None:
            self._nursery.start_soon(self._say, self._stream, Spent(serial=ticket.serial))

    async def _say(self, stream: Stream, message: Deal | Spent) -> None:
        """Send in a task of its own: a query that is cancelled must not cut a message off, which resets the stream."""
        try:
            await stream.send(message)
        except FinodeError as error:
            self._lose(verdict_of(error, self._network.peer_id))

    async def _ask(self, message: Deal) -> None:
        if self.lost is not None:
            return
        async with self._opening:
            if self._stream is None:
                timeout_s = self._config.session.answer_timeout_s
                self._stream = await self._network.open(self._terms.dealer, PROTOCOL, timeout_s=timeout_s)
                self._nursery.start_soon(self._listen, self._stream)
        self._nursery.start_soon(self._say, self._stream, message)

    async def _listen(self, stream: Stream) -> None:
        try:
            while self.lost is None:
                message = await stream.receive_frame(Dealing, Dealt, Spent, Failed, raw_limit=0, timeout_s=None)
                match message:
                    case Dealt():
                        self._on_dealt(message)
                    case Dealing():
                        self._check_room()
                        self._coming[message.serial] = message.batch
                    case Spent(serial=serial):
                        self._coming.pop(serial, None)
                        self._ready.pop(serial, None)
                        self._waiting.discard(serial)
                        self._wake()
                    case Failed(subject=subject, verdict=verdict):
                        self._on_failed(subject, self._story.told(self._terms.dealer, verdict).verdict)
        except FinodeError as error:
            self._lose(verdict_of(error, self._network.peer_id))
        finally:
            await stream.close()

    def _on_dealt(self, message: Dealt) -> None:
        if len(message.bytes_sent) != len(self._terms.parties):
            raise RemoteProtocolError("the dealer counts other parties than the terms", peer=self._terms.dealer)
        self._coming.pop(message.serial, None)
        if message.serial in self._waiting:
            self._dealt[message.serial] = message
        elif message.ahead:
            self._check_room()
            self._ready[message.serial] = message
        self._wake()

    def _on_failed(self, subject: bytes, verdict: Verdict) -> None:
        """One bundle cannot be dealt, or the pool is closed."""
        if subject == self._committee:
            self._lose(verdict)
        elif subject in self._waiting:
            self._refused[subject] = verdict
            self._wake()

    def _check_room(self) -> None:
        if len(self._ready) + len(self._coming) >= MAX_AHEAD:
            raise RemoteProtocolError("the dealer tells of more bundles than it keeps", peer=self._terms.dealer)

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _lose(self, verdict: Verdict) -> None:
        if self.lost is None:
            self.lost = verdict
            self._ready.clear()
            self._wake()
            self._on_lost()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the stream while a session needs it, though the committee be retired meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """The committee begins no more sessions: end the stream after the last one, so that its bundles are burned."""
        self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and not self._users and self._stream is not None:
            self._nursery.start_soon(self._stream.close)
