"""The canonical encoding: one value, one byte string.

msgpack with map keys sorted, shortest integers, UTF-8 strings, `bin` for bytes, and no extension types. Decoding is
strict: types are checked against the dataclass, an unknown or missing field is an error, and bytes that would not
come out the same when encoded again are refused, so that a signature or a hash covers one reading only.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, TypeVar

import msgpack
import msgspec

from finode.errors import FinodeError, MalformedMessage

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Return the canonical bytes of a frozen dataclass (or of plain ints, strings, bytes, lists and maps)."""
    builtins = msgspec.to_builtins(value, builtin_types=(bytes,), order="sorted")
    packed: bytes = msgpack.packb(builtins, use_bin_type=True)
    return packed


def decode(data: bytes, as_type: type[T]) -> T:
    """Return the value of canonical bytes; raise `MalformedMessage` that names what is wrong."""
    name = as_type.__name__
    try:
        builtins: Any = msgpack.unpackb(data, raw=False, strict_map_key=True)
        value = msgspec.convert(builtins, as_type, strict=True, builtin_types=(bytes,))
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"not a valid {name}: {str(error) or type(error).__name__}") from None
    except FinodeError as error:
        raise MalformedMessage(f"not a valid {name}: {error.message}") from None
    if dataclasses.is_dataclass(value) and encode(value) != data:
        raise MalformedMessage(f"not a valid {name}: not in canonical form, or it has unknown fields")
    return value


def digest(domain: str, data: bytes) -> bytes:
    """Return the 32-byte SHA-256 of `data` under a domain tag, so that no two kinds of things share a hash."""
    return hashlib.sha256(b"finode/" + domain.encode() + b"\0" + data).digest()
