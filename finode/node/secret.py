"""The home's secret: 32 random bytes from which the dealer's masks and the owner's sharings are derived.

Deriving instead of storing means that a restart changes nothing: a dealer gives the same mask, and an owner the same
share, for the same deployment. The derivation is HKDF-SHA256 with the purpose and the subject as its info.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET_BYTES = 32


class NodeSecret:
    """Holds the secret; its repr shows nothing."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "NodeSecret()"

    def derive(self, purpose: str, subject: bytes = b"") -> bytes:
        """Return 32 bytes that depend on the secret, the purpose and the subject."""
        info = b"finode/" + purpose.encode() + b"\0" + subject
        return HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(self._secret)
