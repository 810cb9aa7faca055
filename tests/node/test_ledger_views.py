"""What the API shows of receipts and balances follows from the records alone."""

from __future__ import annotations

import pytest

from finode.errors import InputError, UnknownRecord
from finode.identity import PeerId
from finode.ledger.accounts import Accounts
from finode.ledger.records import VerifiedReceipt, verify_receipt, verify_statement
from finode.node.interface import ReceiptView
from finode.node.ledger_views import explanation_view, organizations, receipt_view, rewards_view, verdict_text
from finode.wire.shares import Fault, Verdict
from tests.fakes.records import (
    DEALER_KEY,
    ORGANIZATIONS,
    OWNER_KEYS,
    PARTY_KEYS,
    QUERIER_KEY,
    receipt,
    signed_receipt,
    statement,
)

FIRST, SECOND, THIRD = receipt(1, count=32), receipt(2, count=32), receipt(3, models=3, epochs_later=1)
EAST, WEST = (party.peer_id for party in PARTY_KEYS)
STRANGER = OWNER_KEYS[2].peer_id


def organization_of(peer: PeerId) -> str:
    return ORGANIZATIONS.get(peer, "")


def accounts_of(*, opened: bool = True) -> Accounts:
    accounts = Accounts()
    for body in (FIRST, SECOND, THIRD):
        accounts.put_receipt(verify_receipt(signed_receipt(body)))
    if opened:
        accounts.put_statement(verify_statement(statement([FIRST.session, SECOND.session], epoch=FIRST.epoch)))
    return accounts


def shown(verified: VerifiedReceipt, *, settled: bool = True) -> ReceiptView:
    return receipt_view(
        verified,
        organization_of=organization_of,
        is_deployed=lambda model: model.owner == OWNER_KEYS[0].peer_id,
        settled=settled,
    )


def test_a_receipt_is_shown_with_who_signed_and_who_did_not() -> None:
    view = shown(verify_receipt(signed_receipt(FIRST, (*PARTY_KEYS, DEALER_KEY))), settled=False)

    assert (view.id, view.session) == (FIRST.id.hex(), FIRST.session.hex())
    assert view.signers == (EAST, WEST, DEALER_KEY.peer_id)
    assert view.withheld == (QUERIER_KEY.peer_id,)
    assert (view.organization, view.price, view.scheme, view.settled) == ("Clinic South", 32_000, "dawid_skene", False)
    assert [(work.organization, work.role, work.rounds) for work in view.work] == [
        ("Clinic East", "party", 17),
        ("Clinic West", "party", 17),
        ("Dealer Ltd", "dealer", 0),
    ]
    assert [(model.organization, model.signed) for model in view.models] == [
        ("Clinic North", True),
        ("Clinic East", False),
    ]
    assert view.ended - view.started == pytest.approx(0.25)
    assert view.verdict == ""


def test_a_verdict_is_told_in_words_that_cannot_move_the_cursor() -> None:
    body = receipt(4, culprit=WEST)
    assert shown(verify_receipt(signed_receipt(body))).verdict == f"{WEST}: timeout at round 9: silent"
    rude = Verdict(culprit="", fault=Fault.INTERNAL, round=-1, detail="a\x1b[2J\nb")
    assert verdict_text(rude) == "nobody: internal before rounds: a [2J b"


def test_rewards_add_up_and_are_by_organization() -> None:
    view = rewards_view(accounts_of(), None, statements=1, organization_of=organization_of)

    assert view.paid_in == view.paid_out + view.pending > 0
    assert view.pending == 22_400  # the third session's owners: nothing covers it
    assert view.paid_in == sum(line.paid for line in view.balances) == 96_000
    assert sum(line.balance for line in view.balances) == -view.pending
    assert (view.receipts, view.statements, view.epochs) == (3, 1, (FIRST.epoch, FIRST.epoch + 1))
    assert [line.balance for line in view.balances] == sorted((line.balance for line in view.balances), reverse=True)
    lines = {line.organization: line for line in view.balances}
    assert lines["Clinic East"].peers == tuple(sorted((EAST, OWNER_KEYS[1].peer_id)))
    assert (lines["Clinic East"].as_party, lines["Clinic West"].as_party) == (9_600, 9_600)
    assert lines["Clinic East"].as_owner > 0
    assert lines["Dealer Ltd"].as_dealer == 9_600
    assert STRANGER not in lines  # its only session is pending
    assert view.schemes == {"dawid_skene": 44_800}


def test_an_epoch_has_its_own_balances() -> None:
    accounts = accounts_of()

    first, second = (
        rewards_view(accounts, epoch, statements=0, organization_of=organization_of)
        for epoch in (FIRST.epoch, THIRD.epoch)
    )

    assert (first.paid_in, first.pending, first.receipts) == (64_000, 0, 2)
    assert (second.paid_in, second.pending, second.receipts) == (32_000, 22_400, 1)
    assert first.digest == second.digest == accounts.digest().hex()
    whole = rewards_view(accounts, None, statements=0, organization_of=organization_of)
    for line in whole.balances:
        parts = [
            one.balance for view in (first, second) for one in view.balances if one.organization == line.organization
        ]
        assert sum(parts) == line.balance


def test_an_explanation_adds_up_to_the_balance() -> None:
    accounts = accounts_of()
    lines = rewards_view(accounts, None, statements=1, organization_of=organization_of).balances

    for line in lines:
        why = explanation_view(accounts, line.organization, None, organization_of=organization_of)
        assert (why.organization, why.balance) == (line.organization, line.balance)
        assert sum(one.amount for one in why.amounts) == line.balance
        assert all(one.why and one.receipt in {b.id.hex() for b in (FIRST, SECOND, THIRD)} for one in why.amounts)
    east = explanation_view(accounts, "clinic EAST ", FIRST.epoch, organization_of=organization_of)
    assert {one.role for one in east.amounts} == {"party", "owner"}
    assert {one.epoch for one in east.amounts} == {FIRST.epoch}


def test_one_peer_may_be_named_by_the_end_of_its_id() -> None:
    accounts = accounts_of()

    for name in (EAST, EAST[-8:], f"…{EAST[-8:]}"):
        alone = explanation_view(accounts, name, None, organization_of=organization_of)
        assert alone.organization == EAST
        assert {one.role for one in alone.amounts} == {"party"}
    with pytest.raises(UnknownRecord, match="neither paid nor earned") as caught:
        explanation_view(accounts, "Clinic", None, organization_of=organization_of)
    assert "Clinic North" in caught.value.hint
    with pytest.raises(UnknownRecord, match="in epoch 3"):
        explanation_view(accounts, "Clinic East", 3, organization_of=organization_of)
    with pytest.raises(UnknownRecord):
        explanation_view(accounts, "", None, organization_of=organization_of)


def test_several_peers_with_one_end_are_not_guessed_between() -> None:
    class Alike:
        def balances(self, epoch: int | None) -> dict[str, object]:
            return {"1-abcdef": object(), "2-abcdef": object()}

    with pytest.raises(InputError, match="2 peers end with 'abcdef'"):
        explanation_view(Alike(), "abcdef", None, organization_of=lambda _: "")  # type: ignore[arg-type]


def test_names_are_compared_as_rosters_compare_them() -> None:
    names = {"a": " Clinic East", "b": "CLINIC EAST", "c": "", "d": "Ltd"}

    found = organizations([PeerId(peer) for peer in "dcba"], lambda peer: names[peer])

    assert [(one.name, one.peers) for one in found] == [("CLINIC EAST", ("a", "b")), ("Ltd", ("d",)), ("c", ("c",))]
