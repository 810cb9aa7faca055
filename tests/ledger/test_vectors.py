"""The bytes, ids and signatures of records are those that stand in tests/vectors/records.json."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finode.errors import WireError
from finode.identity import Identity
from finode.ledger.elements import key_of
from finode.ledger.envelopes import envelope, open_envelope, place_of, recall, verify
from finode.wire.reconciliation import Envelope, RecordKind
from tests.ledger.vectors import PATH, build

VECTORS: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))


def named(vectors: list[dict[str, str]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"].replace(" ", "-")) for vector in vectors]


def test_the_code_writes_the_same_bytes() -> None:
    assert build() == VECTORS


@pytest.mark.parametrize("vector", VECTORS["keys"].values(), ids=list(VECTORS["keys"]))
def test_a_seed_gives_its_peer_id(vector: dict[str, str]) -> None:
    assert Identity.from_seed(bytes.fromhex(vector["seed"])).peer_id == vector["peer"]


@pytest.mark.parametrize("vector", named(VECTORS["good"]))
def test_a_good_record_is_read_and_verified(vector: dict[str, str]) -> None:
    received = Envelope(kind=RecordKind(vector["kind"]), data=bytes.fromhex(vector["record"]))

    record = open_envelope(received)
    verified = verify(record)

    place = place_of(verified)
    assert envelope(record) == received
    assert place.id.hex() == vector["id"]
    assert received.hash().hex() == vector["hash"]
    assert key_of(place, received.hash()).hex() == vector["key"]
    assert recall(place.kind, place.id, received.data) == verified


@pytest.mark.parametrize("vector", named(VECTORS["bad"]))
def test_a_bad_record_is_refused_for_its_reason(vector: dict[str, str]) -> None:
    received = Envelope(kind=RecordKind(vector["kind"]), data=bytes.fromhex(vector["record"]))

    with pytest.raises(WireError, match=vector["reason"]):
        verify(open_envelope(received))
