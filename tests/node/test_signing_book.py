"""The file of what was seen and signed: one body of a session, whatever happens."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from finode.node.signing_book import FILE_NAME, SIGNED_KEPT_MS, WITNESS_KEPT_MS, SigningBook
from finode.node.witness import DealerWitness, PartyWitness, QuerierWitness, Sealing
from finode.wire.receipts import Receipt
from finode.wire.signed import Signed, co_sign, sign
from tests.wire.conftest import FIRST, ID16, ID32, ORDER, OWNER, QUERIER, RECEIPT, TERMS

SEALING = Sealing(terms=TERMS, sealed=ID32)
PARTY = PartyWitness(
    committee=RECEIPT.committee,
    order=sign(QUERIER, ORDER),
    started_ms=1500,
    ended_ms=1600,
    verdict=None,
    work=RECEIPT.work[0],
    transcript=ID32,
)
ASKER = QuerierWitness(committee=RECEIPT.committee, order=PARTY.order, started_ms=1500, ended_ms=1600, verdict=None)
DEALER = DealerWitness(
    committee=RECEIPT.committee, serial=ID16, batch=2, bytes_sent=(32, 32), milliseconds=5, dealt_ms=1400
)


def _signature(receipt: Receipt) -> bytes:
    return co_sign(FIRST, receipt.encode(), Receipt)


async def _sign(book: SigningBook, receipt: Receipt, now_ms: int = 2000) -> bytes | None:
    signed = await book.sign(receipt, receipt.encode(), lambda: _signature(receipt), now_ms)
    return None if signed is None else signed.body


@pytest.mark.trio
async def test_a_session_is_signed_once_and_a_bundle_for_one_session(tmp_path: Path) -> None:
    book = SigningBook(tmp_path)
    other = replace(RECEIPT, ended_ms=1700)
    assert await _sign(book, RECEIPT) == RECEIPT.encode()
    assert await _sign(book, other) == RECEIPT.encode()
    assert await _sign(book, replace(RECEIPT, session=bytes(16))) is None
    assert await _sign(book, replace(RECEIPT, session=bytes(16), serial=bytes(16))) is not None
    book.close()


@pytest.mark.trio
async def test_what_was_signed_is_on_the_disk_when_the_signature_leaves(tmp_path: Path) -> None:
    home, crashed = tmp_path / "home", tmp_path / "crashed"
    home.mkdir()
    book = SigningBook(home)
    await _sign(book, RECEIPT)
    shutil.copytree(home, crashed)  # what a process that is killed now would leave
    book.close()
    again = SigningBook(crashed)
    signed = await again.signed(RECEIPT.committee, RECEIPT.session)
    assert signed is not None
    assert (signed.body, signed.signature) == (RECEIPT.encode(), _signature(RECEIPT))
    assert await _sign(again, replace(RECEIPT, ended_ms=1700)) == RECEIPT.encode()
    again.close()


@pytest.mark.trio
async def test_witnesses_are_found_by_session_or_serial_and_survive_a_restart(tmp_path: Path) -> None:
    book = SigningBook(tmp_path)
    await book.remember(SEALING, ORDER.session, PARTY, 1000)
    await book.remember(SEALING, ORDER.session, ASKER, 1000)
    await book.remember(SEALING, DEALER.serial, DEALER, 1000)
    book.close()

    book = SigningBook(tmp_path)
    assert await book.witnesses(RECEIPT.committee, ORDER.session, DEALER.serial) == (SEALING, [DEALER, PARTY, ASKER])
    assert await book.witnesses(RECEIPT.committee, ORDER.session, bytes(16)) == (SEALING, [PARTY, ASKER])
    assert await book.witnesses(bytes(32), ORDER.session, DEALER.serial) is None
    assert await book.unsettled() == [(SEALING, PARTY)]
    await book.settle(ORDER.session)
    assert await book.unsettled() == []
    book.close()


@pytest.mark.trio
async def test_the_first_account_of_a_session_stays(tmp_path: Path) -> None:
    book = SigningBook(tmp_path)
    await book.remember(SEALING, ORDER.session, PARTY, 1000)
    await book.remember(SEALING, ORDER.session, replace(PARTY, ended_ms=1999), 1001)
    assert await book.witnesses(RECEIPT.committee, ORDER.session, bytes(16)) == (SEALING, [PARTY])
    book.close()


@pytest.mark.trio
async def test_a_body_outlives_its_witness(tmp_path: Path) -> None:
    assert WITNESS_KEPT_MS < SIGNED_KEPT_MS
    book = SigningBook(tmp_path)
    await book.remember(SEALING, ORDER.session, PARTY, 2000)
    await _sign(book, RECEIPT)
    await book.prune(2001 + WITNESS_KEPT_MS)
    assert await book.witnesses(RECEIPT.committee, ORDER.session, bytes(16)) is None
    assert await book.signed(RECEIPT.committee, RECEIPT.session) is not None
    await book.prune(2001 + SIGNED_KEPT_MS)
    assert await book.signed(RECEIPT.committee, RECEIPT.session) is None
    book.close()


@pytest.mark.trio
async def test_a_session_id_is_signed_for_once_and_for_ever(tmp_path: Path) -> None:
    """A querier that uses an id again, in another committee or long after, gets no two signatures of one session."""
    twin = replace(RECEIPT, committee=bytes(32), serial=bytes(16))
    book = SigningBook(tmp_path)
    await _sign(book, RECEIPT)
    assert await _sign(book, twin) is None
    assert await book.signed(twin.committee, twin.session) is None
    await book.prune(2001 + SIGNED_KEPT_MS)
    book.close()

    book = SigningBook(tmp_path)
    assert await _sign(book, twin) is None
    assert await _sign(book, replace(RECEIPT, ended_ms=1700)) is None
    book.close()


@pytest.mark.trio
async def test_an_owner_signs_a_deployment_once(tmp_path: Path) -> None:
    made: list[Signed] = []

    def make() -> Signed:
        made.append(sign(OWNER, replace(ORDER, created_ms=1500 + len(made))))
        return made[-1]

    book = SigningBook(tmp_path)
    first = await book.deployment(ID32, make)
    book.close()
    book = SigningBook(tmp_path)
    assert await book.deployment(ID32, make) == first
    assert len(made) == 1
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    book.close()
