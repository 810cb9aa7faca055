"""What an answer goes without, in words, and when a committee is not used again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from finode.committee.agreement import Agreement
from finode.committee.policy import Candidate, Constraints, choose
from finode.committee.replacement import Refusal
from finode.config import Role
from finode.identity import PeerId
from finode.wire.committee import RefusalReason
from tests.committee.conftest import NOW, World

NAMES = ("acme", "beta", "corp", "dune", "eden", "fern")


def agreed(
    world: World,
    candidates: list[Candidate],
    *refusals: Refusal,
    out: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    lost: Mapping[str, str] = MappingProxyType({}),
) -> Agreement:
    """Return the agreement of a negotiation that goes on without the owners `out` and `models`."""
    constraints = Constraints(
        out=frozenset((world.peer(name), Role.OWNER) for name in out),
        models=frozenset(world.offer(name).version for name in models),
    )
    selection = choose(candidates, world.request(exclude=frozenset(lost)), constraints)
    committee = world.sealed(selection.terms(world.request(), now_ms=NOW, nonce=bytes(16)))
    return Agreement.of(committee, selection, refusals, lost)


def reasons(world: World, agreement: Agreement) -> dict[str, str]:
    return {world.name(one.owner): one.reason for one in agreement.left_out}


def test_every_model_that_is_offered_votes_or_has_a_reason(world: World) -> None:
    corp, dune = world.peer("corp"), world.peer("dune")
    candidates = world.federation(NAMES, acme={"connected": False}, fern={"engines": ("crypten",)})
    silent = Refusal(world.peer("beta"), None, "", f"{world.peer('beta')} did not answer within 5 s")
    refused = Refusal(corp, RefusalReason.QUERY_LIMIT, "", "256 of 100 inputs a day")
    agreement = agreed(
        world,
        candidates,
        Refusal(corp, RefusalReason.BUSY),
        silent,
        refused,
        out=("beta", "corp"),
        lost={dune: "was lost in an earlier attempt"},
    )

    assert reasons(world, agreement) == {
        "acme": "disconnected",
        "beta": "did not answer within 5 s",
        "corp": "refused (query-limit): 256 of 100 inputs a day",
        "dune": "was lost in an earlier attempt",
    }
    voting = {world.name(model.owner) for model in agreement.committee.terms.models}
    assert voting | set(reasons(world, agreement)) == set(NAMES)


def test_one_model_of_an_owner_may_be_refused(world: World) -> None:
    agreement = agreed(
        world,
        world.federation(NAMES),
        Refusal(world.peer("acme"), RefusalReason.PRICE_TOO_LOW, "", "2000 at least"),
        models=("acme#0",),
    )

    assert reasons(world, agreement) == {"acme": "refused (price-too-low): 2000 at least"}


def test_an_owner_that_others_do_not_know(world: World) -> None:
    objection = Refusal(world.peer("beta"), RefusalReason.NOT_ON_ROSTER, world.peer("acme"))

    agreement = agreed(world, world.federation(NAMES), objection, out=("acme",))

    assert reasons(world, agreement) == {"acme": str(objection)}


def test_a_committee_is_outdated_when_another_model_can_be_asked(world: World) -> None:
    away = world.federation(NAMES, acme={"connected": False})
    agreement = agreed(world, away)
    back = world.federation(NAMES)
    more = [world.candidate("beta", owned=2), *(peer for peer in away if peer.peer != world.peer("beta"))]
    fewer = [peer for peer in away if peer.peer != world.peer("corp")]

    assert not agreement.outdated(away, world.request())
    assert not agreement.outdated(reversed(away), world.request())
    assert agreement.outdated(back, world.request())
    assert agreement.outdated(more, world.request())
    assert not agreement.outdated(fewer, world.request())
    assert not agreement.outdated([], world.request())


def test_who_refused_is_not_asked_again_while_the_committee_lasts(world: World) -> None:
    everybody = world.federation(NAMES)
    silent = Refusal(world.peer("acme"), None)

    assert not agreed(world, everybody, silent, out=("acme",)).outdated(everybody, world.request())


def test_who_was_lost_is_asked_by_the_next_query(world: World) -> None:
    lost: dict[str, str] = {world.peer("acme"): "was lost in an earlier attempt"}
    everybody = world.federation(NAMES)
    agreement = agreed(world, everybody, lost=lost)

    assert not agreement.outdated(everybody, world.request(exclude=frozenset(lost)))
    assert agreement.outdated(everybody, world.request())


def test_a_refusal_in_words() -> None:
    peer = PeerId("12D3KooWx")
    assert str(Refusal(peer, None, "", "12D3KooWx was lost")) == "12D3KooWx was lost"
    assert str(Refusal(peer, None, "", "no frame")) == "12D3KooWx did not answer: no frame"
    assert str(Refusal(peer, None)) == "12D3KooWx did not answer"
    busy = Refusal(peer, RefusalReason.BUSY, "party", "4 sessions run")
    assert str(busy) == "12D3KooWx refused (busy party): 4 sessions run"
    assert dataclasses.replace(busy, detail="").words == "refused (busy party)"
