"""Files of receipts: each record verified, whatever was changed found, and nothing left in halves."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from finode.daemon.receipts import FileReport, save_export, verify_file
from finode.errors import InputError
from finode.ledger.envelopes import Record, envelope
from finode.ledger.export import write_entries
from finode.wire.receipts import SignedReceipt
from tests.fakes.records import (
    DEALER_KEY,
    OWNER_KEYS,
    PARTY_KEYS,
    QUERIER_KEY,
    deployment,
    key,
    proof,
    receipt,
    signed_receipt,
    statement,
)

FIRST, SECOND = receipt(1), receipt(2, epochs_later=1)
ALL: tuple[Record, ...] = (
    deployment(0),
    signed_receipt(FIRST),
    signed_receipt(SECOND, (*PARTY_KEYS, DEALER_KEY)),
    statement([FIRST.session], epoch=FIRST.epoch),
    proof(FIRST, receipt(1, count=33)),
)
END_BYTES = 5 + 36


def report_of(data: bytes, folder: Path) -> FileReport:
    path = folder / "ledger.finode"
    path.write_bytes(data)
    return verify_file(path)


def written(records: Sequence[Record] = ALL) -> bytes:
    return b"".join(write_entries(map(envelope, records)))


def with_a_new_end(data: bytes, count: int) -> bytes:
    """As a forger would: the end fits what was changed."""
    body = data[:-END_BYTES]
    return body + struct.pack(">BI", 0, 36) + struct.pack(">I", count) + hashlib.sha256(body).digest()


def test_true_records_are_counted(tmp_path: Path) -> None:
    report = report_of(written(), tmp_path)

    assert (report.problems, report.records, report.sound) == ((), 5, 5)
    assert (report.receipts, report.incomplete, report.deployments, report.unsigned_models) == (2, 1, 1, 1)
    assert (report.statements, report.proofs, report.condemned) == (1, 1, (PARTY_KEYS[1].peer_id,))
    assert report.federations == ("finode",)
    assert report.epochs == (FIRST.epoch, FIRST.epoch + 1)


@pytest.mark.slow
@pytest.mark.parametrize("record", ALL, ids=["deployment", "receipt", "incomplete", "statement", "proof"])
def test_a_record_that_was_changed_anywhere_is_found(record: Record, tmp_path: Path) -> None:
    data = written([record])
    assert report_of(data, tmp_path).problems == ()

    for offset in range(0, len(data) - END_BYTES, 7 if len(data) > 2000 else 3 if len(data) > 1000 else 1):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset % 8)
        report = report_of(with_a_new_end(bytes(changed), 1), tmp_path)

        assert report.problems, f"byte {offset} of {len(data)}"
        assert all(problem.problem and problem.remedy for problem in report.problems)


def test_no_byte_of_the_end_can_be_changed(tmp_path: Path) -> None:
    data = written([deployment(0)])

    for offset in range(len(data) - END_BYTES, len(data)):
        changed = bytearray(data)
        changed[offset] ^= 0x10
        (problem,) = report_of(bytes(changed), tmp_path).problems
        assert (problem.number, problem.kind) == (0, "file")


@pytest.mark.parametrize("cut", [1, END_BYTES, END_BYTES + 1, 1000])
def test_a_file_that_was_cut_off_is_no_good_and_the_rest_is_still_checked(cut: int, tmp_path: Path) -> None:
    report = report_of(written()[:-cut], tmp_path)

    assert [problem.kind for problem in report.problems] == ["file"]
    assert "cut off" in report.problems[0].problem
    assert report.sound == report.records > 0


def test_one_bad_record_does_not_hide_the_others(tmp_path: Path) -> None:
    good = signed_receipt(FIRST)
    forged = SignedReceipt(body=SECOND.encode(), order=good.order, signatures=good.signatures)

    report = report_of(written([deployment(0), forged, good]), tmp_path)

    (problem,) = report.problems
    assert (problem.number, problem.kind) == (2, "receipt")
    assert "another session" in problem.problem
    assert "another member" in problem.remedy
    assert (report.records, report.sound, report.receipts) == (3, 2, 1)


def test_a_stranger_cannot_sign_in_a_members_place(tmp_path: Path) -> None:
    report = report_of(written([signed_receipt(FIRST, (*PARTY_KEYS, DEALER_KEY, QUERIER_KEY, key(99)))]), tmp_path)

    assert "signed and is no member" in report.problems[0].problem
    assert report.sound == 0


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        verify_file(tmp_path / "nothing")
    with pytest.raises(InputError, match="Is a directory"):
        verify_file(tmp_path)
    (problem,) = report_of(b"PK\x03\x04 something else entirely", tmp_path).problems
    assert "not that of an export" in problem.problem


def test_an_export_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ledger.finode"

    save_export(path, b"one", force=False)
    with pytest.raises(InputError, match="exists already"):
        save_export(path, b"two", force=False)
    assert path.read_bytes() == b"one"
    save_export(path, b"two", force=True)

    assert path.read_bytes() == b"two"
    with pytest.raises(InputError, match="cannot write"):
        save_export(tmp_path / "missing" / "ledger.finode", b"three", force=False)
    assert list(tmp_path.iterdir()) == [path]


def test_owners_that_are_not_named_are_no_owners(tmp_path: Path) -> None:
    signed = deployment(0)
    by_another = type(signed)(body=signed.body, signer=OWNER_KEYS[1].peer_id, signature=deployment(1).signature)

    (problem,) = report_of(written([by_another]), tmp_path).problems

    assert "signature" in problem.problem
