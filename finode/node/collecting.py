"""The party that brings a session's receipt together: it asks all members what they saw, and then to sign.

    1. Wait for this party's turn: the first that is not the culprit begins at once, each other one a pause later.
    2. Ask all members for their reports, and compose the body.
    3. The first party (not the culprit) that signs decides which body it is: it may have signed another one, for
       another collector; if that agrees with what was seen here, it is this session's.
    4. Ask the other parties, then the dealer and the querier, who want to see that most parties have signed.
    5. File the receipt with the signatures that were given, and hand it to the members.
    6. Once more, later, ask those whose signature is missing.

An aborted session in which no round was run and nobody is to blame leaves no receipt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config
from finode.errors import FinodeError, RemoteError, WireError
from finode.identity import PeerId
from finode.ledger.records import open_body
from finode.net.interface import Network, Stream
from finode.node.composing import compose
from finode.node.filing import Filing
from finode.node.signer import Signer, is_signature, objection
from finode.node.signing_book import SigningBook
from finode.node.tasks import together
from finode.node.verdicts import BLAMELESS
from finode.node.witness import PartyWitness, Sealing
from finode.wire.cosigning import PROTOCOL, AskReport, AskSignature, Decline, Finished, Report, Signature
from finode.wire.receipts import CoSignature, Order, Receipt, SignedReceipt
from finode.wire.signed import open_signed

AT_ONCE = 8
"""Sessions whose signatures are collected at the same time; the others wait for their turn."""
R = TypeVar("R", Report, Signature)


@dataclass(slots=True)
class _Talk:
    """One member, on one stream that is opened with the first question; None is its answer when there is none."""

    network: Network
    peer: PeerId
    timeout_s: float
    log: FilteringBoundLogger
    _stream: Stream | None = None
    _lost: bool = False

    async def ask(self, message: AskReport | AskSignature, kind: type[R]) -> R | None:
        if self._lost:
            return None
        try:
            stream = await self._open()
            await stream.send(message)
            reply = await stream.receive(kind, Decline, timeout_s=self.timeout_s)
        except RemoteError as error:
            self._lost = True
            self.log.info("a member does not answer about a receipt", peer=self.peer, reason=error.message)
            return None
        if isinstance(reply, kind):
            return reply
        if isinstance(reply, Decline):
            self.log.info("a member declines", peer=self.peer, reason=reply.reason.value, detail=reply.detail)
        return None

    async def tell(self, message: Finished) -> None:
        if not self._lost:
            with suppress(RemoteError):
                await (await self._open()).send(message)

    async def _open(self) -> Stream:
        if self._stream is None:
            self._stream = await self.network.open(self.peer, PROTOCOL, timeout_s=self.timeout_s)
        return self._stream

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.close()


@dataclass(slots=True)
class _Collection:
    """One session's receipt as far as it has come."""

    sealing: Sealing
    witness: PartyWitness
    order: Order
    receipt: Receipt | None = None
    body: bytes = field(default=b"", repr=False)
    signatures: dict[PeerId, bytes] = field(default_factory=dict, repr=False)

    def settle_on(self, body: bytes) -> None:
        self.receipt, self.body = open_body(body, Receipt), body

    def given(self) -> tuple[CoSignature, ...]:
        return tuple(CoSignature(peer=peer, signature=one) for peer, one in sorted(self.signatures.items()))

    def missing(self) -> tuple[PeerId, ...]:
        signers = () if self.receipt is None else self.receipt.signers()
        return tuple(peer for peer in signers if peer not in self.signatures)

    def signed(self) -> SignedReceipt:
        return SignedReceipt(body=self.body, order=self.witness.order, signatures=self.given())


