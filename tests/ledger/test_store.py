"""The ledger on disk: what it keeps, what it merges, what it finds out, and what it says of a file that is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from finode.errors import ConfigError, InputError
from finode.ledger.database import VERSIONS
from finode.ledger.envelopes import envelope, verify
from finode.ledger.records import Verified
from finode.ledger.store import FILE_NAME, Added, Ledger
from finode.wire.receipts import StatementKind
from finode.wire.reconciliation import RecordKind
from finode.wire.signed import sign
from tests.ledger.making import (
    DEALER,
    FIRST,
    MEMBERS,
    OWNER,
    QUERIER,
    SECOND,
    START_MS,
    deployment_of,
    verified_deployment,
    verified_proof,
    verified_receipt,
    verified_statement,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def test_what_was_added_is_there_after_opening_again(tmp_path: Path) -> None:
    records: list[Verified] = [verified_receipt(0), verified_statement(), verified_deployment(), verified_proof()]
    ledger = Ledger.open(tmp_path / "ledger.sqlite")

    added = ledger.add_all(records)

    assert added == tuple(Added(record=record, previous=None) for record in records)
    assert ledger.add_all(records) == ()
    dump = ledger.dump()
    ledger.close()
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    assert ledger.dump() == dump
    assert list(ledger.records()) == records
    assert ledger.receipts() == (records[0],)
    assert ledger.statements() == (records[1],)
    assert ledger.deployments() == (records[2],)
    assert ledger.proofs() == (records[3],)
    assert ledger.condemned() == {SECOND.peer_id}
    assert ledger.counts() == dict.fromkeys(RecordKind, 1)
    ledger.close()


def test_signatures_that_come_later_are_merged(ledger: Ledger) -> None:
    some, others = verified_receipt(0, (FIRST, DEALER)), verified_receipt(0, (SECOND, DEALER))

    ledger.add_all([some])
    (added,) = ledger.add_all([others])

    assert added.previous == some
    assert added.record == verified_receipt(0, (FIRST, SECOND, DEALER))
    assert ledger.receipts()[0].withheld == (QUERIER.peer_id,)
    assert ledger.add_all([some, others]) == ()
    assert ledger.counts()[RecordKind.RECEIPT] == 1
    assert ledger.has(envelope(added.record.signed).hash())
    assert not ledger.has(envelope(some.signed).hash())
    assert ledger.envelopes([envelope(some.signed).hash(), bytes(32)]) == [envelope(added.record.signed), None]


def test_the_file_itself_refuses_to_forget(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add_all([verified_receipt(0)])
    other = sqlite3.connect(ledger.path)

    for statement in ("DELETE FROM records", "UPDATE records SET epoch = 1"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            other.execute(statement)
    other.close()


def test_versions_of_one_record_do_not_fill_the_disk(ledger: Ledger) -> None:
    """An owner that signs one deployment again and again, each time with lower bytes, is kept a few times."""
    signed = [verify(sign(OWNER, deployment_of(signed_ms=START_MS - number))) for number in range(30)]

    for record in signed:
        assert len(ledger.add_all([record])) == 1
    assert not ledger.add_all(signed)

    other = sqlite3.connect(ledger.path)
    assert other.execute("SELECT count(*) FROM records").fetchone() == (VERSIONS,)
    other.close()
    assert ledger.deployments() == (signed[-1],)
    reopened = Ledger.open(ledger.path)
    assert (reopened.dump(), reopened.counts()) == (ledger.dump(), ledger.counts())
    reopened.close()


def test_a_ledger_of_the_first_schema_is_opened(tmp_path: Path) -> None:
    Ledger.open(tmp_path / FILE_NAME).close()
    older = sqlite3.connect(tmp_path / FILE_NAME)
    for name in ("records_are_not_changed", "records_are_not_deleted"):
        older.execute(f"DROP TRIGGER {name}")
        event = "UPDATE" if name.endswith("changed") else "DELETE"
        older.execute(f"CREATE TRIGGER {name} BEFORE {event} ON records BEGIN SELECT RAISE(ABORT, 'only grows'); END")
    older.execute("PRAGMA user_version = 1")
    older.close()

    ledger = Ledger.open(tmp_path / FILE_NAME)

    for number in range(VERSIONS + 2):
        ledger.add_all([verify(sign(OWNER, deployment_of(signed_ms=START_MS - number)))])
    assert len(ledger.deployments()) == 1
    ledger.close()


def test_two_receipts_of_one_session_prove_who_signed_both(ledger: Ledger) -> None:
    ledger.add_all([verified_receipt(0, (FIRST, SECOND, DEALER))])

    added = ledger.add_all([verified_receipt(0, (SECOND, QUERIER), count=3)])

    assert [type(one.record).__name__ for one in added] == ["VerifiedReceipt", "VerifiedEquivocation"]
    assert added[1].record == verified_proof(SECOND)
    assert ledger.condemned() == {SECOND.peer_id}
    assert ledger.counts()[RecordKind.RECEIPT] == 2


def test_a_signature_that_comes_later_may_be_the_second_one(ledger: Ledger) -> None:
    ledger.add_all([verified_receipt(0, (FIRST,)), verified_receipt(0, (SECOND,), count=3)])
    assert ledger.condemned() == frozenset()

    ledger.add_all([verified_receipt(0, (SECOND,))])

    assert ledger.condemned() == {SECOND.peer_id}


def test_statements_of_a_kind_share_no_session(ledger: Ledger) -> None:
    labels = {"kind": StatementKind.LABELS, "correct": (3, 4)}
    empty: dict[str, tuple[int, ...]] = dict.fromkeys(("joint", "counts", "agreement", "entropy"), ())
    ledger.add_all([verified_statement((0, 1)), verified_statement((2, 3))])
    ledger.add_all([verified_statement((0, 2), **labels, **empty)])
    assert ledger.condemned() == frozenset()

    ledger.add_all([verified_statement((3, 4))])

    assert ledger.condemned() == {FIRST.peer_id, SECOND.peer_id, DEALER.peer_id}


def test_receipts_are_listed_by_time_and_epoch(ledger: Ledger) -> None:
    receipts = [verified_receipt(number) for number in (0, 2, 1, 3600)]
    ledger.add_all(receipts)

    assert [one.receipt.started_ms for one in ledger.receipts()] == [
        START_MS + 1000 * number for number in (3600, 2, 1, 0)
    ]
    assert ledger.receipts(limit=2) == (receipts[3], receipts[1])
    assert ledger.receipts(receipts[0].receipt.epoch) == (receipts[1], receipts[2], receipts[0])
    assert ledger.receipts(7) == ()
    assert list(ledger.records(receipts[3].receipt.epoch)) == [receipts[3]]


def test_a_receipt_is_found_by_its_id_or_its_session(ledger: Ledger) -> None:
    one, other = verified_receipt(0), verified_receipt(1)
    ledger.add_all([one, other])

    assert ledger.receipt(one.id.hex()) == one
    assert ledger.receipt(one.id.hex()[:12].upper()) == one
    assert ledger.receipt(other.receipt.session.hex()) == other
    assert ledger.receipt(other.receipt.session.hex()[:9]) == other
    for wrong, match in (("0" * 20, "no receipt"), ("", "does not begin"), ("xyz", "does not begin")):
        with pytest.raises(InputError, match=match):
            ledger.receipt(wrong)
    ledger.add_all([verified_receipt(0, (FIRST,), count=3)])
    with pytest.raises(InputError, match="several"):
        ledger.receipt(one.receipt.session.hex())


@pytest.mark.slow
def test_many_pages_are_read_in_the_order_of_arrival(ledger: Ledger) -> None:
    receipts = [verified_receipt(number, MEMBERS[:1]) for number in range(300)]
    ledger.add_all(receipts)

    assert list(ledger.records()) == receipts


def test_a_deployment_is_kept_once(ledger: Ledger) -> None:
    early, late = verified_deployment(signed_ms=START_MS), verified_deployment(signed_ms=START_MS + 1)

    ledger.add_all([late, early])
    ledger.add_all([late])

    assert ledger.deployments() == (early,)
    assert ledger.deployment(early.deployment.deployment) == early
    assert ledger.deployment(bytes(32)) is None


def test_one_proof_against_a_signer_is_enough(ledger: Ledger) -> None:
    proofs = sorted((verified_proof(SECOND, number) for number in range(3)), key=lambda one: one.signed.first)

    ledger.add_all([proofs[1], proofs[2], proofs[0], proofs[1]])

    assert ledger.proofs() == (proofs[0],)


def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is a diary, not a database\n" * 100)

    with pytest.raises(ConfigError, match="no ledger") as caught:
        Ledger.open(path)

    assert "move it away" in caught.value.hint
    assert path.read_bytes() == b"this is a diary, not a database\n" * 100


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes (name TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="another program"):
        Ledger.open(path)

    assert path.read_bytes() == before


def test_a_newer_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()

    with pytest.raises(ConfigError, match="newer finode"):
        Ledger.open(path)


def test_a_damaged_row_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(path)
    ledger.add_all([verified_receipt(0)])
    ledger.close()
    # The file's bytes, as a failing disk would change them; SQLite itself has no checksums.
    data = path.read_bytes()
    at = data.index(b"digits")
    path.write_bytes(data[:at] + b"Digits" + data[at + 6 :])

    ledger = Ledger.open(path)
    with pytest.raises(ConfigError, match="not what was written") as caught:
        ledger.receipts()
    assert "peers" in caught.value.hint
    ledger.close()


def test_the_file_is_private(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.with_name("ledger.sqlite-wal").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open"):
        Ledger.open(tmp_path / "nowhere" / "ledger.sqlite")
