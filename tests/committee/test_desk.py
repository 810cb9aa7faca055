"""A member's desk: messages in, answers out, the book kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from finode.committee.book import CommitteeBook
from finode.committee.desk import MOST_OF_ONE_QUERIER, Desk, Outcome
from finode.committee.rules import MemberView
from finode.errors import LocalProtocolError, PeerRefused, RemoteProtocolError
from finode.wire.committee import Accepted, Dissolve, Propose, RefusalReason, Refuse, Seal, Sealed, Terms
from finode.wire.control import Ping
from tests.committee.conftest import NOW, World


class Office:
    """The desk of "acme", a party."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.book = CommitteeBook(4)
        self.view: MemberView = world.view("acme")
        self.desk = Desk(world.identity("acme"), lambda: self.view, self.book, **options)

    def propose(self, terms: Terms, now_ms: int = NOW) -> Outcome:
        return self.desk.receive(terms.querier, Propose(terms=terms), now_ms)

    def seal(self, terms: Terms, now_ms: int = NOW) -> Outcome:
        seal = Seal(committee=terms.committee_id(), accepts=self.world.accepts(terms))
        return self.desk.receive(terms.querier, seal, now_ms)

    def dissolve(self, terms: Terms) -> Outcome:
        return self.desk.receive(terms.querier, Dissolve(committee=terms.committee_id(), reason=""), NOW)


@pytest.fixture
def office(world: World) -> Office:
    return Office(world)


def test_from_proposal_to_session_to_dissolution(world: World, office: Office) -> None:
    terms = world.terms()

    assert isinstance(office.propose(terms).reply, Accepted)
    with pytest.raises(PeerRefused):
        office.book.get(terms.committee_id(), NOW)
    assert office.seal(terms).reply == Sealed(committee=terms.committee_id())
    assert office.book.begin(terms.committee_id(), b"one", 1, NOW).terms == terms
    outcome = office.dissolve(terms)

    assert [end.committee for end in outcome.ended] == [terms.committee_id()]
    assert len(office.book) == 0
    assert list(office.desk) == []
    assert office.dissolve(terms) == Outcome()


def test_each_proposal_meets_the_view_of_its_moment(world: World, office: Office) -> None:
    terms = world.terms()
    office.view = dataclasses.replace(office.view, in_use=office.view.capacity)

    refused = office.propose(terms).reply
    office.view = dataclasses.replace(office.view, in_use=0)

    assert isinstance(refused, Refuse)
    assert refused.reason is RefusalReason.BUSY
    assert isinstance(office.propose(terms).reply, Accepted)


def test_a_seal_without_an_acceptance_is_refused(world: World, office: Office) -> None:
    reply = office.seal(world.terms()).reply

    assert isinstance(reply, Refuse)
    assert reply.reason is RefusalReason.NOT_SEALED


def test_an_acceptance_that_is_not_sealed_lapses(world: World) -> None:
    office, terms = Office(world, seal_wait_ms=1000), world.terms()
    office.propose(terms)

    assert office.desk.tick(NOW + 999) == Outcome()
    assert [end.reason for end in office.desk.tick(NOW + 1000).ended] == ["not sealed in time"]
    assert isinstance(office.seal(terms, NOW + 1000).reply, Refuse)


def test_a_sealed_committee_lasts_until_it_expires(world: World) -> None:
    office, terms = Office(world, seal_wait_ms=1000), world.terms()
    office.propose(terms)
    office.seal(terms)

    assert office.desk.tick(terms.expires_ms - 1) == Outcome()
    assert [end.reason for end in office.desk.tick(terms.expires_ms).ended] == ["expired"]
    assert len(office.book) == 0


def test_a_lost_member_ends_its_committees_and_the_querier_is_told(world: World, office: Office) -> None:
    first, second = world.terms(), world.terms(parties=("acme", "eden"))
    for terms in (first, second):
        office.propose(terms)
        office.seal(terms)

    outcome = office.desk.abort_all("lost", NOW, member=world.peer("beta"))

    assert [end.committee for end in outcome.ended] == [first.committee_id()]
    assert [notice.peer for notice in outcome.notices] == [first.querier]
    assert [committee.id for committee in office.book] == [second.committee_id()]
    assert len(office.desk.abort_all("shutting down", NOW).ended) == 1
    assert office.desk.abort(second.committee_id(), "again", NOW) == Outcome()


def test_one_querier_cannot_fill_the_desk(world: World, office: Office) -> None:
    for index in range(MOST_OF_ONE_QUERIER):
        assert isinstance(office.propose(world.terms(nonce=bytes([index] * 16))).reply, Accepted)

    crowded = office.propose(world.terms(nonce=bytes([255] * 16))).reply

    assert isinstance(crowded, Refuse)
    assert crowded.reason is RefusalReason.BUSY
    assert isinstance(office.propose(world.terms(querier="eden")).reply, Accepted)


def test_a_message_of_another_kind_or_peer_changes_nothing(world: World, office: Office) -> None:
    terms = world.terms()
    office.propose(terms)

    with pytest.raises(RemoteProtocolError):
        office.desk.receive(terms.querier, Ping(number=1), NOW)
    with pytest.raises(RemoteProtocolError):
        office.desk.receive(world.peer("beta"), Propose(terms=terms), NOW)

    assert isinstance(office.seal(terms).reply, Sealed)


def test_a_proposal_that_fails_here_leaves_nothing_behind(world: World, office: Office) -> None:
    office.view = world.view("beta")

    with pytest.raises(LocalProtocolError):
        office.propose(world.terms())

    assert list(office.desk) == []
    assert office.desk.tick(NOW + 10**9) == Outcome()


def test_terms_sent_on_by_another_do_not_take_the_queriers_place(world: World, office: Office) -> None:
    terms = world.terms()

    reply = office.desk.receive(world.peer("beta"), Propose(terms=terms), NOW).reply

    assert isinstance(reply, Refuse)
    assert isinstance(office.propose(terms).reply, Accepted)


def test_terms_that_ended_are_not_agreed_a_second_time(world: World, office: Office) -> None:
    """Or the owner's old signature would bring a fresh quota again and again, of which the owner knows nothing."""
    terms = world.terms()
    office.propose(terms)
    office.seal(terms)
    office.dissolve(terms)

    again = office.propose(terms).reply
    sealed = office.seal(terms).reply

    assert isinstance(again, Refuse)
    assert again.reason is RefusalReason.EXPIRED
    assert isinstance(sealed, Refuse)
    assert isinstance(office.propose(dataclasses.replace(terms, nonce=bytes([9] * 16))).reply, Accepted)


def test_terms_made_before_the_node_started_are_refused(world: World) -> None:
    terms = world.terms()
    office = Office(world, since_ms=terms.created_ms + 1)

    reply = office.propose(terms).reply

    assert isinstance(reply, Refuse)
    assert reply.reason is RefusalReason.EXPIRED
    assert isinstance(office.propose(dataclasses.replace(terms, created_ms=terms.created_ms + 1)).reply, Accepted)