class Collector:
    """Collects the signatures of this party's sessions."""

    def __init__(
        self,
        network: Network,
        signer: Signer,
        book: SigningBook,
        filing: Filing,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._own = signer.peer
        self._signer = signer
        self._book = book
        self._filing = filing
        self._config = config
        self._log = log
        self._turns = trio.Semaphore(AT_ONCE)
        self._waiting: dict[bytes, trio.Event] = {}
        self.busy = 0
        self.stopping = False

    def stand_down(self, session: bytes) -> None:
        """Another party's receipt, with this node's signature, has come: there is nothing to collect."""
        if (event := self._waiting.get(session)) is not None:
            event.set()

    async def see_through(self, sealing: Sealing, witness: PartyWitness) -> None:
        """Bring one session's receipt together, unless another party does. Failures are logged."""
        order = open_signed(witness.order, Order)
        try:
            if order.session in self._waiting:
                return  # a querier gave another session the same id: this node signs one of the two
            if self._concerns(sealing, witness):
                await self._in_turn(sealing, witness, order)
            if not self.stopping:
                await self._book.settle(order.session)
        except FinodeError as error:
            self._log.warning("no receipt was made", session=order.session.hex(), reason=error.message)

    def _concerns(self, sealing: Sealing, witness: PartyWitness) -> bool:
        verdict = witness.verdict
        if verdict is None:
            return True
        return verdict.culprit != self._own and (witness.work.rounds > 0 or verdict.fault not in BLAMELESS)

    async def _in_turn(self, sealing: Sealing, witness: PartyWitness, order: Order) -> None:
        parties = sealing.terms.parties
        culprit = "" if witness.verdict is None else witness.verdict.culprit
        turn = [party for party in parties if party != culprit].index(self._own)
        pause_s = self._config.session.cosign_pause_s
        collection = _Collection(sealing, witness, order)
        self._waiting[order.session] = stand_down = trio.Event()
        try:
            # The last look comes when every party had its turn, and the dealer and the querier sign what there is.
            for wait_s in (turn * pause_s, 2 * len(parties) * pause_s):
                with trio.move_on_after(wait_s):
                    await stand_down.wait()
                if stand_down.is_set() or self.stopping:
                    return
                async with self._turns:
                    self.busy += 1
                    try:
                        await self._collect(collection)
                    finally:
                        self.busy -= 1
                if collection.receipt is None or not collection.missing():
                    return
        finally:
            del self._waiting[order.session]

    async def _collect(self, collection: _Collection) -> None:
        before = dict(collection.signatures)
        terms = collection.sealing.terms
        members = dict.fromkeys((*terms.parties, terms.dealer, terms.querier))
        async with self._talks([peer for peer in members if peer != self._own]) as talks:
            if collection.receipt is None and not await self._decide(collection, talks):
                return
            parties = [peer for peer in collection.missing() if peer in terms.parties]
            await together([partial(self._ask, collection, talks[peer]) for peer in parties])
            others = [peer for peer in collection.missing() if peer not in terms.parties]
            await together([partial(self._ask, collection, talks[peer]) for peer in others])
            if collection.signatures == before:
                return
            await self._filing.file(collection.signed())
            self._log.info(
                "receipt signed",
                session=collection.order.session.hex(),
                signatures=len(collection.signatures),
                withheld=list(collection.missing()),
            )
            finished = Finished(receipt=collection.signed())
            await together([partial(talk.tell, finished) for talk in talks.values()])

    @asynccontextmanager
    async def _talks(self, peers: Sequence[PeerId]) -> AsyncIterator[dict[PeerId, _Talk]]:
        timeout_s = self._config.session.answer_timeout_s
        talks = {peer: _Talk(self._network, peer, timeout_s, self._log) for peer in peers}
        try:
            yield talks
        finally:
            with trio.CancelScope(shield=True):
                for talk in talks.values():
                    await talk.close()

    async def _decide(self, collection: _Collection, talks: dict[PeerId, _Talk]) -> bool:
        """Settle which body it is, and sign it; False if there is none that this node can sign."""
        order = collection.order
        if (before := await self._book.signed(order.committee, order.session)) is not None:
            collection.settle_on(before.body)
            collection.signatures[self._own] = before.signature
            return True
        composed = compose(collection.sealing, collection.witness, order, await self._reports(collection, talks))
        body = composed.encode()
        if reason := self._objection(collection, composed):
            self._log.warning("no receipt fits what was seen here", session=order.session.hex(), reason=reason)
            return False
        culprit = "" if composed.verdict is None else composed.verdict.culprit
        for party in composed.parties:
            if party == self._own:
                break
            if party != culprit and (decided := await self._decided_by(collection, talks[party], body)) is not None:
                body = decided
                break
        signed = await self._signer.sign(open_body(body, Receipt), body)
        if signed is None:
            self._log.warning("another session was signed for", session=order.session.hex())
            return False
        if signed.body != body:  # signed for another collector in the meantime
            collection.signatures.clear()
        collection.settle_on(signed.body)
        collection.signatures[self._own] = signed.signature
        return True

    async def _decided_by(self, collection: _Collection, talk: _Talk, body: bytes) -> bytes | None:
        """Ask an earlier party to sign, and return the body that it signed if it can be signed here too."""
        ask = AskSignature(receipt=SignedReceipt(body=body, order=collection.witness.order, signatures=()))
        reply = await talk.ask(ask, Signature)
        if reply is None:
            return None
        theirs = reply.body or body
        if not is_signature(theirs, talk.peer, reply.signature):
            return None
        if reply.body:
            try:
                receipt = open_body(theirs, Receipt)
            except WireError:
                return None
            if reason := self._objection(collection, receipt):
                self._log.warning("a party signed another receipt", peer=talk.peer, reason=reason)
                return None
        collection.signatures[talk.peer] = reply.signature
        return theirs

    def _objection(self, collection: _Collection, receipt: Receipt) -> str:
        if receipt.session != collection.order.session:
            return "it is of another session"
        return objection(collection.sealing, [collection.witness], receipt, collection.witness.order)

    async def _reports(self, collection: _Collection, talks: dict[PeerId, _Talk]) -> dict[PeerId, Report]:
        order = collection.order
        ask = AskReport(session=order.session, committee=order.committee, serial=order.serial)
        reports: dict[PeerId, Report] = {}

        async def one(talk: _Talk) -> None:
            report = await talk.ask(ask, Report)
            if report is not None and report.session == order.session:
                reports[talk.peer] = report

        await together([partial(one, talk) for talk in talks.values()])
        return reports

    async def _ask(self, collection: _Collection, talk: _Talk) -> None:
        reply = await talk.ask(AskSignature(receipt=collection.signed()), Signature)
        if reply is None:
            return
        if not reply.body and is_signature(collection.body, talk.peer, reply.signature):
            collection.signatures[talk.peer] = reply.signature
        else:
            self._log.warning("a member signed another receipt", peer=talk.peer)
