"""Serves what other nodes ask of this one: routes each inbound stream to the role that it is meant for.

The first message of a stream says what it is about. It is checked against the sealed committee that it names before
anything else is read: a message from a peer that has no such place in the terms ends the stream and costs the peer
its standing. A refusal is answered with its reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio
from structlog.contextvars import bound_contextvars
from structlog.typing import FilteringBoundLogger

from finode.committee.desk import Desk, Outcome
from finode.committee.sealed import SealedCommittee
from finode.config import Config, Role
from finode.errors import (
    FinodeError,
    LocalError,
    LocalProtocolError,
    PeerRefused,
    PeerUnreachable,
    RemoteError,
    RemoteProtocolError,
)
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.node.asked import while_asked
from finode.node.contribution import Contribution
from finode.node.cosigning import Cosigning
from finode.node.dealer import DealerRole
from finode.node.negotiator import dissolve, now_ms
from finode.node.orders import check_order
from finode.node.owner import OwnerRole
from finode.node.party import PartyRole, check_deployment
from finode.node.verdicts import BLAMELESS, VerdictReached, verdict_of
from finode.wire import committee as committee_wire
from finode.wire import contribution as contribution_wire
from finode.wire import preprocessing, session, shares
from finode.wire.committee import Dissolve, Propose, Seal, Terms
from finode.wire.cosigning import AskReport, AskSignature, Finished
from finode.wire.message import Message
from finode.wire.preprocessing import Deal, OfferBundle, RequestMasks
from finode.wire.session import JoinLane
from finode.wire.shares import (
    DeploymentStored,
    DeploymentWanted,
    Failed,
    Fault,
    HandOut,
    OfferDeployment,
    Prepare,
    Prepared,
    StartSession,
    WithdrawModel,
)

COSIGNING = (AskReport, AskSignature, Finished)
"""First messages of the streams of /finode/receipts/1 that are between members of a committee."""
TICK_S = 1.0
"""How often expired committees are looked for."""
STOP_TIMEOUT_S = 1.0
"""How long sessions in flight get to tell others that this node stops; all of it must end within 3 s."""
SEAL_WAIT_S = 60.0
"""How long a proposal's stream is kept for the seal: the querier waits for the slowest member in between."""


Work = Callable[[Stream, SealedCommittee], Awaitable[None]]
"""What a stream's first message asks for, in the sealed committee that it names."""


