"""A member's part in receipts: it remembers what it saw of a session, reports it, and signs what agrees with it.

All of it happens after the answer has left: a role hands in what it saw and goes on; writing, asking and signing are
tasks of their own. The party that collects the signatures is in collecting.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import trio
from structlog.typing import FilteringBoundLogger

from finode.committee.sealed import SealedCommittee
from finode.config import Config
from finode.errors import FinodeError, PeerTimeout, PeerUnreachable, RemoteProtocolError, StorageFull
from finode.identity import Identity, PeerId
from finode.ledger.records import open_body, verify_receipt
from finode.net.interface import Network, Stream
from finode.node.collecting import Collector
from finode.node.deployment_records import deployment_of
from finode.node.filing import Filing, Record
from finode.node.negotiator import now_ms
from finode.node.signer import Signer, eligible_parties, is_signature, objection
from finode.node.signing_book import SignedBody, SigningBook
from finode.node.verdicts import verdict_of
from finode.node.witness import DealerWitness, PartyWitness, QuerierWitness, Sealing, Witness
from finode.wire.committee import ModelTerm, Terms
from finode.wire.cosigning import AskReport, AskSignature, Decline, DeclineReason, Ending, Finished, Report, Signature
from finode.wire.receipts import Agreed, Order, Receipt, SignedReceipt, Work
from finode.wire.shares import Fault, StartSession, Verdict
from finode.wire.signed import Signed, sign

IDLE_S = 30.0
"""How long a collector's stream may be silent between two questions."""
REMEMBERED_ASKS = 4096
PRUNE_S = 3600.0
STOP_TIMEOUT_S = 0.5
"""What is being signed when the node stops gets so long; the rest goes on at the next start."""


@dataclass(slots=True)
class PartyRecord:
    """What a party's session has come to so far; filled in as it goes."""

    order: Signed
    rounds: int = 0
    bytes_sent: int = 0
    bundle_bytes: int = 0
    transcript: bytes = field(default=b"", repr=False)


