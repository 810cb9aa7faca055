"""Weight masks and bundles, from the dealer: /finode/preprocessing/1.

party   -> dealer   RequestMasks -> Masks           once per deployment: the party's seed of the mask A
querier -> dealer   Deal -> Dealt | shares.Failed   make a bundle for this session
dealer  -> party    OfferBundle, then raw frames    the seed, and what must have a given sum (last party alone)
party   -> dealer   BundleStored | shares.Failed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from finode.wire.message import KIB, Message, check, check_id, check_seconds, register
from finode.wire.shares import SESSION_ID_BYTES

PROTOCOL = "/finode/preprocessing/1"
SEED_BYTES = 32


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMasks(Message):
    code: ClassVar[int] = 64

    committee: bytes


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Masks(Message):
    """The party's mask seed of each model's deployment, in the order of the terms' models."""

    code: ClassVar[int] = 65
    limit: ClassVar[int] = 16 * KIB

    committee: bytes
    seeds: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check(0 < len(self.seeds) <= 64, "1 to 64 seeds")
        for seed in self.seeds:
            check_id(seed, SEED_BYTES, "a seed")

    def __repr__(self) -> str:
        return f"Masks({self.committee.hex()[:12]}, {len(self.seeds)} seeds)"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Deal(Message):
    code: ClassVar[int] = 66

    session: bytes
    committee: bytes
    batch: int

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check_id(self.committee, 32, "committee")
        check(1 <= self.batch <= 4096, "batch is 1 to 4096")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt(Message):
    """The parties have the bundle: bytes sent to each, in the order of the terms, and the seconds it took."""

    code: ClassVar[int] = 67

    session: bytes
    bytes_sent: tuple[int, ...]
    seconds: float

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check(all(0 <= count < 1 << 63 for count in self.bytes_sent), "bytes_sent is not negative")
        check_seconds(self.seconds, "seconds")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class OfferBundle(Message):
    """`serial` is unique to this bundle at this dealer; a second take of it is refused."""

    code: ClassVar[int] = 68

    session: bytes
    committee: bytes
    serial: bytes
    batch: int
    seed: bytes
    correction_bytes: int

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check_id(self.committee, 32, "committee")
        check(1 <= self.batch <= 4096, "batch is 1 to 4096")
        check_id(self.serial, 16, "serial")
        check_id(self.seed, SEED_BYTES, "seed")
        check(0 <= self.correction_bytes < 1 << 40, "correction_bytes")

    def __repr__(self) -> str:
        return f"OfferBundle({self.session.hex()}, {self.correction_bytes} bytes)"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class BundleStored(Message):
    code: ClassVar[int] = 69

    session: bytes
