"""Signed statements: canonical bytes, a signer's peer id, and an Ed25519 signature under a domain tag.

The domain is the statement's class, so a signature on one kind of statement never passes for another kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from finode.errors import BadSignature
from finode.identity import Identity, PeerId, verify
from finode.wire import canonical
from finode.wire.message import Message, check

S = TypeVar("S", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A statement with its signature; `open_signed` checks it and gives the statement."""

    body: bytes
    signer: PeerId
    signature: bytes

    def __post_init__(self) -> None:
        check(len(self.signature) == 64, "a signature has 64 bytes")
        check(len(self.signer) <= 64, "the signer is not a peer id")


def _domain(cls: type[Message]) -> bytes:
    return f"finode/{cls.__name__}/1\0".encode()


def sign(identity: Identity, statement: Message) -> Signed:
    """Return `statement` signed by `identity`."""
    body = statement.encode()
    return Signed(body=body, signer=identity.peer_id, signature=identity.sign(_domain(type(statement)) + body))


def open_signed(signed: Signed, cls: type[S], *, signer: str | None = None) -> S:
    """Check `signed` as a statement of type `cls` (by `signer`, if given) and return the statement.

    Raises `BadSignature` or `MalformedMessage`. The size limit of `cls` is checked before anything is parsed.
    """
    if signer is not None and signed.signer != signer:
        raise BadSignature(f"signed by {signed.signer} instead of {signer}")
    check(len(signed.body) <= cls.limit, f"{cls.__name__} of {len(signed.body)} bytes, its limit is {cls.limit}")
    verify(signed.signer, signed.signature, _domain(cls) + signed.body)
    return canonical.decode(signed.body, cls)


def co_sign(identity: Identity, body: bytes, cls: type[Message]) -> bytes:
    """Return `identity`'s signature of a body of `cls` that several sign."""
    return identity.sign(_domain(cls) + body)


def check_co_signature(body: bytes, cls: type[Message], signer: PeerId, signature: bytes) -> None:
    """Raise `BadSignature` unless `signature` is `signer`'s of this body of `cls`."""
    verify(signer, signature, _domain(cls) + body)
