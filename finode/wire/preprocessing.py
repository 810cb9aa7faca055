"""Weight masks and bundles, from the dealer: /finode/preprocessing/1.

party   -> dealer   RequestMasks -> Masks           once per deployment: the party's seed of the mask A

A committee's pool, querier -> dealer; one stream for as long as the querier uses the committee:

    querier -> dealer   Deal ...                    make a bundle of this serial now; and go on dealing such ahead
    dealer  -> querier  Dealing ...                 this bundle is being dealt ahead
    dealer  -> querier  Dealt ...                   every party has this bundle: one asked for, or one dealt ahead
    dealer  -> querier  Spent ...                   a party used this bundle, or burned it, or did not take it
    querier -> dealer   Spent ...                   the session that was to use this bundle ended early: burn it
    dealer  -> querier  shares.Failed ...           its subject is a serial: that bundle cannot be dealt;
                                                    it is the committee: the pool is closed

A bundle, dealer -> party; one stream for as long as the party has it. Either side burns the bundle by closing it:

    dealer  -> party    OfferBundle, then raw frames    the seed, and what must have a given sum (last party alone)
    party   -> dealer   BundleStored | shares.Failed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from finode.wire.message import KIB, Message, check, check_id, check_seconds, register

PROTOCOL = "/finode/preprocessing/1"
SEED_BYTES = 32
SERIAL_BYTES = 16
MAX_BATCH = 4096


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
    """Make a bundle for `batch` inputs. The querier chose its `serial`, so that it may start the session meanwhile; a
    serial that the committee had before is refused."""

    code: ClassVar[int] = 66

    committee: bytes
    serial: bytes
    batch: int

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check_id(self.serial, SERIAL_BYTES, "serial")
        check(1 <= self.batch <= MAX_BATCH, "batch is 1 to 4096")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt(Message):
    """The parties have the bundle: bytes sent to each, in the order of the terms, and the seconds it took.

    `ahead`: nobody asked for it; it is there for the next session of its batch.
    """

    code: ClassVar[int] = 67

    serial: bytes
    batch: int
    ahead: bool
    bytes_sent: tuple[int, ...]
    seconds: float

    def __post_init__(self) -> None:
        check_id(self.serial, SERIAL_BYTES, "serial")
        check(1 <= self.batch <= MAX_BATCH, "batch is 1 to 4096")
        check(all(0 <= count < 1 << 63 for count in self.bytes_sent), "bytes_sent is not negative")
        check_seconds(self.seconds, "seconds")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class OfferBundle(Message):
    """`serial` names one bundle of one dealer, the same at all parties; a second take of it is refused.

    A party may refuse one that is dealt `ahead` because it has no room; never one that is asked for now.
    """

    code: ClassVar[int] = 68

    committee: bytes
    serial: bytes
    batch: int
    ahead: bool
    seed: bytes
    correction_bytes: int

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check_id(self.serial, SERIAL_BYTES, "serial")
        check(1 <= self.batch <= MAX_BATCH, "batch is 1 to 4096")
        check_id(self.seed, SEED_BYTES, "seed")
        check(0 <= self.correction_bytes < 1 << 40, "correction_bytes")

    def __repr__(self) -> str:
        return f"OfferBundle({self.serial.hex()}, {self.correction_bytes} bytes)"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class BundleStored(Message):
    code: ClassVar[int] = 69

    serial: bytes

    def __post_init__(self) -> None:
        check_id(self.serial, SERIAL_BYTES, "serial")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Spent(Message):
    """No session can use this bundle any more."""

    code: ClassVar[int] = 70

    serial: bytes

    def __post_init__(self) -> None:
        check_id(self.serial, SERIAL_BYTES, "serial")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing(Message):
    """A bundle is being dealt ahead; Dealt or Spent follows. To wait for it is faster than to ask for another one."""

    code: ClassVar[int] = 71

    serial: bytes
    batch: int

    def __post_init__(self) -> None:
        check_id(self.serial, SERIAL_BYTES, "serial")
        check(1 <= self.batch <= MAX_BATCH, "batch is 1 to 4096")
