"""Node records, by gossip on the topic `finode/records/1/<federation>` and by sync on /finode/directory/1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from finode.config import Role
from finode.identity import PeerId, public_key_of
from finode.wire import canonical
from finode.wire.message import KIB, MIB, Message, check, check_id, check_printable, register
from finode.wire.signed import Signed

PROTOCOL = "/finode/directory/1"
MAX_MODELS = 64
MAX_DIMENSION = 1 << 20


class Color(StrEnum):
    """Channel order of an image service; `NONE` for inputs that are no images."""

    NONE = "none"
    GRAY = "gray"
    RGB = "rgb"
    BGR = "bgr"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How an input becomes a tensor: `shape` without the batch, (channels, height, width) for an image.

    An image is resized to (height, width), its channels put in the order of `color`, its bytes multiplied by `scale`,
    then (value - mean) / deviation per channel. `mean` and `deviation` are empty where that step is left out.
    """

    shape: tuple[int, ...]
    color: Color = Color.NONE
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check(0 < len(self.shape) <= 4, "an input has 1 to 4 dimensions")
        check(all(0 < side <= MAX_DIMENSION for side in self.shape), "every dimension is positive")
        check(math.prod(self.shape) <= 1 << 24, "an input has at most 2^24 values")
        channels = self.shape[0] if len(self.shape) == 3 else 0
        if self.color is not Color.NONE:
            expected = 1 if self.color is Color.GRAY else 3
            check(channels == expected, f"a {self.color} image has the shape ({expected}, height, width)")
        check(math.isfinite(self.scale) and self.scale > 0, "scale is a positive number")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            check(len(values) in (0, channels), f"{name} has one value per channel")
            check(all(math.isfinite(value) for value in values), f"{name} is finite")
        check(all(value > 0 for value in self.deviation), "deviation is positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A named task: its input and its classes, equal for all of its models."""

    name: str
    input: InputSpec
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check(0 < len(self.name) <= 64, "a service's name has 1 to 64 characters")
        check(all(c.isalnum() or c in "-_." for c in self.name), "a service's name has letters, digits, - _ .")
        check(1 < len(self.classes) <= 1024, "a service has 2 to 1024 classes")
        check(all(0 < len(c) <= 128 for c in self.classes), "a class's name has 1 to 128 characters")
        check(len(set(self.classes)) == len(self.classes), "two classes have the same name")
        for name in self.classes:
            check_printable(name, "a class's name")

    def digest(self) -> bytes:
        """Return the hash on which all models of the service must agree."""
        return canonical.digest("service", canonical.encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOffer:
    """One model version that an owner offers. Its plan is public, its weights are not, nor are the counts of training
    samples that it may have among them, as `counts` says."""

    version: bytes
    plan_digest: bytes
    service: str
    price: int
    engines: tuple[str, ...] = ("native",)
    counts: bool = False

    def __post_init__(self) -> None:
        check_id(self.version, 32, "version")
        check_id(self.plan_digest, 32, "plan_digest")
        check(0 <= self.price < 1 << 53, "price is in micro-credits per input, not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRef:
    """A deployment that a party keeps: which model version for which ordered parties and dealer."""

    model: bytes
    parties: tuple[PeerId, ...]
    dealer: PeerId

    def __post_init__(self) -> None:
        check_id(self.model, 32, "model")
        check(2 <= len(self.parties) <= 16, "a deployment has 2 to 16 parties")
        for peer in (*self.parties, self.dealer):
            public_key_of(peer)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord(Message):
    """What a node says of itself; signed, short-lived, the highest `sequence` counts."""

    code: ClassVar[int] = 16
    limit: ClassVar[int] = 64 * KIB

    peer: PeerId
    federation: str
    organization: str
    roles: tuple[Role, ...]
    addresses: tuple[str, ...]
    versions: tuple[int, ...]
    services: tuple[ServiceSpec, ...]
    models: tuple[ModelOffer, ...]
    engines: tuple[str, ...]
    capacity: int
    party_price: int
    dealer_price: int
    deployments: tuple[DeploymentRef, ...]
    sequence: int
    issued_ms: int
    expires_ms: int

    def __post_init__(self) -> None:
        public_key_of(self.peer)
        check(
            len(self.organization) <= 64 and 0 < len(self.federation) <= 64,
            "organization and federation: at most 64 characters",
        )
        check_printable(self.organization, "organization")
        check_printable(self.federation, "federation")
        check(len(self.addresses) <= 16, "at most 16 addresses")
        check(all(len(address) <= 256 for address in self.addresses), "an address has at most 256 characters")
        check(
            len(self.services) <= MAX_MODELS and len(self.models) <= MAX_MODELS,
            f"at most {MAX_MODELS} models",
        )
        names = {service.name for service in self.services}
        check(len(names) == len(self.services), "a service stands twice in the record")
        check(all(model.service in names for model in self.models), "a model's service is not in the record")
        check(len(self.deployments) <= 64, "at most 64 deployments")
        check(len(set(self.roles)) == len(self.roles), "a role stands twice in the record")
        check(len(self.versions) <= 16, "at most 16 protocol versions")
        check(0 <= self.capacity < 1 << 31, "capacity is not negative")
        check(0 <= self.party_price < 1 << 53 and 0 <= self.dealer_price < 1 << 53, "prices are not negative")
        for text in (*self.addresses, *self.engines):
            check_printable(text, "an address or engine")
        check(0 <= self.sequence < 1 << 63, "sequence is not negative")
        check(self.issued_ms < self.expires_ms, "the record expires before it was issued")

    def service(self, name: str) -> ServiceSpec | None:
        return next((service for service in self.services if service.name == name), None)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySync(Message):
    """What I have: the sequence of each peer's record. The answer brings what is newer there."""

    code: ClassVar[int] = 17
    limit: ClassVar[int] = 256 * KIB

    have: tuple[tuple[PeerId, int], ...]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryRecords(Message):
    """Signed `NodeRecord`s; `wanted` lists the peers of which the sender would like the newer record back."""

    code: ClassVar[int] = 18
    limit: ClassVar[int] = 8 * MIB

    records: tuple[Signed, ...]
    wanted: tuple[PeerId, ...] = ()
