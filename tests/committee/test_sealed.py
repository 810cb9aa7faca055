"""A seal proves that every member signed these terms, or it is nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finode.committee.sealed import SealedCommittee, verify_seal
from finode.errors import BadSignature, MalformedMessage, WireError
from finode.wire.committee import Accept, Dissolve, Seal
from finode.wire.signed import Signed, sign
from tests.committee.conftest import NOW, World


def test_a_complete_seal_is_a_committee(world: World) -> None:
    terms = world.terms()
    deployment = terms.deployment_id(terms.models[0])
    accepts = (*world.accepts(terms)[1:], world.accept("acme", terms, holds=(deployment,)))

    committee = verify_seal(terms, Seal(committee=terms.committee_id(), accepts=accepts))

    assert committee.id == terms.committee_id()
    assert committee.holds[world.peer("acme")] == {deployment}
    assert committee.holds[world.peer("beta")] == frozenset()
    assert (committee.party_index(world.peer("beta")), committee.party_index(world.peer("corp"))) == (1, -1)
    assert committee.seal().accepts == accepts
    assert (committee.expired(NOW), committee.expired(terms.expires_ms)) == (False, True)


def test_a_peer_of_several_seats_signs_once(world: World) -> None:
    terms = world.terms(owners=("acme", "corp"))

    committee = world.sealed(terms)

    assert len(committee.accepts) == 3


@pytest.mark.parametrize("missing", range(4))
def test_a_missing_signature(world: World, missing: int) -> None:
    terms = world.terms()
    accepts = [accept for index, accept in enumerate(world.accepts(terms)) if index != missing]

    with pytest.raises(MalformedMessage, match=f"{terms.members()[missing]} is missing"):
        SealedCommittee(terms, tuple(accepts))


def test_a_duplicate_signature(world: World) -> None:
    terms = world.terms()
    accepts = world.accepts(terms)

    with pytest.raises(MalformedMessage, match="accepted twice"):
        SealedCommittee(terms, (*accepts, accepts[0]))


def test_a_foreign_signature(world: World) -> None:
    terms = world.terms()

    with pytest.raises(MalformedMessage, match="no member"):
        SealedCommittee(terms, (*world.accepts(terms), world.accept("stranger", terms)))


def test_a_signature_for_other_terms(world: World) -> None:
    terms = world.terms()
    other = dataclasses.replace(terms, nonce=bytes([1] * 16))

    with pytest.raises(MalformedMessage, match="other terms"):
        SealedCommittee(terms, (world.accept("acme", other), *world.accepts(terms)[1:]))
    with pytest.raises(MalformedMessage, match="other terms"):
        verify_seal(terms, Seal(committee=other.committee_id(), accepts=world.accepts(terms)))


def test_a_signature_by_another_key(world: World) -> None:
    terms = world.terms()
    forged = dataclasses.replace(world.accept("stranger", terms), signer=world.peer("acme"))

    with pytest.raises(BadSignature):
        SealedCommittee(terms, (forged, *world.accepts(terms)[1:]))


def test_a_signature_in_anothers_name(world: World) -> None:
    terms = world.terms()
    posing = world.accept("beta", terms, peer=world.peer("acme"))

    with pytest.raises(BadSignature, match="in the name of"):
        SealedCommittee(terms, (posing, *world.accepts(terms)[1:]))


def test_a_signature_on_another_kind_of_statement(world: World) -> None:
    terms = world.terms()
    statement = sign(world.identity("acme"), Dissolve(committee=terms.committee_id(), reason=""))
    accept = Accept(committee=terms.committee_id(), peer=world.peer("acme"))
    moved = dataclasses.replace(statement, body=accept.encode())

    for signed in (statement, moved):
        with pytest.raises(WireError):
            SealedCommittee(terms, (signed, *world.accepts(terms)[1:]))


def test_a_deployment_that_is_not_in_the_terms(world: World) -> None:
    terms = world.terms()

    with pytest.raises(MalformedMessage, match="not in the terms"):
        SealedCommittee(terms, (world.accept("acme", terms, holds=(bytes(32),)), *world.accepts(terms)[1:]))


@given(position=st.integers(0, 3), bit=st.integers(0, 64 * 8 - 1))
def test_no_bit_of_a_signature_can_be_changed(position: int, bit: int) -> None:
    world = World()
    terms = world.terms()
    accepts = list(world.accepts(terms))
    signature = bytearray(accepts[position].signature)
    signature[bit // 8] ^= 1 << bit % 8
    accepts[position] = Signed(body=accepts[position].body, signer=accepts[position].signer, signature=bytes(signature))

    with pytest.raises(BadSignature):
        SealedCommittee(terms, tuple(accepts))
