"""Writes the test vectors of records: `python -m tests.ledger.vectors` from the root of the repository.

tests/vectors/records.json holds, for each example: the seeds of the keys that signed, the body's canonical bytes, its
id, the envelope's bytes and hash, and for a bad one the reason. `test_vectors.py` holds the code to what is written
there; write it anew only when the format changes on purpose.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from finode.ledger.elements import key_of
from finode.ledger.envelopes import Record, envelope, place_of, verify
from finode.wire.receipts import Deployment, EpochStatement, Order, Outcome, Receipt, SignedReceipt
from finode.wire.shares import Fault, Verdict
from finode.wire.signed import co_sign, open_signed, sign
from tests.ledger.making import (
    DEALER,
    FIRST,
    MEMBERS,
    OWNER,
    QUERIER,
    SECOND,
    STRANGER,
    co_signed,
    deployment_of,
    order_of,
    proof_of,
    receipt_of,
    signed_receipt,
    signed_statement,
    statement_of,
)

PATH = Path(__file__).resolve().parents[1] / "vectors" / "records.json"
KEYS = {
    "owner": OWNER,
    "first party": FIRST,
    "second party": SECOND,
    "dealer": DEALER,
    "querier": QUERIER,
    "stranger": STRANGER,
}


def good() -> dict[str, Record]:
    """Return records that every node accepts."""
    aborted = receipt_of(
        1,
        outcome=Outcome.ABORTED,
        verdict=Verdict(culprit=SECOND.peer_id, round=3, fault=Fault.TIMEOUT, detail="no frame"),
        transcript=b"",
    )
    return {
        "a receipt that all signed": signed_receipt(receipt_of()),
        "a receipt whose querier did not sign": signed_receipt(receipt_of(), MEMBERS[:3]),
        "an aborted session": signed_receipt(aborted, (FIRST, DEALER)),
        "a deployment": sign(OWNER, deployment_of()),
        "an epoch statement": signed_statement(statement_of()),
        "two receipts of one session": proof_of(SECOND, receipt_of().encode(), receipt_of(count=3).encode(), Receipt),
        "two statements that share a session": proof_of(
            DEALER, statement_of((0, 1)).encode(), statement_of((1, 2)).encode(), EpochStatement
        ),
    }


def bad() -> dict[str, tuple[Record, str]]:
    """Return records that no node accepts, each with the words that the refusal contains."""
    receipt = receipt_of()
    body = receipt.encode()
    full = signed_receipt(receipt)
    altered = dataclasses.replace(receipt, count=3).encode()
    stranger = signed_receipt(receipt, (*MEMBERS, STRANGER))
    one = full.signatures[0]
    swapped = dataclasses.replace(one, signature=full.signatures[1].signature)
    loose = body + b"\xc0"
    return {
        "a body that was altered after signing": (dataclasses.replace(full, body=altered), "order is of another"),
        "a signature of another member": (
            dataclasses.replace(full, signatures=(swapped, *full.signatures[1:])),
            "the signature is not by",
        ),
        "a signature of one who is no member": (stranger, "is no member"),
        "no party signed": (signed_receipt(receipt, (DEALER, QUERIER)), "no party signed"),
        "an order by another than the querier": (
            dataclasses.replace(full, order=sign(STRANGER, open_signed(full.order, Order))),
            "instead of",
        ),
        "an order of another session": (
            signed_receipt(receipt, order=order_of(receipt_of(1))),
            "order is of another session",
        ),
        "a price that the querier did not order": (
            signed_receipt(
                receipt_of(rewards=dataclasses.replace(receipt.rewards, price=1 << 39)), order=order_of(receipt)
            ),
            "other members, other models or another price",
        ),
        "another's order, taken by other parties": (
            signed_receipt(
                receipt_of(
                    parties=(SECOND.peer_id, STRANGER.peer_id),
                    work=tuple(
                        dataclasses.replace(receipt.work[0], peer=one.peer_id) for one in (SECOND, STRANGER, DEALER)
                    ),
                ),
                (SECOND, STRANGER, DEALER),
                order=order_of(receipt),
            ),
            "other members, other models or another price",
        ),
        "a body with bytes behind it": (
            SignedReceipt(body=loose, order=full.order, signatures=co_signed(loose, Receipt, MEMBERS)),
            "not a valid Receipt",
        ),
        "a signature under the domain of a deployment": (
            dataclasses.replace(
                full,
                signatures=tuple(
                    dataclasses.replace(given, signature=co_sign(FIRST, body, Deployment))
                    if given.peer == FIRST.peer_id
                    else given
                    for given in full.signatures
                ),
            ),
            "the signature is not by",
        ),
        "a deployment that its owner did not sign": (sign(STRANGER, deployment_of()), "instead of the owner"),
        "a deployment whose id is another's": (sign(OWNER, deployment_of(deployment=bytes(32))), "id is not that"),
        "a statement that lacks a signature": (
            signed_statement(statement_of(), (FIRST, DEALER)),
            "lacks the signature",
        ),
        "a proof of two sessions": (
            proof_of(SECOND, receipt_of(0).encode(), receipt_of(1).encode(), Receipt),
            "do not contradict",
        ),
        "a proof of two federations": (
            proof_of(SECOND, body, receipt_of(federation="other").encode(), Receipt),
            "do not contradict",
        ),
        "a proof against one who is no member": (
            proof_of(STRANGER, body, receipt_of(count=3).encode(), Receipt),
            "no member of both",
        ),
        "a proof with a signature of another": (
            dataclasses.replace(proof_of(SECOND, body, receipt_of(count=3).encode(), Receipt), signer=FIRST.peer_id),
            "the signature is not by",
        ),
    }


def build() -> dict[str, Any]:
    """Return what stands in the file."""
    return {
        "keys": {name: {"seed": one.seed().hex(), "peer": one.peer_id} for name, one in KEYS.items()},
        "good": [
            {"name": name, "kind": envelope(record).kind.value, **_bytes_of(record)} for name, record in good().items()
        ],
        "bad": [
            {
                "name": name,
                "kind": envelope(record).kind.value,
                "reason": reason,
                "record": envelope(record).data.hex(),
            }
            for name, (record, reason) in bad().items()
        ],
    }


def _bytes_of(record: Record) -> dict[str, str]:
    wrapped = envelope(record)
    body = {"body": record.body.hex()} if hasattr(record, "body") else {}
    place = place_of(verify(record))
    return body | {
        "id": place.id.hex(),
        "record": wrapped.data.hex(),
        "hash": wrapped.hash().hex(),
        "key": key_of(place, wrapped.hash()).hex(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(build(), indent=1) + "\n", encoding="utf-8")
