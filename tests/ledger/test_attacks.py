"""What owners that cheat earn under each scheme, and what parties and queriers that cheat do.

The federations are made up and small; `finode testnet fairness --attacks` measures the same on trained models.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from finode.errors import BadSignature
from finode.ledger.accounts import Accounts
from finode.ledger.records import verify_receipt
from finode.testnet.attacks import Measure, attacks, gains, measures
from finode.wire.committee import Scheme
from tests.ledger.building import ALL_SIGN, DEALER, OWNERS, PARTIES, QUERIER, receipt, signed_receipt, verified
from tests.ledger.votes import federation

SEEDS = range(4)
WORTHLESS = ("constant class", "random answers", "overconfident noise", "flipped labels")
COPIES = (
    "copy of another model",
    "copy with 5 % noise",
    "two colluders, one model",
    "Sybil, three times",
    "Sybil, three of five",
)


@cache
def gained(seed: int) -> dict[str, dict[str, float]]:
    return gains(*federation(seed), seed)


def test_every_attack_has_its_measure() -> None:
    answers, _ = federation(0)
    by_name = measures(answers)
    assert {name for name, measure in by_name.items() if measure is Measure.ORIGINAL} == set(COPIES)
    assert set(gained(0)) == set(by_name)
    assert {frozenset(of) for of in gained(0).values()} == {frozenset(map(str, Scheme))}


def test_attacks_change_only_the_attackers_answers() -> None:
    answers, _ = federation(0)
    for attack in attacks(answers, 0).values():
        honest = [k for k in range(min(5, len(attack.answers))) if k not in attack.attackers]
        assert all(np.array_equal(attack.answers[k], answers[k]) for k in honest)
        np.testing.assert_allclose(attack.answers.sum(axis=2), 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("attack", WORTHLESS)
def test_the_default_pays_worthless_models_less_than_half_of_an_honest_one(attack: str, seed: int) -> None:
    assert gained(seed)[attack]["dawid_skene"] < 0.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("attack", COPIES)
def test_the_default_pays_copies_together_hardly_more_than_one_original(attack: str, seed: int) -> None:
    assert gained(seed)[attack]["dawid_skene"] <= 1.25


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("attack", ["two colluders, one noise", "two colluders, flipped"])
def test_the_default_pays_colluders_with_junk_less_than_one_honest_model(attack: str, seed: int) -> None:
    assert gained(seed)[attack]["dawid_skene"] < 0.5


def test_the_other_schemes_fall_to_what_the_default_withstands() -> None:
    """What the table in docs/rewards.md says of them, so that it stays true."""
    for seed in SEEDS:
        of = gained(seed)
        assert of["overconfident noise"]["entropy"] > 1  # sure of itself, and paid for it
        assert of["constant class"]["equal"] == pytest.approx(1)
        assert of["two colluders, one noise"]["entropy"] > 2
        for scheme in ("equal", "final_agreement", "entropy", "labelled"):
            assert of["Sybil, three times"][scheme] > 1.5
        assert of["flipped labels"]["labelled"] < 0.5


def test_a_party_that_inflates_its_work_gains_nothing() -> None:
    """The others sign only what they saw: its own version stands alone, or beside theirs."""
    honest, inflated = receipt("a"), receipt("a", rounds=(900, 10, 10))
    alone = Accounts()
    alone.put_receipt(verify_receipt(signed_receipt(inflated, frozenset((PARTIES[0],)))))
    assert alone.balance(PARTIES[0]) == alone.balance(QUERIER) == 0

    beside = Accounts()
    beside.put_receipt(verified(inflated, frozenset((PARTIES[0],))))
    beside.put_receipt(verified(honest, ALL_SIGN - {PARTIES[0]}))
    assert beside.balance(PARTIES[0]) == 0  # it signed the other body
    assert beside.balance(PARTIES[1]) == 200

    with_the_querier = Accounts()
    with_the_querier.put_receipt(verified(inflated, frozenset((PARTIES[0], QUERIER))))
    assert with_the_querier.balance(PARTIES[0]) == 0


def test_a_querier_that_never_signs_is_charged_by_its_order() -> None:
    accounts = Accounts()
    accounts.put_receipt(verify_receipt(signed_receipt(receipt("a"), ALL_SIGN - {QUERIER})))
    assert accounts.balance(QUERIER) == -3000
    assert accounts.balance(DEALER) == 300
    assert accounts.balance(OWNERS[0]) == 700


def test_nobody_is_charged_for_an_order_that_it_did_not_give() -> None:
    signed = signed_receipt(receipt("a"))
    ordered = signed_receipt(receipt("b"))
    with pytest.raises(BadSignature, match="order is of another session"):
        verify_receipt(type(signed)(body=signed.body, order=ordered.order, signatures=signed.signatures))
