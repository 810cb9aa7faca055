"""A node's Ed25519 identity and the libp2p peer id that follows from it.

The peer id is the identity multihash of the protobuf-encoded public key, in base58 [libp2p peer-ids spec]: a few
lines, so that only `finode.net` needs libp2p. An Ed25519 peer id contains its public key, so a signature can be
checked with nothing but the signer's id.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NewType

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from finode.errors import BadSignature, IdentityError

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58: `12D3KooW...`."""

SEED_BYTES = 32
# identity multihash (0x00) of 36 bytes: protobuf {1: KeyType.Ed25519 (1), 2: 32 bytes}
_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of a raw 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_PREFIX + public_key).decode())


# A receipt names each member several times, and taking base58 apart costs as much as a tenth of a signature check.
@lru_cache(maxsize=4096)
def public_key_of(peer_id: str) -> bytes:
    """Return the raw 32-byte Ed25519 public key inside a peer id.

    Raises `IdentityError` if it is not an Ed25519 peer id.
    """
    try:
        raw = base58.b58decode(peer_id) if len(peer_id) <= 64 else b""
    except ValueError:
        raw = b""
    # base58 decoders ignore blanks at the end: without the comparison one key would have many ids.
    if len(raw) != len(_PREFIX) + 32 or not raw.startswith(_PREFIX) or base58.b58encode(raw).decode() != peer_id:
        raise IdentityError(f"{peer_id!r} is not an Ed25519 peer id", hint="it should look like 12D3KooW...")
    return raw[len(_PREFIX) :]


def verify(peer_id: str, signature: bytes, data: bytes) -> None:
    """Check that `signature` over `data` was made by the key of `peer_id`; raise `BadSignature` otherwise."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer_id)).verify(signature, data)
    except InvalidSignature:
        raise BadSignature(f"the signature is not by {peer_id}") from None
    except IdentityError as error:
        raise BadSignature(error.message) from None


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A private key and its peer id. The key never leaves this object but to its file and to libp2p's handshake."""

    key: Ed25519PrivateKey
    peer_id: PeerId

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`."""
        return self.key.sign(data)

    def seed(self) -> bytes:
        """Return the 32-byte private seed, for libp2p's key pair alone."""
        return self.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(key, peer_id_of(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))

    @classmethod
    def generate(cls) -> Identity:
        return cls.from_seed(os.urandom(SEED_BYTES))

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a new identity and write its seed to `path` with mode 0600; refuse to overwrite."""
        identity = cls.generate()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise IdentityError(
                f"{path} exists already", hint="a lost identity cannot be made again: move it away yourself"
            ) from None
        except OSError as error:
            raise IdentityError(f"cannot write {path}: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(identity.seed())
            file.flush()
            os.fsync(file.fileno())
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the identity at `path`; raise `IdentityError` if it is missing, open to others, or not a key."""
        try:
            mode = path.stat().st_mode & 0o777
            seed = path.read_bytes()
        except FileNotFoundError:
            raise IdentityError(f"there is no identity at {path}", hint="run `finode init`") from None
        except OSError as error:
            raise IdentityError(f"cannot read {path}: {error.strerror}") from None
        if mode & 0o077:
            raise IdentityError(f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
        if len(seed) != SEED_BYTES:
            raise IdentityError(
                f"{path} is not an identity: {len(seed)} bytes instead of {SEED_BYTES}",
                hint="restore it from your backup",
            )
        return cls.from_seed(seed)
