"""Every message has one encoding, and nothing else decodes to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finode.errors import LocalError, MalformedMessage, MessageTooLarge, WireError
from finode.wire import canonical, message
from finode.wire.control import Goodbye, Hello, Ping
from finode.wire.directory import DirectorySync, InputSpec, NodeRecord
from finode.wire.message import Message
from finode.wire.shares import Meter, SessionResult
from tests.wire.conftest import EXAMPLES, ID16, RECORD, load_all, names, pack, unpack

load_all()
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=names(EXAMPLES))


def decode(example: Message, payload: bytes) -> Message:
    return message.decode(type(example).code, payload)


def test_every_registered_type_has_an_example() -> None:
    assert {type(example) for example in EXAMPLES} == set(message.types().values())


@each_example
def test_a_message_comes_back_as_it_was(example: Message) -> None:
    payload = example.encode()

    back = decode(example, payload)

    assert back == example
    assert back.encode() == payload
    assert len(payload) <= example.limit


@each_example
def test_an_unknown_field_is_refused(example: Message) -> None:
    with pytest.raises(MalformedMessage, match="unknown fields"):
        decode(example, pack(dict(sorted((unpack(example.encode()) | {"zzz": 0}).items()))))


@each_example
def test_a_missing_field_is_refused(example: Message) -> None:
    fields = unpack(example.encode())

    for name in fields:
        with pytest.raises(MalformedMessage):
            decode(example, pack({key: value for key, value in fields.items() if key != name}))


@each_example
def test_fields_out_of_order_are_refused(example: Message) -> None:
    fields = unpack(example.encode())
    if len(fields) == 1:
        return

    with pytest.raises(MalformedMessage, match="canonical"):
        decode(example, pack(dict(reversed(fields.items()))))


@each_example
def test_a_field_of_a_wrong_type_is_refused(example: Message) -> None:
    fields = unpack(example.encode())

    for name, value in fields.items():
        for other in (None, 1.5, "text", b"bytes", [None], {"a": None}, True, -1):
            if type(other) is not type(value) and not (isinstance(value, float) and other == -1):
                with pytest.raises(MalformedMessage):
                    decode(example, pack(fields | {name: other}))


@each_example
def test_bytes_behind_the_message_are_refused(example: Message) -> None:
    for more in (b"\0", example.encode()):
        with pytest.raises(MalformedMessage):
            canonical.decode(example.encode() + more, type(example))


@each_example
def test_no_prefix_of_a_message_is_a_message(example: Message) -> None:
    payload = example.encode()

    for length in range(0, len(payload), max(1, len(payload) // 64)):
        with pytest.raises(MalformedMessage):
            decode(example, payload[:length])


@each_example
def test_more_bytes_than_the_limit_are_refused_unread(example: Message) -> None:
    with pytest.raises(MessageTooLarge):
        decode(example, bytes(example.limit + 1))
    with pytest.raises(MessageTooLarge):
        message.check_length(type(example), example.limit + 1)
    message.check_length(type(example), example.limit)


@pytest.mark.parametrize(
    ("payload", "cls"),
    [
        pytest.param(b"\x81\xa6number\xcd\x00\x05", Ping, id="an integer longer than needed"),
        pytest.param(b"\x81\xa6number\xd0\x05", Ping, id="a signed integer for a positive one"),
        pytest.param(b"\x81\xd9\x06number\x05", Ping, id="a string longer than needed"),
        pytest.param(b"\xde\x00\x01\xa6number\x05", Ping, id="a map longer than needed"),
        pytest.param(b"\x82\xa6number\x05\xa6number\x05", Ping, id="a key twice"),
        pytest.param(b"\x81\xc4\x06number\x05", Ping, id="a key of bytes"),
        pytest.param(b"\x81\xa6number\xc3", Ping, id="a boolean for an integer"),
        pytest.param(b"\x81\xa6number\xcb" + bytes(8), Ping, id="a float for an integer"),
        pytest.param(b"\x81\xa6numbe\xff\x05", Ping, id="a string that is no UTF-8"),
        pytest.param(b"\x81\xa6number\xc1", Ping, id="the unused byte"),
        pytest.param(b"\x91" * 100_000 + b"\0", Ping, id="deep nesting"),
        pytest.param(b"\x81\xa6number" + b"\x81\xa1a" * 50_000 + b"\0", Ping, id="deep nesting in a field"),
        pytest.param(b"\xdf\xff\xff\xff\xff", Ping, id="a map of four billion entries"),
        pytest.param(b"\xdd\xff\xff\xff\xff", Ping, id="a list of four billion entries"),
        pytest.param(b"\xc6\xff\xff\xff\xff", Ping, id="four billion bytes"),
        pytest.param(msgpack.packb(msgpack.Timestamp(1, 2)), Ping, id="an extension type"),
        pytest.param(msgpack.packb([5]), Ping, id="a list for a map"),
        pytest.param(b"", Ping, id="nothing"),
        pytest.param(msgpack.packb({"have": [["peer", 1, 2]]}), DirectorySync, id="a tuple too long"),
        pytest.param(msgpack.packb({"have": {"peer": 1}}), DirectorySync, id="a map for a list"),
    ],
)
def test_what_is_not_canonical_is_refused(payload: bytes, cls: type[Message]) -> None:
    with pytest.raises(MalformedMessage) as refused:
        canonical.decode(payload, cls)

    assert refused.value.message.startswith(f"not a valid {cls.__name__}: ")
    assert len(refused.value.message) > len(f"not a valid {cls.__name__}: ")


def test_floats_are_double_and_finite_where_they_matter() -> None:
    result = SessionResult(session=ID16, output_bytes=0, meter=Meter(online_s=0.5))
    fields = unpack(result.encode())

    single = result.encode().replace(msgpack.packb(0.5), msgpack.packb(0.5, use_single_float=True))
    with pytest.raises(MalformedMessage, match="canonical"):
        decode(result, single)
    fields["meter"]["online_s"] = 1
    with pytest.raises(MalformedMessage):
        decode(result, pack(fields))
    fields["meter"]["online_s"] = float("nan")
    with pytest.raises(MalformedMessage, match="online_s"):
        decode(result, pack(fields))


def test_an_enum_has_no_other_members() -> None:
    fields = unpack(RECORD.encode())

    with pytest.raises(MalformedMessage, match="emperor"):
        decode(RECORD, pack(fields | {"roles": ["emperor"]}))


def test_an_unknown_code_is_refused() -> None:
    for code in (0, 9999):
        with pytest.raises(MalformedMessage, match=str(code)):
            message.decode(code, b"")


def test_a_code_is_given_once() -> None:
    for code in (Ping.code, 0, 1 << 16):
        with pytest.raises(LocalError):
            message.register(type("Twin", (Message,), {"code": code}))


def test_we_do_not_send_what_is_over_its_own_limit() -> None:
    with pytest.raises(LocalError, match="Goodbye"):
        Goodbye(reason="x" * 5000, versions=()).encode()


def test_a_digest_is_of_one_domain() -> None:
    assert len({canonical.digest(domain, data) for domain, data in (("a", b"b"), ("b", b"a"), ("a", b""))}) == 3


@given(st.binary(max_size=300), st.sampled_from([type(example) for example in EXAMPLES]))
def test_garbage_is_a_wire_error(payload: bytes, cls: type[Message]) -> None:
    with pytest.raises(WireError):
        message.decode(cls.code, payload)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
strings = st.text(max_size=8) | st.binary(max_size=40)
plain = st.recursive(
    scalars | strings,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(data=st.data(), example=st.sampled_from(EXAMPLES))
def test_a_message_with_any_fields_spoiled_is_a_wire_error_or_canonical(data: st.DataObject, example: Message) -> None:
    fields = unpack(example.encode())
    name = data.draw(st.sampled_from(sorted(fields)))
    spoiled: dict[str, Any] = fields | {name: data.draw(plain)}
    payload = pack(spoiled)

    try:
        back = decode(example, payload)
    except WireError:
        return
    assert back.encode() == payload


@given(data=st.data(), example=st.sampled_from(EXAMPLES))
def test_a_message_with_a_flipped_bit_is_a_wire_error_or_canonical(data: st.DataObject, example: Message) -> None:
    payload = bytearray(example.encode())
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8

    try:
        back = decode(example, bytes(payload))
    except WireError:
        return
    assert back.encode() == payload


@given(st.text(max_size=64), st.lists(st.integers(0, 2**63), min_size=1, max_size=16), st.booleans())
def test_any_hello_comes_back(agent: str, versions: list[int], bulk: bool) -> None:
    hello = Hello(federation="test", versions=tuple(versions), agent=agent, bulk=bulk)

    assert decode(hello, hello.encode()) == hello


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=4),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
)
def test_any_input_spec_comes_back(shape: list[int], scale: float) -> None:
    spec = InputSpec(shape=tuple(shape), scale=scale)

    assert canonical.decode(canonical.encode(spec), InputSpec) == spec


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**53 - 1))
def test_any_record_comes_back(sequence: int, price: int) -> None:
    record = dataclasses.replace(RECORD, sequence=sequence, party_price=price)

    assert canonical.decode(record.encode(), NodeRecord) == record
