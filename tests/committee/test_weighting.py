"""Public weights by name, and votes that need something of every model."""

from __future__ import annotations

import math

import pytest

from finode.committee.policy import choose
from finode.committee.rules import objection
from finode.committee.weighting import checked_weights, vote_weights
from finode.errors import CommitteeError, InputError
from finode.wire.committee import MAX_VOTE_WEIGHT, RefusalReason, Vote
from tests.committee.conftest import NOW, World

NAMES = ("acme", "beta", "corp", "dune")


def test_weights_go_by_organization_or_version_and_the_rest() -> None:
    world = World()
    models = [(world.term(name), name.split("#")[0].upper()) for name in ("acme#0", "acme#1", "beta#0", "corp#0")]
    prefix = models[1][0].version.hex()[:8]

    def found(**weights: float) -> tuple[int, ...]:
        return vote_weights(checked_weights(weights), models)

    assert found(**{"acme": 2, "beta": 1, "*": 0}) == (MAX_VOTE_WEIGHT, MAX_VOTE_WEIGHT, MAX_VOTE_WEIGHT // 2, 0)
    assert found(**{"acme": 1, prefix.upper(): 4, "*": 2}) == (16384, 65536, 32768, 32768)
    assert found(**{"*": 0.3}) == (MAX_VOTE_WEIGHT,) * 4
    for weights, why in (
        ({"acme": 2, "beta": 1}, "of 'CORP' has no weight"),
        ({"acme": 2, "*": 1, "eden": 1, "abc": 1}, "of 'abc', 'eden'"),
        ({"acme": 0, "*": 0, prefix: 0}, "above 0"),
    ):
        with pytest.raises((CommitteeError, InputError), match=why):
            found(**weights)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": math.nan}, {"a": math.inf}])
def test_weights_that_are_none(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="weight"):
        checked_weights(weights)


def test_a_weighted_vote_has_the_weights_in_its_terms(world: World) -> None:
    request = world.request(vote=Vote.WEIGHTED, weights=checked_weights({"acme": 1, "*": 4}))

    terms = choose(world.federation(NAMES), request).terms(request, now_ms=NOW, nonce=bytes(16))

    expected = {world.peer(name): 16384 if name == "acme" else 65536 for name in NAMES}
    assert terms.vote_weights == tuple(expected[model.owner] for model in terms.models)


def test_an_augmented_vote_has_copies_and_gamma_in_its_terms(world: World) -> None:
    request = world.request(vote=Vote.AUGMENTED, copies=3, gamma=-128)

    terms = choose(world.federation(NAMES), request).terms(request, now_ms=NOW, nonce=bytes(16))

    assert (terms.copies, terms.gamma, terms.vote_weights) == (3, -128, ())


def test_a_prior_vote_needs_the_counts_of_every_model(world: World) -> None:
    request = world.request(vote=Vote.PRIOR)

    with pytest.raises(CommitteeError, match="training counts of every model") as caught:
        choose(world.federation(NAMES), request)
    assert "--counts" in caught.value.hint
    assert all(repr(name) in caught.value.message for name in NAMES)


@pytest.mark.parametrize("counts", [True, False])
def test_an_owner_refuses_a_prior_vote_without_its_counts(world: World, counts: bool) -> None:
    own = world.own_model("dune#0", counts=counts)
    view = world.view("dune", models={own.version: own})
    terms = world.terms(vote=Vote.PRIOR)

    found = objection(terms, world.peer("asker"), view, NOW)

    assert (found is None) is counts
    if found is not None:
        assert found.reason is RefusalReason.BAD_TERMS
        assert "training counts" in found.detail
