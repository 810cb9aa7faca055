"""Frames: headers, limits before payloads, bytes in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finode.errors import FinodeError, MalformedMessage, MessageTooLarge
from finode.net.framing import FrameReader, admit, message_header, parse_header, raw_header
from finode.wire.control import Goodbye, Hello, Ping
from finode.wire.message import HEADER, KIND_MESSAGE, decode


def frame(number: int) -> bytes:
    payload = Ping(number=number).encode()
    return message_header(Ping.code, len(payload)) + payload


@given(
    numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=60),
)
def test_frames_come_out_whole_however_their_bytes_are_cut(numbers: list[int], cuts: list[int]) -> None:
    data = b"".join(map(frame, numbers)) + raw_header(100) + bytes(100)
    reader, seen = FrameReader(), []
    for cut in (*cuts, len(data)):
        piece, data = data[:cut], data[cut:]
        reader.feed(bytearray(piece))
        while (header := reader.header()) is not None:
            payload = reader.payload()
            if payload is None:
                break
            seen.append(bytes(payload) if header.is_raw else decode(header.code, bytes(payload)))
    assert seen == [*(Ping(number=number) for number in numbers), bytes(100)]
    assert reader.at_boundary


def test_a_frame_is_kept_until_it_is_complete() -> None:
    reader = FrameReader()
    reader.feed(raw_header(10) + b"12345")
    assert reader.header() is not None
    assert reader.payload() is None
    assert not reader.at_boundary
    reader.feed(b"67890" + raw_header(0))
    assert bytes(reader.payload() or b"") == b"1234567890"
    assert reader.header() is not None
    payload = reader.payload()
    assert payload is not None
    assert not payload
    assert reader.at_boundary


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(5, 2, 0),
        HEADER.pack(5, 255, 1),
        HEADER.pack(5, 1, 7),
        HEADER.pack(5, KIND_MESSAGE, 0),
        HEADER.pack(5, KIND_MESSAGE, 65535),
    ],
)
def test_what_begins_no_frame_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_header(data)


def test_a_header_is_judged_by_what_is_expected() -> None:
    admit(parse_header(message_header(Ping.code, 20)), (Ping, Goodbye), None)
    admit(parse_header(raw_header(100)), (Ping,), 100)
    with pytest.raises(MessageTooLarge, match="Hello of 5000 bytes"):
        admit(parse_header(message_header(Hello.code, 5000)), (Hello,), None)
    with pytest.raises(MessageTooLarge, match="101 bytes announced, its limit is 100"):
        admit(parse_header(raw_header(101)), (), 100)
    with pytest.raises(MalformedMessage, match="Ping came instead of Hello"):
        admit(parse_header(message_header(Ping.code, 20)), (Hello,), None)
    with pytest.raises(MalformedMessage, match="Ping came instead of a raw frame"):
        admit(parse_header(message_header(Ping.code, 20)), (), 100)
    with pytest.raises(MalformedMessage, match="a raw frame came instead of Ping or Hello"):
        admit(parse_header(raw_header(1)), (Ping, Hello), None)


def test_a_raw_frame_beyond_its_length_field_is_refused_here() -> None:
    with pytest.raises(MessageTooLarge):
        raw_header(1 << 32)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_wire_errors(data: bytes) -> None:
    reader = FrameReader()
    reader.feed(data)
    try:
        while (header := reader.header()) is not None:
            admit(header, (Ping, Hello), 50)
            payload = reader.payload()
            if payload is None:
                return
            if not header.is_raw:
                decode(header.code, bytes(payload))
    except FinodeError as error:
        assert isinstance(error, MalformedMessage | MessageTooLarge)  # noqa: PT017 - nothing at all is fine, too