class Reception:
    """The handlers of all protocols but those of the network itself."""

    def __init__(
        self,
        network: Network,
        desk: Desk,
        party: PartyRole,
        dealer: DealerRole,
        owner: OwnerRole,
        cosigning: Cosigning,
        contribution: Contribution,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._desk = desk
        self._party = party
        self._dealer = dealer
        self._owner = owner
        self._cosigning = cosigning
        self._contribution = contribution
        self._config = config
        self._log = log
        self._work: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self.stopping = False

    def open(self) -> None:
        """Begin to serve."""
        self._network.serve(committee_wire.PROTOCOL, self._on_committee)
        self._network.serve(shares.PROTOCOL, self._on_shares)
        self._network.serve(preprocessing.PROTOCOL, self._on_preprocessing)
        self._network.serve(session.PROTOCOL, self._on_lane)
        self._network.serve(contribution_wire.PROTOCOL, self._on_contribution)

    async def tend(self) -> None:
        """End committees that expire, until cancelled."""
        while True:
            await trio.sleep(TICK_S)
            await self._settle(self._desk.tick(now_ms()))
            book = self._desk.book
            for committee in {*self._party.seated(), *self._dealer.dealing()}:
                if not book.sessions_of(committee) and all(sealed.id != committee for sealed in book):
                    await self._leave(committee)

    async def stop(self) -> None:
        """Refuse what is new, end what is in flight and tell the others, within `STOP_TIMEOUT_S`."""
        self.stopping = True
        for scope in self._work:
            scope.cancel()
        with trio.move_on_after(STOP_TIMEOUT_S):
            while self._work:
                self._idle = trio.Event()
                await self._idle.wait()
        with trio.move_on_after(STOP_TIMEOUT_S / 3):
            await self._settle(self._desk.abort_all("the node shuts down", now_ms()))

    async def _settle(self, outcome: Outcome) -> None:
        for end in outcome.ended:
            self._log.debug("committee ended", committee=end.committee.hex()[:12], reason=end.reason)
            if not self._desk.book.sessions_of(end.committee):
                await self._leave(end.committee)
        for notice in outcome.notices:
            await dissolve(self._network, notice.peer, notice.message)

    async def _leave(self, committee: bytes) -> None:
        """Give up what this node keeps for a committee that is over and in which nothing runs any more."""
        await self._party.leave(committee)
        await self._dealer.leave(committee)

    @contextmanager
    def _cancellable(self) -> Iterator[None]:
        with trio.CancelScope() as scope:
            self._work.add(scope)
            try:
                yield
            finally:
                self._work.discard(scope)
                self._idle.set()

    def _sealed(self, committee: bytes) -> SealedCommittee:
        """Return a sealed committee; raise `PeerRefused` when there is none of that id."""
        return self._desk.book.get(committee, now_ms())

    # /finode/committee/1

    async def _on_committee(self, stream: Stream) -> None:
        timeout_s = self._config.session.answer_timeout_s
        while True:
            try:
                message = await stream.receive(Propose, Seal, Dissolve, timeout_s=timeout_s)
            except PeerUnreachable:
                return
            outcome = self._desk.receive(stream.peer, message, now_ms())
            if outcome.reply is not None:
                await stream.send(outcome.reply)
            await self._settle(outcome)
            timeout_s = SEAL_WAIT_S

    # /finode/shares/1

    async def _on_shares(self, stream: Stream) -> None:
        message = await stream.receive(
            OfferDeployment,
            WithdrawModel,
            HandOut,
            Prepare,
            StartSession,
            timeout_s=self._config.session.answer_timeout_s,
        )
        match message:
            case OfferDeployment():
                await self._serve(stream, message.deployment, message.committee, self._deployment(message))
            case WithdrawModel():
                self._party.withdraw(stream.peer, message.version)
            case HandOut():
                await self._serve(stream, message.committee, message.committee, self._hand_out)
            case Prepare():
                await self._serve(stream, message.committee, message.committee, self._prepare(message))
            case StartSession():
                await self._serve(stream, message.session, message.committee, self._session(message))

    async def _serve(
        self,
        stream: Stream,
        subject: bytes,
        committee: bytes,
        work: Work,
    ) -> None:
        """Do `work` for a member of a sealed committee; answer `Failed` about `subject` when it cannot be done.

        What the peer did wrong is raised again, so that it costs the peer its standing.
        """
        own = self._network.peer_id
        with bound_contextvars(peer=stream.peer, committee=committee.hex()[:12]), self._cancellable():
            try:
                await work(stream, self._sealed(committee))
                await stream.close()
            except FinodeError as error:
                verdict = verdict_of(error, own)
                self._log.info(
                    "ended early",
                    culprit=verdict.culprit,
                    fault=verdict.fault.value,
                    round=verdict.round,
                    detail=error.message,
                )
                # LocalProtocolError: what was being sent when it ended was cut off, and so the stream was reset.
                with suppress(RemoteError, LocalProtocolError):
                    await stream.send(Failed(subject=subject, verdict=verdict))
                await stream.close()
                if isinstance(error, LocalError):
                    raise
                if verdict.culprit == stream.peer and verdict.fault not in BLAMELESS | {Fault.PEER_LOST}:
                    raise RemoteProtocolError(verdict.detail, peer=stream.peer) from error

    def _deployment(self, offer: OfferDeployment) -> Work:
        async def take(stream: Stream, sealed: SealedCommittee) -> None:
            if self._network.peer_id != sealed.terms.dealer:
                self._expect_party(stream.peer, sealed.terms)
                await self._party.take_deployment(stream, sealed.terms, offer)
                return
            # The dealer gets the public plan alone.
            plan = check_deployment(stream.peer, sealed.terms, offer)
            if offer.share_bytes:
                raise RemoteProtocolError(f"{stream.peer} offers a share to the dealer", peer=stream.peer)
            self._dealer.plans.put(offer.deployment, plan)
            self._cosigning.hand_in(offer.signed)
            await stream.send(DeploymentWanted(deployment=offer.deployment, wanted=False))
            await stream.send(DeploymentStored(deployment=offer.deployment))

        return take

    async def _hand_out(self, stream: Stream, sealed: SealedCommittee) -> None:
        self._expect_querier(stream.peer, sealed.terms)
        began = trio.current_time()

        async def hand_out() -> int:
            return await self._owner.hand_out(sealed.terms, sealed.holds)

        sent = await while_asked(stream, hand_out)
        seconds = trio.current_time() - began
        await stream.send(Prepared(committee=sealed.id, bytes_sent=sent, seconds=seconds, max_batch=0))

    def _prepare(self, message: Prepare) -> Work:
        async def prepare(stream: Stream, sealed: SealedCommittee) -> None:
            self._expect_querier(stream.peer, sealed.terms)
            self._expect_party(stream.peer, sealed.terms)
            await self._party.prepare(stream, sealed, message)

        return prepare

    def _session(self, start: StartSession) -> Work:
        async def run(stream: Stream, sealed: SealedCommittee) -> None:
            self._expect_querier(stream.peer, sealed.terms)
            self._expect_party(stream.peer, sealed.terms)
            check_order(start, sealed.terms)
            self._desk.book.begin(start.committee, start.session, start.batch, now_ms())
            try:
                with bound_contextvars(session=start.session.hex()):
                    self._log.info("session begins", role=Role.PARTY.value, batch=start.batch)
                    await self._party.session(stream, sealed, start)
                    self._log.info("session ends", role=Role.PARTY.value)
            finally:
                self._desk.book.end(start.session)

        return run

    @staticmethod
    def _expect_querier(peer: PeerId, terms: Terms) -> None:
        if peer != terms.querier:
            raise RemoteProtocolError(f"{peer} is not the querier of this committee", peer=peer)

    def _expect_party(self, peer: PeerId, terms: Terms) -> None:
        if self._network.peer_id not in terms.parties:
            raise RemoteProtocolError("this node is no party of the committee", peer=peer)

    # /finode/preprocessing/1

    async def _on_preprocessing(self, stream: Stream) -> None:
        timeout_s = self._config.session.answer_timeout_s
        message = await stream.receive(RequestMasks, Deal, OfferBundle, timeout_s=timeout_s)
        match message:
            case RequestMasks():
                await self._serve(stream, message.committee, message.committee, self._masks)
            case Deal():
                await self._serve(stream, message.committee, message.committee, self._deal(message))
            case OfferBundle():
                await self._serve(stream, message.serial, message.committee, self._bundle(message))

    async def _masks(self, stream: Stream, sealed: SealedCommittee) -> None:
        self._expect_dealer(stream.peer, sealed.terms)
        await self._dealer.masks(stream, sealed.terms)

    def _deal(self, message: Deal) -> Work:
        async def deal(stream: Stream, sealed: SealedCommittee) -> None:
            self._expect_querier(stream.peer, sealed.terms)
            self._expect_dealer(stream.peer, sealed.terms)
            self._log.info("dealing", role=Role.DEALER.value, batch=message.batch)
            await self._dealer.serve_pool(stream, sealed, message, self._desk.book)

        return deal

    def _expect_dealer(self, peer: PeerId, terms: Terms) -> None:
        if self._network.peer_id != terms.dealer:
            raise RemoteProtocolError("this node is not the committee's dealer", peer=peer)

    def _bundle(self, offer: OfferBundle) -> Work:
        async def take(stream: Stream, sealed: SealedCommittee) -> None:
            if stream.peer != sealed.terms.dealer:
                raise RemoteProtocolError(f"{stream.peer} is not the dealer of this committee", peer=stream.peer)
            self._expect_party(stream.peer, sealed.terms)
            await self._party.take_bundle(stream, sealed, offer)

        return take

    # /finode/session/1

    async def _on_lane(self, stream: Stream) -> None:
        message = await stream.receive(JoinLane, timeout_s=self._config.session.answer_timeout_s)
        try:
            sealed = self._sealed(message.committee)
        except PeerRefused as error:
            verdict = verdict_of(error, self._network.peer_id)
            with suppress(RemoteError, LocalProtocolError):
                await stream.send(Failed(subject=message.committee, verdict=verdict))
            await stream.close()
            return
        self._expect_party(stream.peer, sealed.terms)
        with suppress(VerdictReached, PeerUnreachable):
            await self._party.join_lane(stream, sealed, message)

    # /finode/receipts/1

    async def serve_cosigning(self, stream: Stream, message: Message) -> None:
        """Answer a member of a committee about a session that ended."""
        if self.stopping:
            await stream.close()
            return
        with self._cancellable():
            if isinstance(message, AskReport | AskSignature | Finished):
                await self._cosigning.answer(stream, message)

    # /finode/contribution/1

    async def _on_contribution(self, stream: Stream) -> None:
        with self._cancellable():
            await self._contribution.serve(stream)
