"""The directory: what is kept, and every reason for which a record is dropped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from finode.config import Role
from finode.errors import WireError
from finode.identity import Identity, PeerId
from finode.net.directory import (
    FAULT_OF,
    MAX_LIFETIME_MS,
    MAX_RECORDS,
    SKEW_MS,
    Directory,
    Offer,
    RecordWriter,
    Verdict,
    from_gossip,
    to_gossip,
)
from finode.net.roster import Roster
from finode.wire.control import VERSIONS
from finode.wire.directory import DirectorySync, NodeRecord
from finode.wire.signed import Signed, sign

ME, PEER, THIRD, STRANGER = (Identity.generate() for _ in range(4))
NOW = 1_800_000_000_000
NO_FILE = Path("is not read")


def directory() -> Directory:
    roster = Roster(NO_FILE, {PEER.peer_id: "Lab", THIRD.peer_id: "Clinic"})
    return Directory(ME.peer_id, "finode", roster)


def record(identity: Identity = PEER, **changes: Any) -> NodeRecord:
    fields: dict[str, Any] = {
        "peer": identity.peer_id,
        "federation": "finode",
        "organization": "",
        "roles": (Role.PARTY,),
        "addresses": ("/ip4/192.0.2.1/tcp/4001",),
        "versions": VERSIONS,
        "services": (),
        "models": (),
        "engines": ("native",),
        "capacity": 4,
        "party_price": 0,
        "dealer_price": 0,
        "deployments": (),
        "sequence": NOW,
        "issued_ms": NOW,
        "expires_ms": NOW + 120_000,
    }
    return NodeRecord(**(fields | changes))


def signed(identity: Identity = PEER, **changes: Any) -> Signed:
    return sign(identity, record(identity, **changes))


def test_the_newest_record_counts_until_it_expires() -> None:
    known = directory()
    assert known.insert(signed(capacity=1), NOW) is Verdict.ACCEPTED
    assert known.insert(signed(capacity=1), NOW) is Verdict.KNOWN
    assert known.insert(signed(capacity=2, sequence=NOW + 1), NOW) is Verdict.ACCEPTED
    assert known.records(NOW)[PEER.peer_id].capacity == 2
    assert known.record_of(PEER.peer_id, NOW + 120_000) is None
    assert known.expire(NOW + 120_000) == {PEER.peer_id}
    assert known.records(NOW) == {}


def test_this_nodes_own_record_needs_no_roster() -> None:
    assert directory().insert(signed(ME), NOW) is Verdict.ACCEPTED


def tampered() -> Signed:
    good = signed()
    return dataclasses.replace(good, body=good.body.replace(b"native", b"nativf"))


def unsigned() -> Signed:
    return dataclasses.replace(signed(), signature=bytes(64))


def of_another_key() -> Signed:
    return dataclasses.replace(signed(), signer=THIRD.peer_id)


def too_large() -> Signed:
    return dataclasses.replace(signed(), body=bytes(NodeRecord.limit + 1))


def not_a_record() -> Signed:
    body = b"\xc0nonsense"
    signature = PEER.sign(b"finode/NodeRecord/1\0" + body)
    return Signed(body=body, signer=PEER.peer_id, signature=signature)


def names_another() -> Signed:
    return sign(THIRD, record(PEER))


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        (too_large(), Verdict.OVERSIZED),
        (tampered(), Verdict.BAD_SIGNATURE),
        (unsigned(), Verdict.BAD_SIGNATURE),
        (of_another_key(), Verdict.BAD_SIGNATURE),
        (not_a_record(), Verdict.MALFORMED),
        (names_another(), Verdict.PEER_MISMATCH),
        (signed(federation="other"), Verdict.WRONG_FEDERATION),
        (signed(STRANGER), Verdict.NOT_ON_ROSTER),
        (signed(organization="Clinic"), Verdict.WRONG_ORGANIZATION),
        (signed(issued_ms=NOW - 9, expires_ms=NOW), Verdict.EXPIRED),
        (signed(issued_ms=NOW + SKEW_MS + 1, expires_ms=NOW + SKEW_MS + 2), Verdict.FROM_THE_FUTURE),
        (signed(expires_ms=NOW + MAX_LIFETIME_MS + 1), Verdict.LIVES_TOO_LONG),
        (signed(sequence=NOW - 1), Verdict.REPLAYED),
        (signed(capacity=5), Verdict.CONTRADICTORY),
    ],
    ids=lambda value: value.value if isinstance(value, Verdict) else "",
)
def test_a_bad_record_is_dropped_for_its_reason(wrong: Signed, verdict: Verdict) -> None:
    known = directory()
    assert known.insert(signed(), NOW) is Verdict.ACCEPTED
    assert known.insert(wrong, NOW) is verdict
    assert not verdict.is_good
    assert known.records(NOW) == {PEER.peer_id: record()}


def test_an_old_record_stays_dropped_after_the_new_one_has_expired() -> None:
    known = directory()
    known.insert(signed(sequence=NOW + 5, expires_ms=NOW + 10), NOW)
    known.expire(NOW + 10)
    assert known.insert(signed(), NOW + 10) is Verdict.REPLAYED


def test_an_open_federation_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finode.net.directory.MAX_RECORDS", 2)
    known = Directory(ME.peer_id, "finode", Roster(None))
    assert known.insert(signed(PEER, organization="Any"), NOW) is Verdict.ACCEPTED
    assert known.insert(signed(THIRD), NOW) is Verdict.ACCEPTED
    assert known.insert(signed(STRANGER), NOW) is Verdict.FULL
    assert known.insert(signed(THIRD, sequence=NOW + 1), NOW) is Verdict.ACCEPTED
    assert MAX_RECORDS > 1000


def test_every_bad_verdict_has_its_price_or_its_excuse() -> None:
    excused = {Verdict.NOT_ON_ROSTER, Verdict.WRONG_ORGANIZATION, Verdict.FULL, Verdict.CONTRADICTORY}
    assert {verdict for verdict in Verdict if not verdict.is_good} == set(FAULT_OF) | excused
    assert not excused & set(FAULT_OF)


def test_a_peer_taken_off_the_roster_loses_its_record() -> None:
    peers: dict[PeerId, str] = {PEER.peer_id: "Lab"}
    roster = Roster(NO_FILE, peers)
    known = Directory(ME.peer_id, "finode", roster)
    known.insert(signed(), NOW)
    known.insert(signed(ME), NOW)
    roster._peers.clear()
    known.drop_unaccepted()
    assert set(known.records(NOW)) == {ME.peer_id}


def test_a_sync_brings_each_side_what_is_newer_at_the_other() -> None:
    ours, theirs = directory(), directory()
    ours.insert(signed(PEER, sequence=NOW + 1), NOW)
    theirs.insert(signed(PEER), NOW)
    theirs.insert(signed(THIRD), NOW)
    answer = ours.answer(theirs.have())
    assert [envelope.signer for envelope in answer.records] == [PEER.peer_id]
    assert answer.wanted == (THIRD.peer_id,)
    for envelope in answer.records:
        assert theirs.insert(envelope, NOW) is Verdict.ACCEPTED
    for envelope in theirs.wanted(answer).records:
        assert ours.insert(envelope, NOW) is Verdict.ACCEPTED
    assert ours.records(NOW) == theirs.records(NOW)
    assert ours.answer(theirs.have()).records == ()


def test_nobody_is_asked_for_records_that_would_be_dropped() -> None:
    assert directory().answer(DirectorySync(have=((STRANGER.peer_id, 1),))).wanted == ()


def test_a_writer_goes_up_across_restarts_and_clocks() -> None:
    def writer() -> RecordWriter:
        return RecordWriter(ME, federation="finode", organization="Org", lifetime_s=120)

    offer = Offer(roles=(Role.DEALER,), capacity=3, engines=("native",), dealer_price=7)
    known = directory()
    first = writer()
    for now in (NOW, NOW, NOW - 50):
        envelope = first.write(offer, addresses=("/ip4/192.0.2.1/tcp/1",), versions=(1,), now_ms=now)
        assert known.insert(envelope, now) is Verdict.ACCEPTED
    assert known.records(NOW)[ME.peer_id].dealer_price == 7
    restarted = writer()
    assert known.insert(restarted.write(offer, addresses=(), versions=(1,), now_ms=NOW + 9), NOW) is Verdict.ACCEPTED
    behind = writer()
    behind.skip_to(NOW + 9)
    assert known.insert(behind.write(offer, addresses=(), versions=(1,), now_ms=NOW - 9), NOW) is Verdict.ACCEPTED


def test_gossip_carries_the_envelope() -> None:
    assert from_gossip(to_gossip(signed())) == signed()
    with pytest.raises(WireError):
        from_gossip(b"\xc1garbage")
