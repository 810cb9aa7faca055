"""Balances: who is paid what, to the last unit, and the same whatever order the records come in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finode.ledger.accounts import PATIENCE, Accounts, Amount
from finode.ledger.postings import AccountRole
from finode.ledger.records import VerifiedReceipt, VerifiedStatement, verify_receipt
from finode.wire.committee import Scheme
from tests.ledger.building import (
    ALL_SIGN,
    DEALER,
    OTHER,
    OWNERS,
    PARTIES,
    PEERS,
    QUERIER,
    models,
    receipt,
    rewards,
    signed_receipt,
    statement,
    verified,
    verified_statement,
)

AGREEMENT = rewards(Scheme.FINAL_AGREEMENT)
Record = VerifiedReceipt | VerifiedStatement


def accounts_of(*records: Record) -> Accounts:
    accounts = Accounts()
    for record in records:
        if isinstance(record, VerifiedReceipt):
            accounts.put_receipt(record)
        else:
            accounts.put_statement(record)
    return accounts


def balances(accounts: Accounts) -> list[int]:
    """Return the balances of querier, parties, dealer, owners."""
    return [accounts.balance(peer) for peer in (QUERIER, *PARTIES, DEALER, *OWNERS)]


def test_a_price_is_split_to_the_last_unit() -> None:
    accounts = accounts_of(verified(receipt("a", terms=rewards(price=1001), count=1)))

    # 1001: 100 for the dealer, 200 = 67 + 67 + 66 for the parties, 701 = 234 + 234 + 233 for the owners
    assert balances(accounts) == [-1001, 67, 67, 66, 100, 234, 234, 233]
    assert accounts.totals().paid_in == accounts.totals().paid_out == 1001
    assert accounts.totals().schemes == {Scheme.EQUAL: 701}


def test_a_receipt_with_real_signatures_pays() -> None:
    one = verify_receipt(signed_receipt(receipt("a"), ALL_SIGN - {PARTIES[2]}))
    assert balances(accounts_of(one)) == [-2800, 200, 200, 0, 300, 700, 700, 700]


def test_parties_are_paid_by_rounds() -> None:
    accounts = accounts_of(verified(receipt("a", rounds=(30, 10, 20))))
    assert balances(accounts)[1:4] == [300, 100, 200]


def test_a_querier_that_never_signs_pays_all_the_same() -> None:
    with_it = accounts_of(verified(receipt("a")))
    without = accounts_of(verified(receipt("a"), ALL_SIGN - {QUERIER}))
    assert balances(without) == balances(with_it)
    assert without.balance(QUERIER) == -3000


def test_who_withheld_its_signature_is_not_paid_and_its_part_is_not_charged() -> None:
    accounts = accounts_of(verified(receipt("a"), ALL_SIGN - {PARTIES[0]}))
    assert balances(accounts) == [-2800, 0, 200, 200, 300, 700, 700, 700]
    accounts = accounts_of(verified(receipt("a"), ALL_SIGN - {DEALER}))
    assert balances(accounts) == [-2700, 200, 200, 200, 0, 700, 700, 700]


def test_nothing_is_paid_unless_more_than_half_signed() -> None:
    half = accounts_of(verified(receipt("a"), frozenset((QUERIER, PARTIES[0], DEALER))))
    assert not any(balances(half))
    assert half.settled(receipt("a").id)
    assert half.balances() == {}


def test_an_aborted_session_pays_those_who_were_not_at_fault() -> None:
    at_fault = accounts_of(verified(receipt("a", culprit=PARTIES[1], rounds=(4, 4, 4))))
    assert balances(at_fault) == [-700, 200, 0, 200, 300, 0, 0, 0]
    silent = accounts_of(verified(receipt("a", culprit=PARTIES[1], rounds=(4, 0, 4))))
    assert balances(silent) == balances(at_fault)  # nobody earns more because another failed
    dealer = accounts_of(verified(receipt("a", culprit=DEALER, rounds=(4, 4, 4))))
    assert balances(dealer) == [-600, 200, 200, 200, 0, 0, 0, 0]
    before_any_round = accounts_of(verified(receipt("a", culprit=PARTIES[1], rounds=(0, 0, 0))))
    assert not any(balances(before_any_round))


def test_the_owners_part_waits_for_the_sums() -> None:
    body = receipt("a", terms=AGREEMENT)
    accounts = accounts_of(verified(body))
    assert not accounts.settled(body.id)
    assert balances(accounts) == [-3000, 200, 200, 200, 300, 0, 0, 0]
    assert (accounts.totals().paid_in, accounts.totals().paid_out, accounts.totals().pending) == (3000, 900, 2100)

    accounts.put_statement(verified_statement(statement(["a"])))

    assert accounts.settled(body.id)
    assert balances(accounts)[-3:] == [350, 700, 1050]
    assert accounts.totals().pending == 0


def test_labels_and_agreement_do_not_stand_for_each_other() -> None:
    body = receipt("a", terms=rewards(Scheme.LABELLED))
    accounts = accounts_of(verified(body), verified_statement(statement(["a"])))
    assert not accounts.settled(body.id)
    accounts.put_statement(verified_statement(statement(["a"], correct=(0, 1, 2))))
    assert balances(accounts)[-3:] == [0, 700, 1400]


@pytest.mark.parametrize(
    ("terms", "kwargs"), [(rewards(), {}), (AGREEMENT, {"engine": "crypten"}), (AGREEMENT, {"used": models(1)})]
)
def test_where_nothing_can_be_told_apart_all_owners_are_paid_at_once(terms: object, kwargs: dict[str, object]) -> None:
    body = receipt("a", terms=terms, **kwargs)  # type: ignore[arg-type]
    assert accounts_of(verified(body)).settled(body.id)


def test_statements_of_other_parties_add_up() -> None:
    turned = PARTIES[::-1]
    accounts = accounts_of(
        verified(receipt("a", terms=AGREEMENT)),
        verified(receipt("b", terms=AGREEMENT, parties=turned)),
        verified_statement(statement(["a"], agreement=(3 << 16, 0, 0))),
        verified_statement(statement(["b"], agreement=(0, 3 << 16, 0), parties=turned)),
    )
    assert balances(accounts)[-3:] == [2100, 2100, 0]  # each session by the sum of both


def test_a_statement_in_another_order_of_models_says_the_same() -> None:
    turned = statement(["a"], agreement=(3 << 16, 2 << 16, 1 << 16), used=models()[::-1])
    accounts = accounts_of(verified(receipt("a", terms=AGREEMENT)), verified_statement(turned))
    assert balances(accounts)[-3:] == [350, 700, 1050]


@pytest.mark.parametrize(
    "changes",
    [
        {"parties": PARTIES[:2]},
        {"dealer": OTHER},
        {"models": (*models()[:2], replace(models()[2], deployment=bytes(32)))},
        {"models": (*models()[:2], replace(models()[2], owner=OTHER))},
        {"samples": 6},
        {"classes": 3, "counts": (1,) * 9, "joint": (1,) * 27},
    ],
    ids=["parties", "dealer", "deployment", "owner", "inputs that no receipt has", "classes"],
)
def test_a_statement_without_receipts_behind_it_moves_no_money(changes: dict[str, object]) -> None:
    strange = replace(statement(["a"], agreement=(3 << 16, 0, 0)), **changes)  # type: ignore[arg-type]
    body = receipt("a", terms=AGREEMENT)
    accounts = accounts_of(verified(body), verified_statement(strange))
    assert not accounts.settled(body.id)


@pytest.mark.parametrize("turn", [1, -1])
def test_sums_of_one_session_count_once(turn: int) -> None:
    claims = [statement(["a"], agreement=(3 << 16, 0, 0)), statement(["a"], agreement=(0, 0, 3 << 16))]
    in_time = sorted(claims, key=lambda one: one.id)[::turn]

    accounts = accounts_of(verified(receipt("a", terms=AGREEMENT)), *map(verified_statement, in_time))

    lowest = min(claims, key=lambda one: one.id)
    assert balances(accounts)[-3:] == [700 * (sum_ >> 16) for sum_ in lowest.agreement]


@pytest.mark.parametrize("turn", [1, -1])
def test_others_that_name_a_session_in_their_statement_do_not_keep_it_from_counting(turn: int) -> None:
    turned = PARTIES[::-1]
    honest = statement(["a"], agreement=(3 << 16, 0, 0))
    tries = (statement(["a", "b"], agreement=(0, part, 0), parties=turned) for part in range(1 << 16, 2 << 16))
    meddling = next(one for one in tries if one.id < honest.id)
    body = receipt("a", terms=AGREEMENT)
    records: list[Record] = [
        verified(body),
        verified(receipt("b", terms=AGREEMENT, parties=turned)),
        verified_statement(honest),
        verified_statement(meddling),
    ]

    accounts = accounts_of(*records[::turn])

    assert accounts.settled(body.id)
    assert balances(accounts)[-3] > 0


@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_epochs_that_cover_a_session_the_statement_with_the_lowest_id_decides(turn: int) -> None:
    claims = [
        statement(["a"], agreement=(3 << 16, 0, 0), epoch=5),
        statement(["a"], agreement=(0, 0, 3 << 16), epoch=6),
    ]
    in_time = sorted(claims, key=lambda one: one.id)[::turn]

    accounts = accounts_of(verified(receipt("a", terms=AGREEMENT)), *map(verified_statement, in_time))

    lowest = min(claims, key=lambda one: one.id)
    assert balances(accounts)[-3:] == [700 * (sum_ >> 16) for sum_ in lowest.agreement]


@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_receipts_with_as_many_signatures_the_lower_id_counts(turn: int) -> None:
    claims = sorted([receipt("a", rounds=(4, 1, 1)), receipt("a", rounds=(1, 1, 4))], key=lambda one: one.id)

    accounts = accounts_of(*map(verified, claims[::turn]))

    assert balances(accounts)[1:4] == [100 * work.rounds for work in claims[0].work[:3]]


def test_what_no_statement_covers_is_paid_equally_in_the_end() -> None:
    body = receipt("a", terms=AGREEMENT)
    accounts = accounts_of(verified(body), verified(receipt("b", epoch=5 + PATIENCE - 1)))
    assert not accounts.settled(body.id)
    before = accounts.balance(OWNERS[0])

    accounts.put_receipt(verified(receipt("c", epoch=5 + PATIENCE, terms=rewards(price=0))))

    assert accounts.settled(body.id)
    assert accounts.balance(OWNERS[0]) == before + 700
    accounts.put_statement(verified_statement(statement(["a"])))  # late, and still the truth
    assert accounts.balance(OWNERS[0]) == before + 350


def test_an_order_is_paid_once() -> None:
    few, many = receipt("a"), receipt("a", rounds=(90, 10, 10))
    accounts = accounts_of(verified(few, ALL_SIGN - {PARTIES[0]}), verified(many))
    assert accounts.balance(QUERIER) == -3000
    inflated = accounts_of(verified(few, ALL_SIGN - {PARTIES[0]}), verified(many, frozenset((PARTIES[0], QUERIER))))
    assert inflated.balance(QUERIER) == -2800


def test_a_session_id_taken_by_another_querier_displaces_nothing() -> None:
    accounts = accounts_of(verified(receipt("a")), verified(receipt("a", querier=OTHER)))
    assert accounts.balance(QUERIER) == accounts.balance(OTHER) == -3000


def test_a_signature_that_comes_later_pays_its_signer() -> None:
    accounts = accounts_of(verified(receipt("a"), ALL_SIGN - {PARTIES[0]}))
    assert accounts.balance(PARTIES[0]) == 0
    accounts.put_receipt(verified(receipt("a"), ALL_SIGN - {PARTIES[1]}))
    assert balances(accounts) == [-3000, 200, 200, 200, 300, 700, 700, 700]


def test_every_amount_is_explained() -> None:
    aborted = receipt("b", culprit=PARTIES[1], rounds=(4, 4, 4), epoch=6)
    accounts = accounts_of(
        verified(receipt("a", terms=AGREEMENT)),
        verified(aborted),
        verified(receipt("c", terms=AGREEMENT, epoch=7)),
        verified(receipt("d", engine="crypten", terms=AGREEMENT)),
        verified(receipt("e")),
        verified_statement(statement(["a"])),
    )
    for peer in PEERS.values():
        assert sum(one.amount for one in accounts.explain(peer)) == accounts.balance(peer)

    assert accounts.explain(PARTIES[0], epoch=6) == (
        Amount(
            receipt=aborted.id,
            session=aborted.session,
            epoch=6,
            role=AccountRole.PARTY,
            amount=200,
            scheme=Scheme.EQUAL,
            why="200 of 1000 of 3000, shared by rounds: 4, 4, 4",
        ),
    )
    why = {one.session: one.why for one in accounts.explain(OWNERS[1])}
    assert why[receipt("a").session].endswith(" % of 700 of 1000 of 3000, 3 models: final_agreement over 3 inputs")
    assert why[receipt("d").session].endswith("equally: the engine crypten computes no sums of votes")
    assert why[receipt("e").session].endswith("3 models, equally")
    charged = {one.session: one.why for one in accounts.explain(QUERIER)}
    assert charged[receipt("c").session] == "3 inputs at 1000; 2100 of it pending for the owners"
    assert charged[aborted.session] == f"aborted by {PARTIES[1]}: the work of the others is charged"


def test_one_epoch_alone() -> None:
    accounts = accounts_of(
        verified(receipt("a", epoch=5)),
        verified(receipt("b", epoch=6, terms=AGREEMENT)),
        verified(receipt("c", epoch=6, count=1)),
    )
    assert accounts.epochs() == (5, 6)
    assert accounts.balances(6)[QUERIER].paid == 4000
    totals = accounts.totals(6)
    assert (totals.receipts, totals.paid_in, totals.paid_out, totals.pending) == (2, 4000, 1900, 2100)
    assert totals.schemes == {Scheme.EQUAL: 700}
    assert sum(one.balance for one in accounts.balances(5).values()) == 0


RECORDS: tuple[Record, ...] = (
    verified(receipt("a", terms=AGREEMENT)),
    verified(receipt("a", terms=AGREEMENT), ALL_SIGN - {PARTIES[0]}),
    verified(receipt("a", terms=AGREEMENT, rounds=(1, 2, 3)), ALL_SIGN - {PARTIES[1]}),
    verified(receipt("b", terms=rewards(Scheme.DAWID_SKENE, 997), parties=PARTIES[::-1], count=7)),
    verified(receipt("c", culprit=PARTIES[2], rounds=(5, 4, 0)), ALL_SIGN - {QUERIER}),
    verified(receipt("d", terms=rewards(Scheme.LABELLED, 13), used=models(5))),
    verified(receipt("e", terms=AGREEMENT, epoch=5 + PATIENCE)),
    verified(receipt("f", terms=AGREEMENT, epoch=6)),
    verified(receipt("g"), frozenset((PARTIES[0],))),
    verified_statement(statement(["a"])),
    verified_statement(statement(["a", "f"], agreement=(9, 8, 7), samples=6)),
    verified_statement(statement(["b"], samples=7, parties=PARTIES[::-1])),
    verified_statement(statement(["d"], correct=(3, 2, 1, 0, 3), used=models(5))),
    verified_statement(statement(["a", "lost"], agreement=(5, 5, 5), samples=7)),
)
"""Competing receipts and statements, late signatures, epochs that end the wait: what could depend on the order."""


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_repetition_and_pause_gives_the_same_books(data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, len(RECORDS) - 1)).map(sorted))
    arrivals = data.draw(st.permutations([*chosen, *data.draw(st.lists(st.sampled_from(chosen or [0]), max_size=3))]))
    arrivals = [one for one in arrivals if one in chosen]
    accounts = Accounts()
    for index in arrivals:
        record = RECORDS[index]
        if isinstance(record, VerifiedReceipt):
            accounts.put_receipt(record)
        else:
            accounts.put_statement(record)
        if data.draw(st.booleans()):  # a question in between settles what is there
            totals = accounts.totals()
            assert totals.paid_in == totals.paid_out + totals.pending
            assert sum(accounts.balance(peer) for peer in PEERS.values()) == -totals.pending

    fresh = accounts_of(*(RECORDS[index] for index in chosen))

    assert accounts.balances() == fresh.balances()
    assert accounts.totals() == fresh.totals()
    assert accounts.digest() == fresh.digest()
    for peer in PEERS.values():
        assert accounts.explain(peer) == fresh.explain(peer)
        assert sum(one.amount for one in accounts.explain(peer)) == accounts.balance(peer)


def test_amounts_beyond_all_integers_of_the_encoding_have_a_digest() -> None:
    """Members that agree on the highest price and the most inputs must not keep everybody from their balances."""
    dear = [
        verified(replace(receipt(name, terms=rewards(price=(1 << 40) - 1)), count=4096, copies=4095))
        for name in ("one", "two", "three")
    ]
    accounts = accounts_of(*dear)

    assert max(one.paid for one in accounts.balances().values()) > 1 << 64
    assert accounts.digest() != accounts_of(*dear[:2]).digest()


def test_books_with_other_balances_have_other_digests() -> None:
    assert accounts_of(RECORDS[0]).digest() != accounts_of(RECORDS[3]).digest()
    assert accounts_of(RECORDS[0]).digest() != Accounts().digest()
