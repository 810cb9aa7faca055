"""The base of all messages, and the table of their codes and limits.

On a stream a frame is a header and a payload:

    u32 payload length | u8 kind (0 message, 1 raw) | u16 type code (0 for raw)      big-endian, 7 bytes

A reader knows the size limit from the code before it reads the payload; raw frames (shares, rounds) are limited by
what the sealed terms make possible, which the reader states.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from finode.errors import LocalError, MalformedMessage, MessageTooLarge
from finode.wire import canonical

HEADER = struct.Struct(">IBH")
KIND_MESSAGE = 0
KIND_RAW = 1
KIB = 1024
MIB = 1024 * KIB

M = TypeVar("M", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message between nodes. Subclasses give `code` (unique, never reused) and `limit` (bytes of the payload)."""

    code: ClassVar[int] = 0
    limit: ClassVar[int] = 4 * KIB

    def encode(self) -> bytes:
        """Return the canonical payload; raise `LocalError` when it is over its own limit."""
        payload = canonical.encode(self)
        if len(payload) > self.limit:
            raise LocalError(f"{type(self).__name__} has {len(payload)} bytes, over its limit of {self.limit}")
        return payload


_TYPES: dict[int, type[Message]] = {}


def register(cls: type[M]) -> type[M]:
    """Class decorator: enter a message type into the table by its code."""
    if cls.code in _TYPES or not 0 < cls.code < 1 << 16:
        raise LocalError(f"code {cls.code} of {cls.__name__} is taken or out of range")
    _TYPES[cls.code] = cls
    return cls


def types() -> dict[int, type[Message]]:
    """Return the table of registered types by code (for documentation and tests)."""
    return dict(_TYPES)


def type_of(code: int) -> type[Message]:
    """Return the message type of a code; raise `MalformedMessage` for an unknown one."""
    try:
        return _TYPES[code]
    except KeyError:
        raise MalformedMessage(f"unknown message code {code}") from None


def check_length(cls: type[Message], length: int) -> None:
    """Raise `MessageTooLarge` when a header announces more than the type's limit."""
    if length > cls.limit:
        raise MessageTooLarge(f"{cls.__name__} of {length} bytes announced, its limit is {cls.limit}")


def decode(code: int, payload: bytes) -> Message:
    """Return the message of a code and its payload; raise `MalformedMessage` or `MessageTooLarge`."""
    cls = type_of(code)
    check_length(cls, len(payload))
    return canonical.decode(payload, cls)


def check(condition: bool, message: str) -> None:
    """Raise `MalformedMessage(message)` unless `condition` holds; for `__post_init__`."""
    if not condition:
        raise MalformedMessage(message)


def check_printable(value: str, name: str) -> None:
    """Raise `MalformedMessage` if a name that people will read could move their cursor or break their lines."""
    check(value.isprintable(), f"{name} has characters that cannot be printed")


def check_seconds(value: float, name: str) -> None:
    """Raise `MalformedMessage` unless `value` is a finite duration that is not negative."""
    check(math.isfinite(value) and value >= 0, f"{name} is a number of seconds, not negative")


def check_id(value: bytes, size: int, name: str) -> None:
    """Raise `MalformedMessage` unless `value` has exactly `size` bytes."""
    check(len(value) == size, f"{name} has {len(value)} bytes instead of {size}")
