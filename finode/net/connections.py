"""The connections of this node: who is let in, which link a stream goes over, and who is dialed again.

A peer has a link for rounds and everything small, and, once something large goes to or from it, a second one for bulk
(weights, bundles), dialed when it is first wanted. Two connections are two TCP flows and two queues: a frame of a round
never waits behind megabytes, neither in a socket's buffer nor in yamux. Measured between two processes on loopback, 2
cores, a round trip of one byte while 256 MB flow: 0.6 ms (p99 0.8) on two connections, 2.5 ms (p99 7.7) on one with
pacing; 0.36 ms when nothing else flows. Where the second one cannot be had, because the
peer cannot be dialed from here and has not dialed one itself, bulk shares the first, paced.

An inbound stream is served in this order: is its peer accepted, which protocol does it ask for (a stranger is offered
identify alone), has its connection said hello. Inbound streams are limited per connection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import trio
from libp2p.abc import IHost
from libp2p.exceptions import BaseLibp2pError
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from structlog.typing import FilteringBoundLogger

from finode.errors import PeerRefused, PeerUnreachable, RemoteError, VersionMismatch
from finode.identity import PeerId
from finode.net.addresses import AddressBook
from finode.net.dialer import Backoff, Dialer
from finode.net.early import EarlyPipe
from finode.net.hardening import HANDSHAKE_S, close_quietly
from finode.net.links import HELLO_TIMEOUT_S, Heartbeat, Link, hear_hello, keep_alive, say_hello
from finode.net.muxer import MEMBER_BUFFER, StreamPipe
from finode.net.negotiation import NegotiationError, NotAvailable, answer, ask
from finode.net.router import Blame, Router
from finode.net.standing import PeerFault
from finode.net.stream import FrameStream, Pipe, PipeError
from finode.wire import control
from finode.wire.control import Hello

MAX_STREAMS = 128
"""Inbound streams at once of one connection."""
MAX_STRANGER_STREAMS = 4
MAX_LINKS = 4
"""Connections of one peer: two for each purpose, when both sides dial at once."""
BULK_DIAL_S = 2.0
"""Deadline of a second connection: without it the first one serves."""
BULK_RETRY_S = 60.0
"""Pause after a second connection could not be had."""
STRANGER_S = 2.0
"""How long a peer that is not accepted may stay connected: enough to be told so."""
FAREWELL_S = 1.0
"""How long a refused peer has to read why, before its connection is dropped."""
FRESH_HEARTBEATS = 2
"""A peer from which something came within so many heartbeats is not asked whether it will take a stream."""
LOOK_S = 1.0
"""How often peers that should be connected are looked for; also at once when there is news."""


class Connections:
    """All links, and the two ends of opening a stream on them."""

    def __init__(
        self,
        host: IHost,
        *,
        own: PeerId,
        accepts: Callable[[PeerId], bool],
        hello: Hello,
        heartbeat: Heartbeat,
        book: AddressBook,
        dialer: Dialer,
        router: Router,
        blame: Blame,
        nursery: trio.Nursery,
        log: FilteringBoundLogger,
    ) -> None:
        self._host = host
        self._own = own
        self._accepts = accepts
        self._hello = hello
        self._heartbeat = heartbeat
        self._book = book
        self._dialer = dialer
        self._router = router
        self._blame = blame
        self._nursery = nursery
        self._log = log
        self._backoff = Backoff(own)
        self._links: dict[PeerId, list[Link]] = {}
        self._by_connection: dict[SwarmConn, Link] = {}
        self._connection_of: dict[Link, SwarmConn] = {}
        self._greeted: dict[SwarmConn, trio.Event] = {}
        self._inbound: Counter[SwarmConn] = Counter()
        self._dialing: dict[tuple[PeerId, bool], trio.Lock] = {}
        self._no_bulk_before: dict[PeerId, float] = {}
        self._news = trio.Event()
        self.on_link: Callable[[Link], None] = lambda link: None

    # -- what is connected ---------------------------------------------------------------------------------------

    def link(self, peer: PeerId, *, bulk: bool = False) -> Link | None:
        """Return the link for the purpose, if there is one."""
        return next((link for link in self._links.get(peer, ()) if link.bulk is bulk), None)

    def connected(self, peer: PeerId) -> bool:
        return bool(self._links.get(peer))

    def rtt_ms(self, peer: PeerId) -> float | None:
        link = self.link(peer) or self.link(peer, bulk=True)
        return link.rtt_ms if link is not None else None

    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self._links)

    def disconnect(self, peer: PeerId, reason: RemoteError) -> None:
        """End all links to a peer."""
        for link in tuple(self._links.get(peer, ())):
            link.end(reason)
        self._backoff.forget(peer)
        self._book.forget(peer)

    def spawn(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task beside, unless the node is stopping."""
        if not self._nursery.cancel_scope.cancel_called:
            self._nursery.start_soon(task, *args)

    # -- opening -------------------------------------------------------------------------------------------------

    async def link_to(self, peer: PeerId, *, bulk: bool) -> Link:
        """Return a link to the peer, dialing it if need be; for bulk the other link serves when there is no other."""
        link = self.link(peer, bulk=bulk)
        if link is not None:
            return link
        async with self._dialing.setdefault((peer, bulk), trio.Lock()):
            link = self.link(peer, bulk=bulk)
            if link is not None:
                return link
            link = await self._connect_for_bulk(peer) if bulk and self.connected(peer) else None
            if link is None:
                # For bulk, too, the first connection of a peer is one for everything: the second comes when it is up.
                link = self.link(peer) or await self._connect(peer, bulk=False)
                self._backoff.reached(peer)
            return link

    async def _connect_for_bulk(self, peer: PeerId) -> Link | None:
        # A peer behind a firewall cannot be dialed, and every stream would wait to find that out once more.
        if trio.current_time() < self._no_bulk_before.get(peer, 0.0):
            return None
        link: Link | None = None
        with trio.move_on_after(BULK_DIAL_S):
            try:
                link = await self._connect(peer, bulk=True)
            except PeerUnreachable as error:
                self._log.info("no_bulk_connection", peer=peer, error=error.message)
        if link is None:
            self._no_bulk_before[peer] = trio.current_time() + BULK_RETRY_S
        return link

    async def open(self, peer: PeerId, protocol: str, *, bulk: bool) -> FrameStream:
        """Open a stream of the protocol."""
        link = await self.link_to(peer, bulk=bulk)
        try:
            return await self._open_on(link, protocol)
        except PeerUnreachable:
            if link.failure is None:
                raise
        # The link was dead and nobody had noticed yet, as after a peer's restart.
        return await self._open_on(await self.link_to(peer, bulk=bulk), protocol)

    async def _open_on(self, link: Link, protocol: str) -> FrameStream:
        connection = self._connection_of.get(link)
        if connection is None:
            raise PeerUnreachable(f"the connection to {link.peer} was lost", peer=link.peer)
        if trio.current_time() - link.heard <= FRESH_HEARTBEATS * self._heartbeat.interval_s:
            return self._frames(link, await self._ask_early(connection, link.peer, protocol), bytearray())
        pipe, unread = await self._ask(connection, link.peer, protocol)
        pipe.widen()
        return self._frames(link, pipe, unread)

    async def _pipe(self, connection: SwarmConn, peer: PeerId) -> StreamPipe:
        try:
            return StreamPipe(await connection.muxed_conn.open_stream())
        except (BaseLibp2pError, OSError) as error:
            raise PeerUnreachable(f"the connection to {peer} was lost ({error})", peer=peer) from None

    async def _ask_early(self, connection: SwarmConn, peer: PeerId, protocol: str) -> EarlyPipe:
        pipe = await self._pipe(connection, peer)
        pipe.widen()
        try:
            return await EarlyPipe.ask(pipe, protocol)
        except PipeError as error:
            await pipe.reset()
            raise PeerUnreachable(f"{peer} was lost while a stream was opened: {error}", peer=peer) from None
        except BaseException:  # cancelled, too: a stream that nobody holds must not stay open
            with trio.CancelScope(deadline=trio.current_time() + FAREWELL_S, shield=True):
                await pipe.reset()
            raise

    async def _ask(self, connection: SwarmConn, peer: PeerId, protocol: str) -> tuple[StreamPipe, bytearray]:
        pipe = await self._pipe(connection, peer)
        try:
            return pipe, await ask(pipe, protocol)
        except NotAvailable:
            await pipe.reset()
            if protocol != control.PROTOCOL:
                raise PeerRefused(f"{peer} does not serve {protocol}", peer=peer, reason="not-served") from None
            raise PeerRefused(
                f"{peer} serves no finode to this node",
                peer=peer,
                reason="not-on-roster",
                hint=f"this node is not on its roster: `finode peers trust {self._own} --org NAME` there",
            ) from None
        except (NegotiationError, PipeError) as error:
            await pipe.reset()
            raise PeerUnreachable(f"{peer} was lost while a stream was opened: {error}", peer=peer) from None
        except BaseException:  # cancelled, too: a stream that nobody holds must not stay open
            with trio.CancelScope(deadline=trio.current_time() + FAREWELL_S, shield=True):
                await pipe.reset()
            raise

    def _frames(self, link: Link, pipe: Pipe, unread: bytearray) -> FrameStream:
        stream = FrameStream(
            pipe, link.peer, pacer=link.pacer, unread=unread, on_end=link.discard, on_heard=link.has_heard
        )
        link.add(stream)
        return stream

    async def _connect(self, peer: PeerId, *, bulk: bool) -> Link:
        connection = await self._dialer.dial(peer)
        try:
            pipe, unread = await self._ask(connection, peer, control.PROTOCOL)
            # The link exists from here on, so that the control stream ends with it; it counts once hello is said.
            link = self._make_link(peer, connection, bulk=bulk, dialed=True)
            stream = self._frames(link, pipe, unread)
            await say_hello(stream, _with_purpose(self._hello, bulk))
        except BaseException:  # cancelled, too: a connection that is not registered must not stay open
            self.spawn(self._drop, connection)
            raise
        self._register(link, connection)
        self.spawn(keep_alive, link, stream, self._heartbeat)
        return link

    # -- serving -------------------------------------------------------------------------------------------------

    async def serve(self, connection: SwarmConn, stream: NetStream) -> None:
        """Serve an inbound stream to its end."""
        peer = PeerId(str(connection.muxed_conn.peer_id))
        accepted = self._accepts(peer)
        pipe = StreamPipe(stream.muxed_stream)
        if self._inbound[connection] >= (MAX_STREAMS if accepted else MAX_STRANGER_STREAMS):
            self._blame(peer, PeerFault.FLOOD.value, "too many streams at once")
            await pipe.reset()
            return
        self._inbound[connection] += 1
        try:
            with trio.move_on_after(HANDSHAKE_S) as scope:
                protocol, unread = await answer(pipe, self._offered(accepted))
            if scope.cancelled_caught:
                await pipe.reset()
                return
            await self._serve_protocol(protocol, connection, peer, stream, pipe, unread)
        except (NegotiationError, PipeError) as error:
            self._log.info("stream_refused", peer=peer, error=str(error))
            await pipe.reset()
        finally:
            self._inbound[connection] -= 1
            if not self._inbound[connection]:
                del self._inbound[connection]

    def _offered(self, accepted: bool) -> frozenset[str]:
        if not accepted:
            return frozenset({str(IDENTIFY)})
        libp2p = {str(protocol) for protocol in self._host.get_mux().handlers if protocol is not None}
        return self._router.protocols | libp2p | {control.PROTOCOL}

    async def _serve_protocol(
        self,
        protocol: str,
        connection: SwarmConn,
        peer: PeerId,
        stream: NetStream,
        pipe: StreamPipe,
        unread: bytearray,
    ) -> None:
        if protocol == control.PROTOCOL:
            await self._serve_control(connection, peer, pipe, unread)
            return
        link = None if protocol == IDENTIFY else await self._greeted_link(connection)
        if link is None and protocol != IDENTIFY:
            raise NegotiationError("no hello was said on its connection")
        if link is not None and self._router.serves(protocol):
            pipe.widen()
            await self._router.run(protocol, self._frames(link, pipe, unread))
            return
        pipe.unread(unread)
        stream.set_protocol(protocol)
        await self._host.get_mux().handlers[protocol](stream)

    async def _greeted_link(self, connection: SwarmConn) -> Link | None:
        # A peer may open streams as soon as it has our hello, which may be before we have taken note of its own.
        link = self._by_connection.get(connection)
        if link is None:
            with trio.move_on_after(HELLO_TIMEOUT_S):
                await self._greeted.setdefault(connection, trio.Event()).wait()
        return self._by_connection.get(connection)

    async def _serve_control(self, connection: SwarmConn, peer: PeerId, pipe: StreamPipe, unread: bytearray) -> None:
        if connection in self._by_connection or len(self._links.get(peer, ())) >= MAX_LINKS:
            raise NegotiationError("a second hello, or too many connections")
        link = self._make_link(peer, connection, bulk=False, dialed=False)
        stream = self._frames(link, pipe, unread)
        try:
            theirs = await hear_hello(stream, self._hello)
        except RemoteError as error:
            self._log.warning("peer_refused", peer=peer, error=error.message, hint=error.hint)
            if not isinstance(error, VersionMismatch | PeerUnreachable):
                self._blame(peer, PeerFault.BAD_HELLO.value, error.message)
            await stream.close()
            with trio.move_on_after(FAREWELL_S):
                await connection.event_closed.wait()
            await self._drop(connection)
            return
        link.bulk = theirs.bulk
        self._register(link, connection)
        try:
            await stream.send(_with_purpose(self._hello, theirs.bulk), timeout_s=HELLO_TIMEOUT_S)
        except RemoteError as error:
            link.end(error)
            return
        await keep_alive(link, stream, self._heartbeat)

    # -- links coming and going ----------------------------------------------------------------------------------

    def _make_link(self, peer: PeerId, connection: SwarmConn, *, bulk: bool, dialed: bool) -> Link:
        link = Link(peer, bulk=bulk, dialed=dialed, drop=lambda: self._ended(link, connection))
        return link

    def _register(self, link: Link, connection: SwarmConn) -> None:
        if link.failure is not None or connection.is_closed:
            raise PeerUnreachable(f"the connection to {link.peer} was lost", peer=link.peer)
        connection.muxed_conn.buffer_limit = MEMBER_BUFFER
        self._links.setdefault(link.peer, []).append(link)
        self._by_connection[connection] = link
        self._connection_of[link] = connection
        if connection in self._greeted:
            self._greeted[connection].set()
        self._log.info("connected", peer=link.peer, bulk=link.bulk, dialed=link.dialed)
        self.on_link(link)

    def _ended(self, link: Link, connection: SwarmConn) -> None:
        self._by_connection.pop(connection, None)
        if self._connection_of.pop(link, None) is not None:
            links = self._links[link.peer]
            links.remove(link)
            if not links:
                del self._links[link.peer]
                self._backoff.reached(link.peer)
                self.look_again()
            reason = link.failure.message if link.failure is not None else ""
            self._log.info("disconnected", peer=link.peer, bulk=link.bulk, reason=reason)
            if link.frozen:
                self._blame(link.peer, PeerFault.FROZEN.value, reason)
        self.spawn(self._drop, connection)

    async def _drop(self, connection: SwarmConn) -> None:
        # The socket first: a frozen peer would never take libp2p's farewell.
        await connection.muxed_conn.drop()
        with trio.move_on_after(FAREWELL_S):
            await close_quietly(connection)

    # -- libp2p's events -----------------------------------------------------------------------------------------

    def came_up(self, connection: SwarmConn) -> None:
        """A connection came up, from either side: it must say hello soon."""
        self.spawn(self._expect_hello, connection)

    async def _expect_hello(self, connection: SwarmConn) -> None:
        peer = PeerId(str(connection.muxed_conn.peer_id))
        accepted = self._accepts(peer)
        with trio.move_on_after(2 * HELLO_TIMEOUT_S if accepted else STRANGER_S):
            await self._greeted.setdefault(connection, trio.Event()).wait()
        if not accepted and connection not in self._by_connection:
            # Also when it left by itself, as it does once it was told.
            self._log.warning("stranger_refused", peer=peer, hint=f"finode peers trust {peer} --org NAME")
        if connection not in self._by_connection and not connection.is_closed:
            await self._drop(connection)
        if connection.is_closed:
            self._greeted.pop(connection, None)

    def went_down(self, connection: SwarmConn) -> None:
        """A connection is gone."""
        self._greeted.pop(connection, None)
        link = self._by_connection.get(connection)
        if link is not None:
            link.end(PeerUnreachable(f"the connection to {link.peer} was lost", peer=link.peer))

    # -- staying connected ---------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """There is news of somebody's address: dial now what is due."""
        self._news.set()

    def hurry(self, peer: PeerId) -> None:
        """Dial the peer at once if it is not connected."""
        self._backoff.hurry(peer)
        self.look_again()

    async def stay_connected(self, wanted: Callable[[], Iterable[PeerId]]) -> None:
        """Keep a link to every peer of `wanted` that has an address, until cancelled."""
        busy: set[PeerId] = set()
        while True:
            for peer in wanted():
                if peer == self._own or peer in busy or self.connected(peer) or not self._book.of(peer):
                    continue
                if self._backoff.is_due(peer):
                    busy.add(peer)
                    self.spawn(self._reach, peer, busy)
            with trio.move_on_after(LOOK_S):
                await self._news.wait()
            self._news = trio.Event()

    async def _reach(self, peer: PeerId, busy: set[PeerId]) -> None:
        try:
            await self.link_to(peer, bulk=False)
        except RemoteError as error:
            pause = self._backoff.failed(peer)
            log = self._log.info if isinstance(error, PeerUnreachable) else self._log.warning
            log("not_connected", peer=peer, error=error.message, hint=error.hint, next_try_s=round(pause, 1))
        finally:
            busy.discard(peer)


def _with_purpose(hello: Hello, bulk: bool) -> Hello:
    return Hello(federation=hello.federation, versions=hello.versions, agent=hello.agent, bulk=bulk)
