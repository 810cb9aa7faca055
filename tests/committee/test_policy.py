"""The querier's choice: rules always kept, preferences in their order, a clear word when nothing fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finode.committee.matching import seat
from finode.committee.organizations import organization_key, shared_organization
from finode.committee.policy import OTHER_SPEC, SURPLUS, Constraints, Selection, candidate, choose
from finode.config import Role
from finode.errors import CommitteeError, TooFewParties, UnknownService
from finode.identity import PeerId
from finode.wire.directory import DeploymentRef, InputSpec, NodeRecord, ServiceSpec
from tests.committee.conftest import ALL_ROLES, NOW, SERVICE, World

NAMES = ("acme", "beta", "corp", "dune", "eden")
OTHER = ServiceSpec(name="digits", input=InputSpec(shape=(1, 8, 8)), classes=("zero", "one"))


def names(world: World, selection: Selection) -> tuple[set[str], str]:
    return {world.name(party.peer) for party in selection.parties}, world.name(selection.dealer.peer)


def test_the_choice_is_terms_that_members_accept(world: World) -> None:
    candidates = world.federation(NAMES, acme={"party_price": 3, "dealer_price": 3}, beta={"party_price": 5})
    request = world.request(parties=3)

    selection = choose(candidates, request)
    terms = selection.terms(request, now_ms=NOW, nonce=bytes(16))

    assert shared_organization(terms, world.organization_of) is None
    assert len(terms.parties) == 3
    assert set(terms.owners()) == {world.peer(name) for name in NAMES}
    assert terms.party_price >= max(party.party_price for party in selection.parties)
    assert terms.dealer_price == selection.dealer.dealer_price
    assert (terms.created_ms, terms.expires_ms) == (NOW, NOW + request.lifetime_ms)
    assert terms.service_digest == SERVICE.digest()


def test_near_parties_first_then_standing_then_price(world: World) -> None:
    rtt = {"acme": 90.0, "beta": 2.0, "corp": 4.0, "dune": 41.0, "eden": 44.0}
    changes: dict[str, dict[str, Any]] = {name: {"rtt_ms": value} for name, value in rtt.items()}
    changes["dune"]["standing"] = -1.0

    by_rtt = names(world, choose(world.federation(NAMES, **changes), world.request()))
    three = names(world, choose(world.federation(NAMES, **changes), world.request(parties=3)))

    assert by_rtt == ({"beta", "corp"}, "eden")  # the same step as dune, in better standing
    assert three == ({"beta", "corp", "eden"}, "dune")


def test_the_dearer_of_equals_is_left(world: World) -> None:
    chosen = choose(
        world.federation(("acme", "beta", "corp", "dune"), acme={"party_price": 1}), world.request(parties=3)
    )

    assert names(world, chosen) == ({"beta", "corp", "dune"}, "acme")


def test_an_unmeasured_peer_comes_last(world: World) -> None:
    chosen = choose(world.federation(("acme", "beta", "corp"), beta={"rtt_ms": None}), world.request())

    assert names(world, chosen) == ({"acme", "corp"}, "beta")


def test_the_only_dealer_is_not_spent_as_a_party(world: World) -> None:
    parties = {"rtt_ms": 80.0, "roles": ALL_ROLES - {Role.DEALER}}

    chosen = choose(world.federation(("acme", "beta", "corp"), beta=parties, corp=parties), world.request())

    assert names(world, chosen) == ({"beta", "corp"}, "acme")


def test_the_dealer_is_not_of_the_queriers_organization(world: World) -> None:
    candidates = world.federation(("acme", "beta", "asker/2"))

    with pytest.raises(TooFewParties, match="1 of the querier's organization"):
        choose(candidates, world.request(parties=3))
    assert names(world, choose(candidates, world.request()))[1] != "asker/2"


def test_one_party_of_an_organization(world: World) -> None:
    chosen = choose(world.federation(("acme", "acme/2", "beta", "corp", "corp/2")), world.request())

    organizations = [world.organization_of(party.peer) for party in (*chosen.parties, chosen.dealer)]
    assert len(set(organizations)) == 3


def test_the_querier_is_a_party_only_if_allowed_and_needed(world: World) -> None:
    own = {"asker": {"rtt_ms": 0.0}}
    three = world.federation(("acme", "beta", "asker"), **own)
    four = world.federation(("acme", "beta", "corp", "asker"), **own)

    with pytest.raises(TooFewParties, match="the querier itself"):
        choose(three, world.request())
    assert "asker" not in names(world, choose(four, world.request(self_party=True)))[0]
    assert "asker" in names(world, choose(three, world.request(self_party=True)))[0]


def test_those_who_keep_the_deployments_first(world: World) -> None:
    models = [world.offer(f"{name}#0").version for name in NAMES]
    kept = [
        DeploymentRef(model=model, parties=(world.peer("eden"), world.peer("acme")), dealer=world.peer("beta"))
        for model in models[:3]
    ]
    few = [DeploymentRef(model=models[0], parties=(world.peer("beta"), world.peer("corp")), dealer=world.peer("dune"))]
    changes: dict[str, dict[str, Any]] = {
        "acme": {"deployments": tuple(kept)},
        "eden": {"deployments": tuple(kept), "rtt_ms": 70.0},
        "beta": {"deployments": tuple(few)},
        "corp": {"deployments": tuple(few)},
    }

    chosen = choose(world.federation(NAMES, **changes), world.request())

    assert [world.name(party.peer) for party in chosen.parties] == ["eden", "acme"]  # in the order of the deployment
    assert world.name(chosen.dealer.peer) == "beta"
    assert chosen.kept == 3
    assert choose(world.federation(NAMES, **changes), world.request(parties=3)).kept == 0


@pytest.mark.parametrize("gone", ["acme", "eden", "beta"])
def test_a_deployment_of_which_a_member_is_gone_counts_for_nothing(world: World, gone: str) -> None:
    ref = DeploymentRef(
        model=world.offer("dune#0").version,
        parties=(world.peer("eden"), world.peer("acme")),
        dealer=world.peer("beta"),
    )
    changes = {name: {"deployments": (ref,)} for name in ("acme", "eden")}

    chosen = choose(world.federation(NAMES, **changes), world.request(exclude=frozenset({gone})))

    assert chosen.kept == 0
    assert gone not in {*names(world, chosen)[0], names(world, chosen)[1]}


def test_a_deployment_that_one_party_alone_claims_counts_for_nothing(world: World) -> None:
    ref = DeploymentRef(
        model=world.offer("dune#0").version, parties=(world.peer("eden"), world.peer("acme")), dealer=world.peer("beta")
    )

    assert choose(world.federation(NAMES, eden={"deployments": (ref,)}), world.request()).kept == 0


def test_the_specs_of_most_organizations_count(world: World) -> None:
    dissent = {"services": (OTHER,)}
    candidates = world.federation(("acme", "beta", "corp"), corp=dissent)
    candidates.append(world.candidate("corp/2", owned=9, services=(OTHER,)))

    chosen = choose(candidates, world.request())

    assert chosen.spec == SERVICE
    assert {world.name(model.owner) for model in chosen.models} == {"acme", "beta"}
    assert [one.kind for one in chosen.left_out] == [OTHER_SPEC] * 10


def test_a_tie_of_specs_is_broken_the_same_way_by_all(world: World) -> None:
    candidates = world.federation(
        ("acme", "beta", "corp", "dune"), corp={"services": (OTHER,)}, dune={"services": (OTHER,)}
    )

    chosen = {choose(order, world.request()).spec.digest() for order in itertools.permutations(candidates)}

    assert chosen == {min(SERVICE.digest(), OTHER.digest())}


def test_at_most_64_models_and_every_owner_is_heard(world: World) -> None:
    candidates = [world.candidate("acme", owned=64), *world.federation(("beta", "corp"))]

    chosen = choose(candidates, world.request())

    assert len(chosen.models) == 64
    assert {world.name(model.owner) for model in chosen.models} == {"acme", "beta", "corp"}
    assert {(world.name(one.owner), one.kind) for one in chosen.left_out} == {("acme", SURPLUS)}
    assert len(chosen.models) + len(chosen.left_out) == sum(len(owner.models) for owner in candidates)


def test_one_version_is_asked_once(world: World) -> None:
    same = world.offer("shared")
    candidates = world.federation(NAMES, acme={"models": (same,)}, beta={"models": (same,)})

    assert [model.version for model in choose(candidates, world.request()).models].count(same.version) == 1


def test_an_unknown_service(world: World) -> None:
    with pytest.raises(UnknownService, match="'xray'"):
        choose(world.federation(NAMES), world.request(service="xray"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"organization": ""}, "not on the roster"),
        ({"standing": -60.0}, "of a standing below -50"),
        ({"connected": False}, "disconnected"),
        ({"roles": frozenset({Role.OWNER})}, "not offering the role party"),
        ({"engines": ("crypten",)}, "without the engine native"),
        ({"capacity": 0}, "without capacity"),
    ],
)
def test_too_few_parties_says_why(world: World, changes: dict[str, Any], why: str) -> None:
    candidates = world.federation(("acme", "beta"), beta=changes)

    with pytest.raises(TooFewParties) as refused:
        choose(candidates, world.request())

    assert "eligible are 1 parties of 1 organizations" in refused.value.message
    assert f"1 {why}" in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("by_name", [True, False])
def test_exclusions_are_peers_or_organizations(world: World, by_name: bool) -> None:
    excluded = "Beta" if by_name else world.peer("beta")

    with pytest.raises(TooFewParties, match="1 excluded"):
        choose(world.federation(("acme", "beta", "corp")), world.request(exclude=frozenset({excluded})))


def test_too_few_models_says_why(world: World) -> None:
    candidates = world.federation(
        NAMES, acme={"models": (world.offer("acme#0", engines=("crypten",)),)}, beta={"services": (OTHER,)}
    )
    out = frozenset({(world.peer("corp"), Role.OWNER)})
    refused = frozenset({world.offer("dune#0").version})

    with pytest.raises(CommitteeError) as failed:
        choose(candidates, world.request(min_models=2), Constraints(out=out, models=refused))

    for why in ("without the engine", "with another input", "refused or silent", "refused by its owner"):
        assert f"1 {why}" in failed.value.message


def test_constraints_are_kept(world: World) -> None:
    constraints = Constraints(
        out=frozenset({(world.peer("acme"), Role.PARTY)}), required=(frozenset({"Eden", "zeta"}),)
    )

    parties, dealer = names(world, choose(world.federation(NAMES, eden={"rtt_ms": 80.0}), world.request(), constraints))

    assert "eden" in parties
    assert "acme" not in parties
    assert dealer not in parties


def test_a_candidate_is_its_record(world: World) -> None:
    record = NodeRecord(
        peer=world.peer("acme"),
        federation="test",
        organization="whatever it says",
        roles=(Role.PARTY,),
        addresses=(),
        versions=(1,),
        services=(SERVICE,),
        models=(world.offer("acme#0"),),
        engines=("native",),
        capacity=3,
        party_price=1,
        dealer_price=2,
        deployments=(),
        sequence=1,
        issued_ms=NOW,
        expires_ms=NOW + 1,
    )

    made = candidate(record, organization="acme", connected=False, rtt_ms=2.5, standing=-3.0)

    assert (made.organization, made.connected, made.rtt_ms, made.standing) == ("acme", False, 2.5, -3.0)
    assert (made.roles, made.capacity, made.models) == (frozenset({Role.PARTY}), 3, record.models)


Peers = list[tuple[str, int]]


def peers_with(organizations: Sequence[int], prefix: str) -> list[tuple[PeerId, str]]:
    return [(PeerId(f"{prefix}{index}"), f"org{value}") for index, value in enumerate(organizations)]


def feasible(
    parties: list[tuple[PeerId, str]], dealers: list[tuple[PeerId, str]], count: int, required: list[frozenset[str]]
) -> bool:
    party_organizations = {organization for _, organization in parties}
    return any(
        dealing not in chosen and all(group & set(chosen) for group in required)
        for _, dealing in dealers
        for chosen in itertools.combinations(sorted(party_organizations), count)
    )


@settings(deadline=None)
@given(
    party_organizations=st.lists(st.integers(0, 5), max_size=7),
    dealer_organizations=st.lists(st.integers(0, 5), max_size=4),
    count=st.integers(2, 4),
    required=st.lists(st.frozensets(st.integers(0, 5).map(lambda value: f"org{value}"), min_size=1), max_size=3),
)
def test_a_seating_is_found_exactly_if_there_is_one(
    party_organizations: list[int], dealer_organizations: list[int], count: int, required: list[frozenset[str]]
) -> None:
    parties, dealers = peers_with(party_organizations, "p"), peers_with(dealer_organizations, "d")

    found = seat(parties, dealers, count, required)

    assert (found is not None) == feasible(parties, dealers, count, required)
    if found is not None:
        organizations = [dict(parties)[peer] for peer in found.parties]
        assert len({*organizations, dict(dealers)[found.dealer]}) == count + 1
        assert all(group & set(organizations) for group in required)
        assert list(found.parties) == sorted(found.parties)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_choice_does_not_depend_on_the_order_of_candidates(data: st.DataObject) -> None:
    world = World()
    changes: dict[str, dict[str, Any]] = {
        name: {
            "rtt_ms": data.draw(st.sampled_from([None, 1.0, 2.0, 30.0])),
            "standing": data.draw(st.sampled_from([0.0, -10.0, -60.0])),
            "roles": data.draw(st.frozensets(st.sampled_from(Role))),
        }
        for name in NAMES
    }
    candidates = world.federation(NAMES, **changes)

    def outcome(order: Sequence[Any]) -> object:
        try:
            return choose(order, world.request())
        except (CommitteeError, UnknownService) as error:
            return str(error)

    assert outcome(candidates) == outcome(data.draw(st.permutations(candidates)))


def test_names_are_compared_by_key(world: World) -> None:
    chosen = world.federation(("acme", "beta", "corp"), beta={"organization": "ACME "})

    assert organization_key("ACME ") == "acme"
    with pytest.raises(TooFewParties):
        choose(chosen, world.request())
