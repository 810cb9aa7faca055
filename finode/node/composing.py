"""The body of a receipt, out of what one party saw and what the other members report.

Where a report says more of a member than this party can have seen, the receipt says what was seen: the member that
claimed more does not sign that, and so is not paid.
"""

from __future__ import annotations

from collections.abc import Mapping

from finode.identity import PeerId
from finode.node.witness import SYMMETRIC_ENGINES, UNKNOWN_MS, PartyWitness, Sealing
from finode.wire.cosigning import Ending, Report
from finode.wire.receipts import Order, Receipt, Work
from finode.wire.shares import Verdict


def verdict_on(sealing: Sealing, witness: PartyWitness, reports: Mapping[PeerId, Report]) -> Verdict | None:
    """Return how the session ended: none if it was answered.

    It was if the querier says so, to its own cost; or else if it ended well at each party that can be asked. A querier
    that says that it got no answer from parties that all did their part is not believed: it would owe less. Else
    it ended by this party's own verdict, or that of the first party that has one.
    """
    terms = sealing.terms
    querier = reports.get(terms.querier)
    if querier is not None and querier.ending is Ending.ANSWERED:
        return None
    if witness.verdict is not None:
        return witness.verdict
    said = (reports[party].verdict for party in terms.parties if party in reports)
    return next(filter(None, said), None)


def compose(sealing: Sealing, witness: PartyWitness, order: Order, reports: Mapping[PeerId, Report]) -> Receipt:
    """Return the receipt's body."""
    verdict = verdict_on(sealing, witness, reports)
    terms = sealing.terms
    dealer = reports.get(terms.dealer)
    dealt = dealer.dealt if dealer is not None and len(dealer.dealt) == len(terms.parties) else None
    works: list[Work] = []
    for index, party in enumerate(terms.parties):
        if party == witness.work.peer:
            works.append(witness.work)
            continue
        report = reports.get(party)
        claimed = report.work if report is not None else None
        if claimed is None or claimed.peer != party:
            claimed = Work(peer=party, rounds=0, bytes_sent=0, bundle_bytes=0, milliseconds=UNKNOWN_MS)
        symmetric = terms.engine in SYMMETRIC_ENGINES
        rounds, sent = _seen(witness.work, claimed, answered=verdict is None, symmetric=symmetric)
        bundle = claimed.bundle_bytes
        if dealt is not None and (verdict is None or bundle):
            bundle = dealt[index]
        works.append(
            Work(
                peer=party,
                rounds=rounds,
                bytes_sent=sent,
                bundle_bytes=bundle,
                milliseconds=claimed.milliseconds,
            )
        )
    taken = sum(work.bundle_bytes for work in works)
    stated = dealer.work if dealer is not None else None
    if stated is None or stated.peer != terms.dealer or (verdict is None and stated.bundle_bytes != taken):
        stated = Work(peer=terms.dealer, rounds=0, bytes_sent=0, bundle_bytes=taken, milliseconds=UNKNOWN_MS)
    return sealing.receipt(
        order,
        started_ms=witness.started_ms,
        ended_ms=witness.ended_ms,
        verdict=verdict,
        work=(*works, stated),
        transcript=witness.transcript if verdict is None else b"",
    )


def _seen(own: Work, claimed: Work, *, answered: bool, symmetric: bool) -> tuple[int, int]:
    """Return the rounds and bytes of another party, as it claims them, or as this party saw them."""
    if answered:
        return own.rounds, own.bytes_sent if symmetric else claimed.bytes_sent
    if claimed.rounds > own.rounds + 1 or (
        symmetric and claimed.rounds <= own.rounds and claimed.bytes_sent > own.bytes_sent
    ):
        return own.rounds, own.bytes_sent
    return claimed.rounds, claimed.bytes_sent
