"""What every member checks, whatever its role, and what an owner consents to; each rule with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from finode.committee.consent import MemoryQuotas, Objection, OwnerPolicy, day_of
from finode.committee.organizations import join_names, organization_key, split_names
from finode.committee.rules import CLOCK_SKEW_MS, LONGEST_LIFETIME_MS, objection
from finode.config import OwnerSection, Role
from finode.wire.committee import RefusalReason, Reveal, Terms
from tests.committee.conftest import NOW, World, hashed

MEMBERS = ("acme", "beta", "corp", "dune")  # two parties, the dealer, an owner


def check(world: World, name: str, terms: Terms, *, now_ms: int = NOW, **view: Any) -> Objection | None:
    return objection(terms, terms.querier, world.view(name, **view), now_ms)


def reason(found: Objection | None) -> RefusalReason | None:
    return None if found is None else found.reason


@pytest.mark.parametrize("member", MEMBERS)
def test_good_terms_are_accepted_by_every_member(world: World, member: str) -> None:
    assert check(world, member, world.terms()) is None


ORGANIZATION_CASES: dict[str, Callable[[World], Terms]] = {
    "two parties": lambda world: world.terms(parties=("acme", "acme/2"), dealer="corp", owners=("dune",)),
    "three parties": lambda world: world.terms(parties=("acme", "beta", "acme/2")),
    "dealer and party": lambda world: world.terms(dealer="beta/2"),
    "dealer and querier": lambda world: world.terms(dealer="asker/2"),
}


@pytest.mark.parametrize("case", ORGANIZATION_CASES)
def test_every_member_refuses_organizations_that_must_differ(world: World, case: str) -> None:
    terms = ORGANIZATION_CASES[case](world)

    for peer in terms.members():
        found = check(world, world.name(peer), terms)
        assert reason(found) is RefusalReason.SAME_ORGANIZATION, world.name(peer)
        assert found is not None
        assert found.subject in (*terms.parties, terms.dealer)


def test_organization_names_that_look_alike_are_one(world: World) -> None:
    names = {world.peer("acme"): "Acme ", world.peer("beta"): "ＡＣＭＥ"}

    found = check(
        world, "dune", world.terms(), organization_of=lambda peer: names.get(peer, world.organization_of(peer))
    )

    assert reason(found) is RefusalReason.SAME_ORGANIZATION


def test_an_owner_may_share_an_organization_with_anybody(world: World) -> None:
    terms = world.terms(owners=("acme/2", "corp/2", "asker/2", "dune"))

    assert check(world, "dune", terms) is None


@pytest.mark.parametrize("stranger", ["acme", "beta", "corp", "dune", "asker"])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_refuses_a_peer_that_its_roster_lacks(world: World, member: str, stranger: str) -> None:
    terms = world.terms()
    if stranger == member:
        return
    unknown = world.peer(stranger)

    unaccepted = check(world, member, terms, accepts=lambda peer: peer != unknown)
    nameless = check(
        world, member, terms, organization_of=lambda peer: "" if peer == unknown else world.organization_of(peer)
    )

    for found in (unaccepted, nameless):
        assert found is not None
        assert (found.reason, found.subject) == (RefusalReason.NOT_ON_ROSTER, unknown)


@pytest.mark.parametrize("stranger", ["acme", "beta", "corp", "dune", "asker"])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_refuses_a_peer_against_whom_there_is_a_proof(world: World, member: str, stranger: str) -> None:
    condemned = world.peer(stranger)

    found = check(world, member, world.terms(), condemned=frozenset({condemned}))

    assert found is not None
    assert (found.reason, found.subject) == (RefusalReason.CONDEMNED, condemned)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_checks_the_frame_of_the_terms(world: World, member: str) -> None:
    terms = world.terms()
    view = world.view(member)

    def refused(sender: str = "asker", now_ms: int = NOW, **changes: Any) -> RefusalReason | None:
        return reason(objection(dataclasses.replace(terms, **changes), world.peer(sender), view, now_ms))

    assert refused(sender="beta") is RefusalReason.BAD_TERMS
    assert refused(federation="other") is RefusalReason.WRONG_FEDERATION
    assert refused(profile="leisure") is RefusalReason.BAD_TERMS
    assert refused(now_ms=terms.expires_ms) is RefusalReason.EXPIRED
    assert refused(now_ms=terms.expires_ms - 1) is None
    assert refused(now_ms=NOW - CLOCK_SKEW_MS) is None
    assert refused(now_ms=NOW - CLOCK_SKEW_MS - 1) is RefusalReason.BAD_TERMS
    assert refused(expires_ms=NOW + LONGEST_LIFETIME_MS) is None
    assert refused(expires_ms=NOW + LONGEST_LIFETIME_MS + 1) is RefusalReason.BAD_TERMS
    assert reason(check(world, member, terms, shutting_down=True)) is RefusalReason.SHUTTING_DOWN


def test_a_peer_without_a_seat_refuses(world: World) -> None:
    assert reason(check(world, "eden", world.terms())) is RefusalReason.BAD_TERMS


@pytest.mark.parametrize(("member", "role"), [("acme", Role.PARTY), ("corp", Role.DEALER), ("dune", Role.OWNER)])
def test_a_role_that_is_not_offered(world: World, member: str, role: Role) -> None:
    found = check(world, member, world.terms(), roles=frozenset(Role) - {role})

    assert found is not None
    assert (found.reason, found.subject) == (RefusalReason.ROLE_NOT_OFFERED, role)


SEAT_CASES: list[tuple[dict[str, Any], RefusalReason]] = [
    ({"engines": ("crypten",)}, RefusalReason.UNSUPPORTED_ENGINE),
    ({"max_batch": 63}, RefusalReason.BATCH_TOO_LARGE),
    ({"party_price": 1, "dealer_price": 1}, RefusalReason.PRICE_TOO_LOW),
    ({"capacity": 2, "in_use": 2}, RefusalReason.BUSY),
]


@pytest.mark.parametrize(("view", "expected"), SEAT_CASES)
@pytest.mark.parametrize("member", ["acme", "corp"])
def test_those_who_compute_check_their_own_seat(
    world: World, member: str, view: dict[str, Any], expected: RefusalReason
) -> None:
    assert reason(check(world, member, world.terms(), **view)) is expected
    assert check(world, "dune", world.terms(), **view) is None  # an owner alone takes no part in the computation


def test_a_full_disk_matters_to_a_party_alone(world: World) -> None:
    assert reason(check(world, "acme", world.terms(), storage_full=True)) is RefusalReason.STORAGE_FULL
    assert check(world, "corp", world.terms(), storage_full=True) is None


def owner_check(world: World, terms: Terms, policy: OwnerPolicy, **view: Any) -> Objection | None:
    return check(world, "dune", terms, policy=policy, **view)


OWNER_CASES: list[tuple[dict[str, Any], RefusalReason | None, str]] = [
    ({"allow_parties": ("acme", "beta")}, None, ""),
    ({"allow_parties": ("ACME ", "Beta")}, None, ""),
    ({"allow_parties": ("acme",)}, RefusalReason.PARTY_NOT_ALLOWED, "beta"),
    ({"allow_dealers": ("corp",)}, None, ""),
    ({"allow_dealers": ("acme",)}, RefusalReason.DEALER_NOT_ALLOWED, "corp"),
    ({"require_party": ("zeta", "beta")}, None, ""),
    ({"allow_queriers": ("asker",)}, None, ""),
    ({"allow_queriers": ("acme",)}, RefusalReason.QUERIER_NOT_ALLOWED, "asker"),
    ({"queries_per_day": 256}, None, ""),
    ({"queries_per_day": 255}, RefusalReason.QUERY_LIMIT, "asker"),
    ({"queries_per_day": 0}, RefusalReason.QUERY_LIMIT, "asker"),
]


@pytest.mark.parametrize(("rules", "expected", "subject"), OWNER_CASES)
def test_each_rule_of_an_owner(
    world: World, rules: dict[str, Any], expected: RefusalReason | None, subject: str
) -> None:
    found = owner_check(world, world.terms(), OwnerPolicy(**rules))

    assert reason(found) is expected
    if found is not None:
        assert found.subject == world.peer(subject)
        assert found.detail


def test_the_required_party_is_named(world: World) -> None:
    found = owner_check(world, world.terms(), OwnerPolicy(require_party=("zeta", "Eta Lab")))

    assert found is not None
    assert found.reason is RefusalReason.REQUIRED_PARTY_MISSING
    assert split_names(found.subject) == {"zeta", "Eta Lab"}


@pytest.mark.parametrize("reveal", Reveal)
@pytest.mark.parametrize("most", Reveal)
def test_the_most_that_may_be_revealed(world: World, reveal: Reveal, most: Reveal) -> None:
    order = [Reveal.LABEL, Reveal.TOP1, Reveal.PROBABILITIES]

    found = owner_check(world, world.terms(reveal=reveal), OwnerPolicy(reveal_at_most=most))

    allowed = order.index(reveal) <= order.index(most)
    assert reason(found) is (None if allowed else RefusalReason.REVEALS_TOO_MUCH)


def test_an_owner_always_allows_itself(world: World) -> None:
    nobody = OwnerPolicy(
        allow_parties=("zeta",), allow_dealers=("zeta",), require_party=("zeta",), allow_queriers=("zeta",)
    )
    alone = dataclasses.replace(nobody, allow_parties=("beta",), allow_dealers=("corp",), queries_per_day=0)

    party_and_querier = world.terms(parties=("dune", "beta"), querier="dune")
    dealer = world.terms(dealer="dune", parties=("zeta", "acme"))

    assert owner_check(world, party_and_querier, alone) is None
    assert reason(owner_check(world, party_and_querier, nobody)) is RefusalReason.PARTY_NOT_ALLOWED
    permissive = dataclasses.replace(nobody, allow_parties=(), allow_queriers=())
    assert owner_check(world, dealer, permissive) is None


MODEL_CASES: list[tuple[dict[str, Any], RefusalReason]] = [
    ({"version": hashed("other")}, RefusalReason.UNKNOWN_MODEL),
    ({"plan_digest": hashed("other")}, RefusalReason.UNKNOWN_MODEL),
    ({"service": "xray"}, RefusalReason.UNKNOWN_SERVICE),
    ({"service_digest": hashed("other")}, RefusalReason.UNKNOWN_SERVICE),
    ({"classes": 4}, RefusalReason.BAD_TERMS),
    ({"input_shape": (8, 8)}, RefusalReason.BAD_TERMS),
    ({"engines": ("crypten",)}, RefusalReason.UNSUPPORTED_ENGINE),
    ({"price": 1}, RefusalReason.PRICE_TOO_LOW),
]


@pytest.mark.parametrize(("own", "expected"), MODEL_CASES)
def test_an_owner_knows_its_model(world: World, own: dict[str, Any], expected: RefusalReason) -> None:
    model = world.own_model("dune#0", **own)

    found = check(world, "dune", world.terms(), models={model.version: model})

    assert reason(found) is expected
    assert check(world, "acme", world.terms(), models={}) is None


def test_an_owner_checks_only_its_own_models(world: World) -> None:
    terms = world.terms(owners=("dune", "eden"))

    assert check(world, "dune", terms) is None
    assert check(world, "eden", terms) is None


def test_the_days_limit_is_of_the_organization_and_of_the_day(world: World) -> None:
    policy, quotas = OwnerPolicy(queries_per_day=256), MemoryQuotas()
    terms, of_colleague, of_other = world.terms(), world.terms(querier="asker/2"), world.terms(querier="eden")

    def found(terms: Terms, now_ms: int = NOW) -> RefusalReason | None:
        return reason(owner_check(world, terms, policy, quotas=quotas, now_ms=now_ms))

    policy.charge(terms, owner=world.peer("dune"), organization_of=world.organization_of, quotas=quotas, now_ms=NOW)

    assert found(terms) is RefusalReason.QUERY_LIMIT
    assert found(of_colleague) is RefusalReason.QUERY_LIMIT
    assert found(of_other) is None
    tomorrow = NOW + 24 * 3600 * 1000
    later = world.terms(created_ms=tomorrow, expires_ms=tomorrow + 1000)
    assert found(later, tomorrow) is None
    assert quotas.used("asker", day_of(tomorrow)) == 0


def test_an_owners_own_queries_are_not_counted(world: World) -> None:
    quotas = MemoryQuotas()

    OwnerPolicy().charge(
        world.terms(querier="dune"),
        owner=world.peer("dune"),
        organization_of=world.organization_of,
        quotas=quotas,
        now_ms=NOW,
    )

    assert quotas.used("dune", day_of(NOW)) == 0


def test_the_policy_is_that_of_the_settings() -> None:
    section = OwnerSection(
        allow_parties=("a",),
        allow_dealers=("b",),
        require_party=("c",),
        allow_queriers=("d",),
        queries_per_day=5,
        reveal_at_most="label",
    )

    assert OwnerPolicy.of(section) == OwnerPolicy(
        allow_parties=("a",),
        allow_dealers=("b",),
        require_party=("c",),
        allow_queriers=("d",),
        queries_per_day=5,
        reveal_at_most=Reveal.LABEL,
    )


def test_names_in_a_subject_come_back_as_far_as_they_fit() -> None:
    assert split_names(join_names(("Acme, Inc", "beta"))) == {"Acme, Inc", "beta"}
    assert split_names(join_names(tuple(f"{index:064}" for index in range(9)))) == {
        f"{index:064}" for index in range(3)
    }
    assert organization_key("  Straße ") == organization_key("STRASSE")


def test_days_are_utc() -> None:
    assert day_of(1_790_035_199_999) == "2026-09-21"
    assert day_of(1_790_035_200_000) == "2026-09-22"
