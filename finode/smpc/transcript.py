"""The transcript of a run: one SHA-256 over everything that was opened to all parties, in the order of opening.

Only opened values go in, never shares or frames: so the digest is the same at all parties of a run, does not depend on
how many they are, and differs, but for a collision of SHA-256 [FIPS 180-4], as soon as one party was told something
else than another. Every round adds, in little-endian,

    round u32 | bytes of the description u32 | description | each opened value, in the order of the description

where the description, public and the same at all parties, fixes kind and size of the values: no two runs that opened
different things write the same bytes.

The masks of opened values are known to the dealer, who could test a guess of an input against the plain digest. It is
for the party's own daemon, which hashes it under a key that the parties alone know before it tells anybody.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from finode.smpc.engine import Buffer

_DOMAIN = b"finode/smpc/transcript/1\0"
_ROUND = struct.Struct("<II")


class Transcript:
    """The digest of a run so far."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = hashlib.sha256(_DOMAIN)

    def __repr__(self) -> str:
        return "Transcript(...)"

    def add(self, round_: int, description: Buffer, values: Iterable[Buffer]) -> None:
        """Add what one round opened."""
        self._hash.update(_ROUND.pack(round_, memoryview(description).nbytes))
        self._hash.update(description)
        for value in values:
            self._hash.update(value)

    def digest(self) -> bytes:
        """Return the 32 bytes of all rounds until now."""
        return self._hash.digest()
