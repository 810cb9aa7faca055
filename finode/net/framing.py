"""Frames on a byte stream: headers, and the limit of a payload before a byte of it is read. No I/O.

    u32 payload length | u8 kind (0 message, 1 raw) | u16 type code (0 for raw)      big-endian, 7 bytes

A `FrameReader` is fed bytes as they come. It parses a header as soon as its seven bytes are there and then waits for
the caller to `admit` it: only an admitted frame's payload is gathered. So whoever drives it never asks the stream for
bytes of a frame that is too large or not expected now, and may give up waiting and go on later in mid-frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from finode.errors import MalformedMessage, MessageTooLarge
from finode.wire.message import HEADER, KIND_MESSAGE, KIND_RAW, Message, check_length, type_of

MAX_PAYLOAD = (1 << 32) - 1
"""What the header's length field can say."""


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed frame header. `code` is 0 for a raw frame."""

    length: int
    kind: int
    code: int

    @property
    def is_raw(self) -> bool:
        return self.kind == KIND_RAW


def message_header(code: int, length: int) -> bytes:
    """Return the header of a message frame."""
    return HEADER.pack(length, KIND_MESSAGE, code)


def raw_header(length: int) -> bytes:
    """Return the header of a raw frame; raise `MessageTooLarge` for what the length field cannot say."""
    if length > MAX_PAYLOAD:
        raise MessageTooLarge(f"a raw frame of {length} bytes does not fit its header")
    return HEADER.pack(length, KIND_RAW, 0)


def parse_header(data: bytes | bytearray) -> Header:
    """Return the header in the first seven bytes; raise `MalformedMessage` when no frame begins so."""
    header = Header(*HEADER.unpack_from(data))
    if header.kind == KIND_RAW and header.code == 0:
        return header
    if header.kind == KIND_MESSAGE:
        type_of(header.code)
        return header
    raise MalformedMessage(f"no frame begins with kind {header.kind} and code {header.code}")


def admit(header: Header, types: tuple[type[Message], ...], raw_limit: int | None) -> None:
    """Check a header against what is expected now: messages of `types`, raw frames of at most `raw_limit` bytes.

    Raises `MalformedMessage` for a frame of another kind or type, `MessageTooLarge` for one over its limit.
    """
    if header.is_raw:
        if raw_limit is None:
            raise MalformedMessage(f"a raw frame came instead of {_names(types)}")
        if header.length > raw_limit:
            raise MessageTooLarge(f"a raw frame of {header.length} bytes announced, its limit is {raw_limit}")
        return
    cls = type_of(header.code)
    if cls not in types:
        wanted = _names(types) if raw_limit is None else f"{_names(types)} or a raw frame"
        raise MalformedMessage(f"{cls.__name__} came instead of {wanted}")
    check_length(cls, header.length)


def _names(types: tuple[type[Message], ...]) -> str:
    return " or ".join(cls.__name__ for cls in types) or "a raw frame"


class FrameReader:
    """Gathers frames from bytes."""

    def __init__(self) -> None:
        self._inbox = bytearray()
        self._payload: bytearray | None = None
        self._header: Header | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether no part of a frame has come yet."""
        return self._header is None and not self._inbox

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes that came. A bytearray is kept, not copied: its giver must not touch it again."""
        if self._payload is None:
            if self._inbox:
                self._inbox += data
            else:
                self._inbox = data if isinstance(data, bytearray) else bytearray(data)
            return
        assert self._header is not None  # noqa: S101 - a payload is gathered only after its header
        missing = self._header.length - len(self._payload)
        if len(data) <= missing:
            self._payload += data
        else:
            view = memoryview(data)
            self._payload += view[:missing]
            self._inbox = bytearray(view[missing:])

    def header(self) -> Header | None:
        """Return the header of the frame that comes, None while it is incomplete."""
        if self._header is None and len(self._inbox) >= HEADER.size:
            self._header = parse_header(self._inbox)
        return self._header

    def payload(self) -> bytearray | None:
        """Gather the payload of the frame whose header was admitted; None while it is incomplete.

        The frame is consumed when its payload is returned.
        """
        if self._header is None:
            return None
        if self._payload is None:
            end = HEADER.size + self._header.length
            if len(self._inbox) > end:
                self._payload = self._inbox[HEADER.size : end]
                del self._inbox[:end]
            else:
                self._payload, self._inbox = self._inbox, bytearray()
                del self._payload[: HEADER.size]
        if len(self._payload) < self._header.length:
            return None
        payload, self._payload, self._header = self._payload, None, None
        return payload
