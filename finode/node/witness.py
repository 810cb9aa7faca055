"""What a member saw of a session, and whether a receipt says the same. No I/O.

A receipt follows from the sealed terms and the querier's order, but for its times, its outcome, the work and the
transcript. Each member compares all of that with what it saw itself:

    every member   what the terms and the order determine; times within a minute of its own clock; the culprit of an
                   aborted session is the one of its own verdict; without a verdict of its own (it did its part and
                   saw nothing wrong) it is anybody but itself
    a party        its own work, to the byte; of an answered session, that it ended well here, the transcript, the other
                   parties' rounds and bytes, which are its own where the engine is symmetric, and that the dealer's
                   bytes are those that the parties took; of an aborted one, that nobody claims more rounds than there
                   can have been
    the dealer     its own work, and what it dealt to each party; that the bundle served no other session
    the querier    that the order is its own, and whether it was answered
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from finode.committee.rules import CLOCK_SKEW_MS
from finode.identity import PeerId
from finode.wire.committee import Terms
from finode.wire.receipts import ModelUse, Order, Outcome, Receipt, Work
from finode.wire.shares import Verdict
from finode.wire.signed import Signed

SYMMETRIC_ENGINES = frozenset({"native"})
"""Engines whose parties all send frames of one size, so that each knows what every other one sent."""
UNKNOWN_MS = 0
"""Stands for the milliseconds of a member that did not report; only it knows them, and nothing is paid by them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """The committee of a session: its terms, and the hash over them and all acceptances."""

    terms: Terms
    sealed: bytes

    def receipt(
        self,
        order: Order,
        *,
        started_ms: int,
        ended_ms: int,
        verdict: Verdict | None,
        work: tuple[Work, ...],
        transcript: bytes,
    ) -> Receipt:
        """Return the receipt of a session of this committee."""
        terms = self.terms
        return Receipt(
            federation=terms.federation,
            session=order.session,
            committee=order.committee,
            sealed=self.sealed,
            querier=terms.querier,
            parties=terms.parties,
            dealer=terms.dealer,
            models=tuple(
                ModelUse(version=model.version, owner=model.owner, deployment=terms.deployment_id(model))
                for model in terms.models
            ),
            service=terms.service,
            engine=terms.engine,
            vote=terms.vote,
            reveal=terms.reveal,
            classes=terms.classes,
            count=order.count,
            serial=order.serial,
            rewards=terms.rewards,
            started_ms=started_ms,
            ended_ms=ended_ms,
            outcome=Outcome.ANSWERED if verdict is None else Outcome.ABORTED,
            # A detail may quote what was nobody's business but the members'; receipts are for all, and for ever.
            verdict=None if verdict is None else replace(verdict, detail=""),
            work=work,
            transcript=transcript,
            copies=terms.copies,
        )

    def objection(self, receipt: Receipt, order: Order) -> str:
        """Return in which field a receipt is not what the terms and the order determine, "" if in none."""
        expected = self.receipt(
            order,
            started_ms=receipt.started_ms,
            ended_ms=receipt.ended_ms,
            verdict=receipt.verdict,
            work=receipt.work,
            transcript=receipt.transcript,
        )
        if order.agreed != expected.agreed:
            return "its order is not of what the terms say"
        if receipt.verdict is not None and receipt.verdict.culprit not in ("", *self.terms.members(), receipt.querier):
            return f"it blames {receipt.verdict.culprit}, which is no member"
        wrong = [one.name for one in fields(Receipt) if getattr(receipt, one.name) != getattr(expected, one.name)]
        return f"its {wrong[0]} does not follow from the terms and the order" if wrong else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyWitness:
    """A party's session. `verdict` is none where it ran to its end; `transcript` is keyed, and empty elsewhere."""

    role: ClassVar[str] = "party"

    committee: bytes
    order: Signed
    started_ms: int
    ended_ms: int
    verdict: Verdict | None
    work: Work
    transcript: bytes

    def objection(self, sealing: Sealing, receipt: Receipt) -> str:
        """Return what in a receipt is not as this party saw it, "" if nothing."""
        own, peer = self.work, self.work.peer
        works = dict(zip((*receipt.parties, receipt.dealer), receipt.work, strict=True))
        if not _is_own(works[peer], own):
            return f"the work of {peer} is not what it did"
        others = [work for party, work in works.items() if party not in (peer, receipt.dealer)]
        symmetric = receipt.engine in SYMMETRIC_ENGINES
        if receipt.outcome is Outcome.ANSWERED:
            if self.verdict is not None:
                return f"the session was aborted: {self.verdict.fault}"
            if receipt.transcript != self.transcript:
                return "the transcript is another one"
            for work in others:
                if work.rounds != own.rounds or (symmetric and work.bytes_sent != own.bytes_sent):
                    return f"the work of {work.peer} is not what was seen of it"
            if works[receipt.dealer].bundle_bytes != sum(work.bundle_bytes for work in receipt.work[:-1]):
                return "the dealer's bytes are not those that the parties took"
        else:
            for work in others:
                # A party sends round r + 1 when it has all frames of round r: one round ahead at most.
                ahead = work.rounds > own.rounds + 1
                if ahead or (symmetric and work.rounds <= own.rounds and work.bytes_sent > own.bytes_sent):
                    return f"the work of {work.peer} is more than was seen of it"
        return _end_objection(self.verdict, receipt, peer) or _time_objection(self.started_ms, self.ended_ms, receipt)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerierWitness:
    """A querier's session. `verdict` is none where it was answered."""

    role: ClassVar[str] = "querier"

    committee: bytes
    order: Signed
    started_ms: int
    ended_ms: int
    verdict: Verdict | None

    def objection(self, sealing: Sealing, receipt: Receipt) -> str:
        """Return what in a receipt is not as the querier saw it, "" if nothing."""
        if (receipt.outcome is Outcome.ANSWERED) != (self.verdict is None):
            return "the querier was answered" if self.verdict is None else "the querier was not answered"
        return _end_objection(self.verdict, receipt, receipt.querier) or _time_objection(
            self.started_ms, self.ended_ms, receipt
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DealerWitness:
    """A bundle that a dealer gave to all parties; which session it served the dealer learns from the receipt."""

    role: ClassVar[str] = "dealer"

    committee: bytes
    serial: bytes
    batch: int
    bytes_sent: tuple[int, ...]
    milliseconds: int
    dealt_ms: int

    def work(self, peer: PeerId) -> Work:
        return Work(
            peer=peer, rounds=0, bytes_sent=0, bundle_bytes=sum(self.bytes_sent), milliseconds=self.milliseconds
        )

    def objection(self, sealing: Sealing, receipt: Receipt) -> str:
        """Return what in a receipt is not as the dealer saw it, "" if nothing."""
        if not _is_own(receipt.work[-1], self.work(receipt.dealer)):
            return "the dealer's work is not what it did"
        if receipt.count * (1 + sealing.terms.copies) > self.batch:
            return f"the bundle was dealt for {self.batch} inputs"
        aborted = receipt.outcome is Outcome.ABORTED
        for work, size in zip(receipt.work, self.bytes_sent, strict=False):
            # A party that ended early may not have taken its bundle.
            if work.bundle_bytes != size and not (aborted and work.bundle_bytes == 0):
                return f"{work.peer} was dealt {size} bytes"
        if receipt.ended_ms < self.dealt_ms - CLOCK_SKEW_MS:
            return "the session ended before its bundle was dealt"
        return _end_objection(None, receipt, receipt.dealer)


Witness = PartyWitness | QuerierWitness | DealerWitness


def same_end(own: Verdict | None, stated: Verdict, peer: PeerId) -> bool:
    """Whether a member may sign that a session was aborted so: both verdicts name the same culprit, or it has none of
    its own and is not the culprit."""
    return stated.culprit != peer if own is None else stated.culprit == own.culprit


def _end_objection(own: Verdict | None, receipt: Receipt, peer: PeerId) -> str:
    stated = receipt.verdict
    if stated is None or same_end(own, stated, peer):
        return ""
    return f"it blames {stated.culprit or 'nobody'} and not {own.culprit or 'nobody' if own else 'another'}"


def _time_objection(started_ms: int, ended_ms: int, receipt: Receipt) -> str:
    far = max(abs(receipt.started_ms - started_ms), abs(receipt.ended_ms - ended_ms)) > CLOCK_SKEW_MS
    return "its times are not those of the session" if far else ""


def _is_own(stated: Work, own: Work) -> bool:
    return stated in (own, replace(own, milliseconds=UNKNOWN_MS))
