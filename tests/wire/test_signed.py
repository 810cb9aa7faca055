"""A signature covers one reading of one kind of statement by one key."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finode.errors import BadSignature, MalformedMessage, WireError
from finode.identity import PeerId
from finode.wire import canonical
from finode.wire.committee import Accept, Dissolve, Sealed
from finode.wire.control import Ping, Pong
from finode.wire.directory import NodeRecord
from finode.wire.message import Message
from finode.wire.signed import Signed, open_signed, sign
from tests.wire.conftest import ACCEPT, EXAMPLES, FIRST, ID32, RECORD, SECOND, names


@pytest.mark.parametrize("statement", EXAMPLES, ids=names(EXAMPLES))
def test_what_was_signed_comes_back(statement: Message) -> None:
    signed = canonical.decode(canonical.encode(sign(FIRST, statement)), Signed)

    assert open_signed(signed, type(statement)) == statement
    assert open_signed(signed, type(statement), signer=FIRST.peer_id) == statement


def test_another_signer_is_refused() -> None:
    signed = sign(FIRST, ACCEPT)

    with pytest.raises(BadSignature, match=f"instead of {SECOND.peer_id}"):
        open_signed(signed, Accept, signer=SECOND.peer_id)
    with pytest.raises(BadSignature):
        open_signed(dataclasses.replace(signed, signer=SECOND.peer_id), Accept)
    with pytest.raises(BadSignature):
        open_signed(dataclasses.replace(signed, signer=PeerId("nobody")), Accept)


def test_a_signature_is_of_one_kind_of_statement() -> None:
    """Ping and Pong have the same bytes, and so have Sealed and a Sealed-like message: the domain tells them apart."""
    assert Ping(number=1).encode() == Pong(number=1).encode()

    with pytest.raises(BadSignature):
        open_signed(sign(FIRST, Ping(number=1)), Pong)
    with pytest.raises(BadSignature):
        open_signed(sign(FIRST, Dissolve(committee=ID32, reason="")), Sealed)


def test_a_bare_signature_over_the_bytes_is_not_one() -> None:
    body = ACCEPT.encode()

    with pytest.raises(BadSignature):
        open_signed(Signed(body=body, signer=FIRST.peer_id, signature=FIRST.sign(body)), Accept)


def test_a_signed_statement_is_still_checked() -> None:
    loose = canonical.encode({"committee": ID32, "peer": FIRST.peer_id})
    tag = b"finode/Accept/1\0"

    with pytest.raises(MalformedMessage):
        open_signed(Signed(body=loose, signer=FIRST.peer_id, signature=FIRST.sign(tag + loose)), Accept)


def test_the_limit_is_that_of_the_statement() -> None:
    body = bytes(Accept.limit + 1)

    with pytest.raises(MalformedMessage, match="limit"):
        open_signed(Signed(body=body, signer=FIRST.peer_id, signature=bytes(64)), Accept)


@pytest.mark.parametrize("changes", [{"signature": bytes(63)}, {"signer": "x" * 65}])
def test_an_envelope_checks_itself(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        dataclasses.replace(sign(FIRST, ACCEPT), **changes)  # type: ignore[arg-type] # any field


@given(st.data())
def test_no_bit_can_be_changed(data: st.DataObject) -> None:
    signed = sign(FIRST, RECORD)
    part = data.draw(st.sampled_from(["body", "signature"]))
    value = bytearray(getattr(signed, part))
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    changed = {"body": signed.body, "signature": signed.signature} | {part: bytes(value)}

    with pytest.raises(BadSignature):
        open_signed(Signed(signer=signed.signer, **changed), NodeRecord)


@given(body=st.binary(max_size=200), signer=st.text(max_size=64), signature=st.binary(min_size=64, max_size=64))
def test_garbage_is_a_wire_error(body: bytes, signer: str, signature: bytes) -> None:
    with pytest.raises(WireError):
        open_signed(Signed(body=body, signer=PeerId(signer), signature=signature), Accept)
