"""Cryptographic streams: a 32-byte seed becomes as many independent byte streams as there are tags.

A stream's key is BLAKE2b of its tag keyed by the seed [RFC 7693], its bytes are AES-256 in counter mode over zeros
[NIST SP 800-38A], which runs at memory speed where the processor has AES instructions. Equal seed and tag give equal
bytes, so both ends of a seed must use every tag once and read it in the same order.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from finode.errors import LocalError

SEED_BYTES = 32
# AES-CTR encrypts zeros; a block that stays in the second-level cache is faster than fresh pages of zeros.
_ZEROS = bytes(256 * 1024)

Bytes = npt.NDArray[np.uint8]


def fresh_seed() -> bytes:
    """Return 32 bytes of the operating system's generator."""
    return os.urandom(SEED_BYTES)


def subkey(seed: bytes, *path: str | bytes | int) -> bytes:
    """Return the 32-byte key of `path` under `seed`. Each part is prefixed by its length, so no two paths collide."""
    if len(seed) != SEED_BYTES:
        raise LocalError(f"a seed has {SEED_BYTES} bytes, this one {len(seed)}")
    state = hashlib.blake2b(key=seed, digest_size=SEED_BYTES, person=b"finode.smpc")
    for part in path:
        raw = part if isinstance(part, bytes) else str(part).encode()
        state.update(len(raw).to_bytes(4, "little") + raw)
    return state.digest()


class Stream:
    """The bytes of one key, read front to back."""

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        # A key is used for one stream alone, so the counter may start at zero.
        self._encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "Stream(...)"

    def read(self, size: int) -> Bytes:
        """Return the next `size` bytes, in an array of its own."""
        out = np.empty(size, dtype=np.uint8)
        view = out.data
        zeros = memoryview(_ZEROS)
        for start in range(0, size, len(_ZEROS)):
            stop = min(start + len(_ZEROS), size)
            self._encryptor.update_into(zeros[: stop - start], view[start:stop])
        return out

    def integers(self, count: int) -> npt.NDArray[np.int64]:
        """Return the next `count` uniform elements of Z_2^64."""
        return self.read(8 * count).view("<i8")
