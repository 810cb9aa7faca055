"""What a member signs and what it does not, against what it saw; receipts put together out of reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finode.committee.rules import CLOCK_SKEW_MS
from finode.errors import RemoteProtocolError
from finode.identity import Identity, PeerId
from finode.node.composing import compose, verdict_on
from finode.node.lanes import Lane
from finode.node.orders import check_order
from finode.node.signer import eligible_parties, is_signature, objection
from finode.node.witness import DealerWitness, PartyWitness, QuerierWitness, Sealing, Witness
from finode.wire.committee import ModelTerm, Reveal, RewardTerms, Scheme, Terms, Vote
from finode.wire.cosigning import Ending, Report
from finode.wire.receipts import Agreed, Order, Outcome, Receipt, Work
from finode.wire.shares import Fault, StartSession, Verdict
from finode.wire.signed import Signed, co_sign, sign

OWNER, P0, P1, P2, DEALER, QUERIER = (Identity.from_seed(bytes([index] * 32)) for index in range(6))
NOW_MS = 1_700_000_000_000
REWARDS = RewardTerms(
    price=1000,
    owners=700,
    parties=200,
    dealer=100,
    scheme=Scheme.DAWID_SKENE,
    epoch_s=3600,
    min_queries=50,
    sigma_milli=0,
    credit_limit=0,
)
TERMS = Terms(
    federation="test",
    service="toy",
    service_digest=bytes(32),
    classes=2,
    input_shape=(4,),
    models=(ModelTerm(version=bytes(32), plan_digest=bytes(32), owner=OWNER.peer_id, price=0),),
    engine="native",
    fractional_bits=16,
    profile="latency",
    parties=(P0.peer_id, P1.peer_id, P2.peer_id),
    dealer=DEALER.peer_id,
    querier=QUERIER.peer_id,
    vote=Vote.SOFT,
    reveal=Reveal.TOP1,
    max_batch=32,
    quota=128,
    party_price=0,
    dealer_price=0,
    rewards=REWARDS,
    session_timeout_s=60,
    created_ms=NOW_MS - 1000,
    expires_ms=NOW_MS + 600_000,
    nonce=bytes(16),
)
SEALING = Sealing(terms=TERMS, sealed=b"s" * 32)
ORDER = Order(
    session=b"i" * 16,
    committee=TERMS.committee_id(),
    serial=b"b" * 16,
    count=3,
    created_ms=NOW_MS,
    agreed=Agreed.by(TERMS).hash,
)
SIGNED_ORDER = sign(QUERIER, ORDER)
SPECTRAL = replace(TERMS, vote=Vote.SPECTRAL)
LOST = Verdict(culprit=P2.peer_id, round=4, fault=Fault.PEER_LOST, detail="the wire was cut")
SHOWN = replace(LOST, detail="")
DEALT = DealerWitness(
    committee=ORDER.committee, serial=ORDER.serial, batch=4, bytes_sent=(32, 32, 500), milliseconds=9, dealt_ms=NOW_MS
)


def _party(index: int, verdict: Verdict | None = None, rounds: int = 20) -> PartyWitness:
    peer = TERMS.parties[index]
    work = Work(
        peer=peer,
        rounds=rounds,
        bytes_sent=100 * rounds,
        bundle_bytes=DEALT.bytes_sent[index],
        milliseconds=80 + index,
    )
    return PartyWitness(
        committee=ORDER.committee,
        order=SIGNED_ORDER,
        started_ms=NOW_MS + index,
        ended_ms=NOW_MS + 90 + index,
        verdict=verdict,
        work=work,
        transcript=b"t" * 32 if verdict is None else b"",
    )


def _querier(verdict: Verdict | None = None) -> QuerierWitness:
    return QuerierWitness(
        committee=ORDER.committee, order=SIGNED_ORDER, started_ms=NOW_MS, ended_ms=NOW_MS + 95, verdict=verdict
    )


def _report(witness: Witness) -> Report:
    nothing = Work(peer=QUERIER.peer_id, rounds=0, bytes_sent=0, bundle_bytes=0, milliseconds=0)
    if isinstance(witness, DealerWitness):
        work = witness.work(DEALER.peer_id)
        return Report(session=ORDER.session, ending=Ending.SERVED, verdict=None, work=work, dealt=witness.bytes_sent)
    if witness.verdict is not None:
        ending = Ending.ABORTED
    else:
        ending = Ending.SERVED if isinstance(witness, PartyWitness) else Ending.ANSWERED
    work = witness.work if isinstance(witness, PartyWitness) else nothing
    return Report(session=ORDER.session, ending=ending, verdict=witness.verdict, work=work)


def _reports(*witnesses: tuple[PeerId, Witness]) -> dict[PeerId, Report]:
    return {peer: _report(witness) for peer, witness in witnesses}


ALL_WELL = _reports(
    (P1.peer_id, _party(1)), (P2.peer_id, _party(2)), (DEALER.peer_id, DEALT), (QUERIER.peer_id, _querier())
)
ANSWERED = compose(SEALING, _party(0), ORDER, ALL_WELL)
CUT_OFF = _reports((P1.peer_id, _party(1, LOST, 5)), (DEALER.peer_id, DEALT), (QUERIER.peer_id, _querier(LOST)))
ABORTED = compose(SEALING, _party(0, LOST, 4), ORDER, CUT_OFF)


def _work(receipt: Receipt, index: int, **changed: int) -> Receipt:
    works = list(receipt.work)
    works[index] = replace(works[index], **changed)  # type: ignore[arg-type]
    return replace(receipt, work=tuple(works))


def _objections(receipt: Receipt, order: Signed = SIGNED_ORDER, aborted: bool = False) -> dict[str, str]:
    witnesses: dict[str, Witness] = {
        "p0": _party(0, LOST, 4) if aborted else _party(0),
        "p1": _party(1, LOST, 5) if aborted else _party(1),
        "dealer": DEALT,
        "querier": _querier(LOST if aborted else None),
    }
    found = {name: objection(SEALING, [witness], receipt, order) for name, witness in witnesses.items()}
    return {name: reason for name, reason in found.items() if reason}


def test_all_members_agree_with_what_they_saw() -> None:
    assert not _objections(ANSWERED)
    assert not objection(SEALING, [_party(2)], ANSWERED, SIGNED_ORDER)
    assert not _objections(ABORTED, aborted=True)
    assert ANSWERED.verdict is None
    assert ABORTED.verdict == SHOWN
    assert ABORTED.transcript == b""


EVERYBODY = {"p0", "p1", "dealer", "querier"}


@pytest.mark.parametrize(
    ("receipt", "objecting"),
    [
        (replace(ANSWERED, count=2), EVERYBODY),
        (replace(ANSWERED, reveal=Reveal.LABEL), EVERYBODY),
        (replace(ANSWERED, sealed=bytes(32)), EVERYBODY),
        (replace(ANSWERED, rewards=replace(REWARDS, price=1)), EVERYBODY),
        (replace(ANSWERED, serial=bytes(16)), EVERYBODY),
        (replace(ANSWERED, models=(replace(ANSWERED.models[0], deployment=bytes(32)),)), EVERYBODY),
        (replace(ANSWERED, transcript=bytes(32)), {"p0", "p1"}),
        (replace(ANSWERED, started_ms=ANSWERED.started_ms - 2 * CLOCK_SKEW_MS), {"p0", "p1", "querier"}),
        (replace(ANSWERED, ended_ms=ANSWERED.ended_ms + 2 * CLOCK_SKEW_MS), {"p0", "p1", "querier"}),
        (_work(ANSWERED, 1, rounds=21), {"p0", "p1"}),
        (_work(ANSWERED, 1, bytes_sent=9999), {"p0", "p1"}),
        (_work(ANSWERED, 1, milliseconds=9999), {"p1"}),
        (_work(ANSWERED, 1, milliseconds=0), set()),  # whoever collected did not hear it
        (_work(ANSWERED, 1, bundle_bytes=31), {"p0", "p1", "dealer"}),
        (_work(ANSWERED, 3, bundle_bytes=9999), {"p0", "p1", "dealer"}),
        (_work(_work(ANSWERED, 2, bundle_bytes=501), 3, bundle_bytes=565), {"dealer"}),
        (replace(ANSWERED, outcome=Outcome.ABORTED, verdict=SHOWN, transcript=b""), {"querier"}),
    ],
)
def test_who_does_not_sign_a_receipt_that_was_altered(receipt: Receipt, objecting: set[str]) -> None:
    assert _objections(receipt).keys() == objecting


@pytest.mark.parametrize(
    ("receipt", "objecting"),
    [
        (replace(ABORTED, verdict=replace(SHOWN, culprit=P1.peer_id)), {"p0", "p1", "querier"}),
        (replace(ABORTED, verdict=replace(SHOWN, culprit=DEALER.peer_id)), EVERYBODY),
        (replace(ABORTED, verdict=replace(SHOWN, culprit="")), {"p0", "p1", "querier"}),
        (replace(ABORTED, verdict=LOST), EVERYBODY),  # a detail is nobody's business
        (replace(ABORTED, verdict=replace(SHOWN, culprit=OWNER.peer_id + "x")), EVERYBODY),
        (_work(ABORTED, 1, rounds=7, bytes_sent=700), {"p0", "p1"}),
        (_work(ABORTED, 2, rounds=6, bytes_sent=600), {"p0"}),  # p1 itself was in round 5
        (_work(ABORTED, 2, rounds=4, bytes_sent=9999), {"p0", "p1"}),
        (_work(ABORTED, 2, bundle_bytes=499), {"dealer"}),
        (
            replace(ABORTED, outcome=Outcome.ANSWERED, verdict=None, transcript=b"t" * 32),
            {"p0", "p1", "querier", "dealer"},
        ),
    ],
)
def test_who_does_not_sign_another_end(receipt: Receipt, objecting: set[str]) -> None:
    assert _objections(receipt, aborted=True).keys() == objecting


def test_a_member_that_saw_nothing_wrong_signs_any_end_but_its_own_blame() -> None:
    served = _party(0, None, 5)
    assert not objection(SEALING, [served], replace(ABORTED, work=(served.work, *ABORTED.work[1:])), SIGNED_ORDER)
    blamed = replace(ABORTED, work=(served.work, *ABORTED.work[1:]), verdict=replace(SHOWN, culprit=P0.peer_id))
    assert "blames" in objection(SEALING, [served], blamed, SIGNED_ORDER)


def test_an_order_must_be_the_queriers_and_the_one_that_was_given() -> None:
    assert _objections(ANSWERED, sign(P0, ORDER)).keys() == EVERYBODY
    second = sign(QUERIER, replace(ORDER, created_ms=NOW_MS + 1))
    assert _objections(ANSWERED, second).keys() == EVERYBODY - {"dealer"}
    larger = sign(QUERIER, replace(ORDER, count=5))
    assert objection(SEALING, [DEALT], replace(ANSWERED, count=5), larger) == "the bundle was dealt for 4 inputs"
    other_terms = sign(QUERIER, replace(ORDER, agreed=bytes(32)))
    assert objection(SEALING, [DEALT], ANSWERED, other_terms) == "its order is not of what the terms say"


def test_a_node_with_two_roles_objects_in_either() -> None:
    assert not objection(SEALING, [_party(0), _querier()], ANSWERED, SIGNED_ORDER)
    assert objection(SEALING, [_party(0), _querier(LOST)], ANSWERED, SIGNED_ORDER) == "the querier was not answered"


def test_a_claim_beyond_what_was_seen_is_not_written_down() -> None:
    liar = replace(_party(1), work=replace(_party(1).work, rounds=1000, bytes_sent=10**9, bundle_bytes=10**6))
    receipt = compose(SEALING, _party(0), ORDER, ALL_WELL | _reports((P1.peer_id, liar)))
    assert receipt == ANSWERED
    assert objection(SEALING, [liar], receipt, SIGNED_ORDER)

    early = replace(_party(1, LOST, 5), work=replace(_party(1).work, rounds=1000))
    receipt = compose(SEALING, _party(0, LOST, 4), ORDER, CUT_OFF | _reports((P1.peer_id, early)))
    assert receipt.work[1].rounds == 4


def test_members_that_do_not_report() -> None:
    alone = compose(SEALING, _party(0), ORDER, {})
    assert alone.outcome is Outcome.ANSWERED  # each round needs all parties
    assert [work.rounds for work in alone.work] == [20, 20, 20, 0]
    without_party = {peer: report for peer, report in ALL_WELL.items() if peer != P1.peer_id}
    receipt = compose(SEALING, _party(0), ORDER, without_party)
    assert receipt == _work(ANSWERED, 1, milliseconds=0)
    assert not _objections(receipt)
    without_dealer = {peer: report for peer, report in ALL_WELL.items() if peer != DEALER.peer_id}
    receipt = compose(SEALING, _party(0), ORDER, without_dealer)
    assert receipt == _work(ANSWERED, 3, milliseconds=0)
    assert not _objections(receipt)


def test_how_a_session_ended() -> None:
    served = _party(0)
    denied = ALL_WELL | _reports((QUERIER.peer_id, _querier(LOST)))
    assert verdict_on(SEALING, served, denied) is None  # all parties did their part: the querier may not save its price
    assert verdict_on(SEALING, served, CUT_OFF) == LOST
    assert verdict_on(SEALING, _party(0, LOST), ALL_WELL) is None  # the querier says so to its own cost
    unsaid = {peer: report for peer, report in ALL_WELL.items() if peer != QUERIER.peer_id}
    assert verdict_on(SEALING, _party(0, LOST), unsaid) == LOST


def test_the_parties_that_count() -> None:
    assert eligible_parties(ANSWERED) == TERMS.parties
    assert eligible_parties(ABORTED) == TERMS.parties[:2]
    body = ANSWERED.encode()
    assert is_signature(body, P0.peer_id, co_sign(P0, body, Receipt))
    assert not is_signature(body, P1.peer_id, co_sign(P0, body, Receipt))


def _start(order: Signed, batch: int = 4) -> StartSession:
    return StartSession(
        session=ORDER.session,
        committee=ORDER.committee,
        serial=ORDER.serial,
        batch=batch,
        input_bytes=8,
        order=order,
    )


def test_an_order_that_fits_its_session() -> None:
    assert check_order(_start(SIGNED_ORDER), TERMS) == ORDER
    assert check_order(_start(sign(QUERIER, replace(ORDER, count=4))), TERMS).count == 4


@pytest.mark.parametrize(
    ("signed", "terms"),
    [
        (sign(P0, ORDER), TERMS),
        (sign(QUERIER, replace(ORDER, session=bytes(16))), TERMS),
        (sign(QUERIER, replace(ORDER, committee=bytes(32))), TERMS),
        (sign(QUERIER, replace(ORDER, serial=bytes(16))), TERMS),
        (sign(QUERIER, replace(ORDER, count=5)), TERMS),
        (sign(QUERIER, replace(ORDER, count=2)), TERMS),  # a batch of 2 would do: half of this one would be unpaid
        (
            sign(QUERIER, replace(ORDER, agreed=Agreed.by(SPECTRAL).hash)),
            SPECTRAL,
        ),  # rows depend on each other: no padding
        (SIGNED_ORDER, replace(TERMS, vote=Vote.HARD)),  # the order is of other terms
        (SIGNED_ORDER, replace(TERMS, rewards=replace(REWARDS, price=REWARDS.price + 1))),
        (sign(QUERIER, replace(ORDER, created_ms=TERMS.expires_ms + 2 * CLOCK_SKEW_MS)), TERMS),
        (sign(QUERIER, replace(ORDER, created_ms=TERMS.created_ms - 2 * CLOCK_SKEW_MS)), TERMS),
    ],
)
def test_an_order_that_does_not_fit_is_the_queriers_fault(signed: Signed, terms: Terms) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_order(_start(signed), terms)
    assert caught.value.peer == QUERIER.peer_id


def test_another_order_gives_another_zero_sharing() -> None:
    lane = Lane.on(None, 1, b"k" * 64, b"c" * 32)  # type: ignore[arg-type]
    keys = {lane.zero_key(b"r" * 16, order) for order in (b"", SIGNED_ORDER.body, sign(QUERIER, ORDER).body + b"x")}
    assert len(keys) == 3
    assert lane.zero_key(b"r" * 16, SIGNED_ORDER.body) == lane.zero_key(b"r" * 16, sign(QUERIER, ORDER).body)