class Cosigning:
    """The node's door for all that receipts need of its roles."""

    def __init__(
        self,
        network: Network,
        identity: Identity,
        book: SigningBook,
        filing: Filing,
        nursery: trio.Nursery,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._identity = identity
        self._own = identity.peer_id
        self._book = book
        self._filing = filing
        self._nursery = nursery
        self._config = config
        self._log = log
        self._signer = Signer(identity, book)
        self._collector = Collector(network, self._signer, book, filing, config, log)
        self._coming: dict[tuple[str, bytes], trio.Event] = {}
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        self._busy = 0
        self._stopped = False
        self._idle = trio.Event()

    async def serve(self) -> None:
        """Go on with what a stop interrupted, and forget what is old, until cancelled."""
        await self._quietly(lambda: self._book.prune(now_ms()))
        for sealing, witness in await self._book.unsettled():
            self._nursery.start_soon(self._collector.see_through, sealing, witness)
        while True:
            await trio.sleep(PRUNE_S)
            await self._quietly(lambda: self._book.prune(now_ms()))

    async def stop(self) -> None:
        """Let what is being written or signed come to its end, for a moment."""
        self._collector.stopping = True
        with trio.move_on_after(STOP_TIMEOUT_S):
            while self._busy or self._collector.busy:
                self._idle = trio.Event()
                with trio.move_on_after(STOP_TIMEOUT_S / 10):
                    await self._idle.wait()
        self._stopped = True

    # What the roles call

    def order(self, sealed: SealedCommittee, session: bytes, serial: bytes, count: int) -> Signed:
        """Return the querier's signed order of a session."""
        order = Order(
            session=session,
            committee=sealed.id,
            serial=serial,
            count=count,
            created_ms=now_ms(),
            agreed=Agreed.by(sealed.terms).hash,
        )
        return sign(self._identity, order)

    @contextmanager
    def asking(self, sealed: SealedCommittee, order: Signed, session: bytes) -> Iterator[None]:
        """A session that this node asks for runs in the body; how the body ends is how the session ended here."""
        started_ms = now_ms()
        with self._attending(sealed, QuerierWitness.role, session) as note:
            verdict = self._cancelled(Fault.CANCELLED)
            try:
                yield
                verdict = None
            except FinodeError as error:
                verdict = verdict_of(error, self._own)
                raise
            finally:
                note.append(
                    QuerierWitness(
                        committee=sealed.id,
                        order=order,
                        started_ms=started_ms,
                        ended_ms=max(started_ms, now_ms()),
                        verdict=verdict,
                    )
                )

    @contextmanager
    def computing(self, sealed: SealedCommittee, start: StartSession) -> Iterator[PartyRecord]:
        """A session that this node is a party of runs in the body; as in `asking`."""
        started_ms, began = now_ms(), trio.current_time()
        record = PartyRecord(start.order)
        with self._attending(sealed, PartyWitness.role, start.session) as note:
            verdict = self._cancelled(Fault.SHUTTING_DOWN)
            try:
                yield record
                verdict = None
            except FinodeError as error:
                verdict = verdict_of(error, self._own)
                raise
            finally:
                work = Work(
                    peer=self._own,
                    rounds=record.rounds,
                    bytes_sent=record.bytes_sent,
                    bundle_bytes=record.bundle_bytes,
                    milliseconds=max(1, round(1000 * (trio.current_time() - began))),
                )
                note.append(
                    PartyWitness(
                        committee=sealed.id,
                        order=record.order,
                        started_ms=started_ms,
                        ended_ms=max(started_ms, now_ms()),
                        verdict=verdict,
                        work=work,
                        transcript=record.transcript,
                    )
                )

    def dealt(
        self, sealed: SealedCommittee, serial: bytes, batch: int, bytes_sent: tuple[int, ...], seconds: float
    ) -> None:
        """This node gave a bundle to all parties of a committee."""
        with self._attending(sealed, DealerWitness.role, serial) as note:
            note.append(
                DealerWitness(
                    committee=sealed.id,
                    serial=serial,
                    batch=batch,
                    bytes_sent=bytes_sent,
                    milliseconds=max(1, round(1000 * seconds)),
                    dealt_ms=now_ms(),
                )
            )

    async def deployment(self, terms: Terms, model: ModelTerm) -> Signed:
        """Return this owner's signed deployment of a model; it is signed and handed in once."""
        deployment = terms.deployment_id(model)
        signed = await self._book.deployment(
            deployment, lambda: sign(self._identity, deployment_of(terms, model, now_ms()))
        )
        self.hand_in(signed)
        return signed

    def hand_in(self, record: Record, *, told: bool = False) -> None:
        """Have a record filed, without waiting for it; see `Filing.file`."""
        self._nursery.start_soon(self._quietly, lambda: self._filing.file(record, told=told))

    def _cancelled(self, fault: Fault) -> Verdict | None:
        return Verdict(culprit=self._own, round=-1, fault=fault)

    @contextmanager
    def _attending(self, sealed: SealedCommittee, role: str, name: bytes) -> Iterator[list[Witness]]:
        """Keep those who ask about a session waiting until what was seen of it is written down."""
        key = (role, name)
        self._coming[key] = ended = trio.Event()
        note: list[Witness] = []
        try:
            yield note
        finally:
            if not self._stopped:  # what ends later than that is not waited for by anybody
                self._busy += 1
                self._nursery.start_soon(self._write_down, key, ended, sealed, note[0])

    async def _write_down(
        self, key: tuple[str, bytes], ended: trio.Event, sealed: SealedCommittee, witness: Witness
    ) -> None:
        sealing = Sealing(terms=sealed.terms, sealed=sealed.digest())
        try:
            await self._quietly(lambda: self._book.remember(sealing, key[1], witness, now_ms()))
        finally:
            self._busy -= 1
            self._idle.set()
            ended.set()
            if self._coming.get(key) is ended:
                del self._coming[key]
        if isinstance(witness, PartyWitness):
            await self._collector.see_through(sealing, witness)

    async def _quietly(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what concerns no session any more: a failure is for the log."""
        try:
            await work()
        except FinodeError as error:
            self._log.warning("a record was not kept", reason=error.message)

    # What other members ask: /finode/receipts/1

    async def answer(self, stream: Stream, message: AskReport | AskSignature | Finished) -> None:
        """Serve a collector's stream, from its first message to its end."""
        while True:
            match message:
                case AskReport():
                    await stream.send(await self._report(stream.peer, message))
                case AskSignature():
                    await stream.send(await self._sign(stream.peer, message))
                case Finished():
                    await self._take(stream.peer, message.receipt)
            try:
                message = await stream.receive(AskReport, AskSignature, Finished, timeout_s=IDLE_S)
            except (PeerUnreachable, PeerTimeout):
                await stream.close()
                return

    async def _found(self, committee: bytes, session: bytes, serial: bytes) -> tuple[Sealing, list[Witness]] | Decline:
        """Return what this node saw of a session, once it has ended here."""
        keys = ((PartyWitness.role, session), (QuerierWitness.role, session), (DealerWitness.role, serial))
        with trio.move_on_after(self._config.session.answer_timeout_s / 2):
            for key in keys:
                while (ended := self._coming.get(key)) is not None:
                    await ended.wait()
        if any(key in self._coming for key in keys):
            return Decline(session=session, reason=DeclineReason.RUNNING)
        found = await self._book.witnesses(committee, session, serial)
        return found or Decline(session=session, reason=DeclineReason.UNKNOWN_SESSION)

    async def _report(self, peer: PeerId, ask: AskReport) -> Report | Decline:
        found = await self._found(ask.committee, ask.session, ask.serial)
        if isinstance(found, Decline):
            return found
        sealing, witnesses = found
        _expect_party(peer, sealing.terms.parties)
        nothing = Work(peer=self._own, rounds=0, bytes_sent=0, bundle_bytes=0, milliseconds=0)
        report = Report(session=ask.session, ending=Ending.SERVED, verdict=None, work=nothing)
        for witness in witnesses:
            report = _with(report, witness, self._own)
        return report

    async def _sign(self, peer: PeerId, ask: AskSignature) -> Signature | Decline:
        asked = ask.receipt
        receipt = open_body(asked.body, Receipt)
        _expect_party(peer, receipt.parties)
        session = receipt.session
        found = await self._found(receipt.committee, session, receipt.serial)
        if (before := await self._book.signed(receipt.committee, session)) is not None:
            _expect_party(peer, open_body(before.body, Receipt).parties)
            return _given(session, before, asked.body)
        if isinstance(found, Decline):
            return found
        sealing, witnesses = found
        if reason := objection(sealing, witnesses, receipt, asked.order):
            self._log.warning("a receipt was not signed", session=session.hex(), peer=peer, reason=reason)
            return Decline(session=session, reason=DeclineReason.DISAGREES, detail=reason)
        if self._own not in receipt.parties and not self._backed(receipt, asked):
            return Decline(session=session, reason=DeclineReason.FEW_PARTIES)
        try:
            signed = await self._signer.sign(receipt, asked.body)
        except StorageFull:
            return Decline(session=session, reason=DeclineReason.STORAGE_FULL)
        if signed is None:
            return Decline(session=session, reason=DeclineReason.DISAGREES, detail="another session was signed for")
        return _given(session, signed, asked.body)

    def _backed(self, receipt: Receipt, asked: SignedReceipt) -> bool:
        """Whether more than half of the parties that are not at fault have signed.

        The dealer and the querier cannot judge what was opened: they wait with the signature that they give once until
        the parties agree, or until each party had its turn to collect and none did better.
        """
        eligible = eligible_parties(receipt)
        signed = {
            one.peer
            for one in asked.signatures
            if one.peer in eligible and is_signature(asked.body, one.peer, one.signature)
        }
        if 2 * len(signed) > len(eligible):
            return True
        first = self._asked.setdefault(receipt.session, trio.current_time())
        if len(self._asked) > REMEMBERED_ASKS:
            self._asked.popitem(last=False)
        patience_s = self._config.session.cosign_pause_s * len(receipt.parties)
        return trio.current_time() >= first + patience_s

    async def _take(self, peer: PeerId, signed: SignedReceipt) -> None:
        verified = verify_receipt(signed)
        _expect_party(peer, verified.receipt.parties)
        # Only members' own sessions come this way; what gossip should carry is for the ledger's own protocol.
        if await self._book.signed(verified.receipt.committee, verified.receipt.session) is None:
            return
        # Four members that publish one receipt would each be heard by all: gossip does not see that it is the same.
        self.hand_in(signed, told=True)
        if self._own in verified.signers:
            self._collector.stand_down(verified.receipt.session)


def _given(session: bytes, signed: SignedBody, asked: bytes) -> Signature:
    body = b"" if signed.body == asked else signed.body
    return Signature(session=session, body=body, signature=signed.signature)


def _expect_party(peer: PeerId, parties: tuple[PeerId, ...]) -> None:
    if peer not in parties:
        raise RemoteProtocolError(f"{peer} asks about a session of which it was no party", peer=peer)


def _with(report: Report, witness: Witness, own: PeerId) -> Report:
    """Return the report with what was seen in one more role."""
    if isinstance(witness, DealerWitness):
        return replace(report, work=witness.work(own), dealt=witness.bytes_sent)
    if witness.verdict is not None:
        report = replace(report, ending=Ending.ABORTED, verdict=witness.verdict)
    elif isinstance(witness, QuerierWitness):
        report = replace(report, ending=Ending.ANSWERED, verdict=None)
    if isinstance(witness, PartyWitness):
        report = replace(report, work=witness.work, transcript=witness.transcript)
    return report
