"""Shares on the move: /finode/shares/1. Raw frames follow where a message says so.

Weights, once per deployment, owner -> party (and the plan alone, `share_bytes` 0, to the dealer):

    owner -> party      OfferDeployment
    party -> owner      DeploymentWanted            (not wanted: already kept)
    owner -> party      raw frames, `share_bytes` in all
    party -> owner      DeploymentStored | Failed

Once per committee, querier -> owner: HandOut, which makes the owner do the above, and querier -> party: Prepare, which
makes the parties open their masked weights. Both are answered by Prepared | Failed.

A session, querier -> party; one stream, closed at the end; a reset by the querier cancels:

    querier -> party    StartSession, then raw frames: its share of the input, `input_bytes` in all
    party   -> querier  SessionProgress ...
    party   -> querier  SessionResult, then raw frames: its share of the output | Failed
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NewType

from finode.wire.message import KIB, MIB, Message, check, check_id, check_seconds, register
from finode.wire.signed import Signed

PROTOCOL = "/finode/shares/1"
SessionId = NewType("SessionId", bytes)
SESSION_ID_BYTES = 16
CHUNK_BYTES = 256 * KIB
"""Bulk is cut into raw frames of at most this size, so that nothing waits long behind one of them."""


class Phase(StrEnum):
    """What a session is doing."""

    COMMITTEE = "committee"
    DEPLOYMENT = "deployment"
    PREPROCESSING = "preprocessing"
    ROUNDS = "rounds"


class Fault(StrEnum):
    """What went wrong in a session, for machines."""

    PEER_LOST = "peer-lost"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    WORKER_DIED = "worker-died"
    WRONG_DIGEST = "wrong-digest"
    STORAGE_FULL = "storage-full"
    BUSY = "busy"
    NOT_SEALED = "not-sealed"
    QUOTA_USED = "quota-used"
    WRONG_INPUT = "wrong-input"
    CANCELLED = "cancelled"
    SHUTTING_DOWN = "shutting-down"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Who was at fault ("" for nobody), at which round (-1 before rounds), and what happened. A claim, no proof."""

    culprit: str
    round: int
    fault: Fault
    detail: str = ""

    def __post_init__(self) -> None:
        check(len(self.culprit) <= 64 and len(self.detail) <= 1024, "culprit or detail too long")
        check(-1 <= self.round < 1 << 32, "round is -1 or a round's number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What a member's part of a session cost: rounds, bytes sent to other parties, bundle bytes, seconds by phase."""

    rounds: int = 0
    bytes_sent: int = 0
    bundle_bytes: int = 0
    offline_s: float = 0.0
    online_s: float = 0.0
    compute_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rounds", "bytes_sent", "bundle_bytes"):
            check(0 <= getattr(self, name) < 1 << 63, f"{name} is not negative")
        for name in ("offline_s", "online_s", "compute_s"):
            check_seconds(getattr(self, name), name)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class OfferDeployment(Message):
    """Owner -> party or dealer: the public plan of one deployment and the size and digest of your share.

    `signed` is the owner's `Deployment`: it may be computed with by these parties and this dealer.
    """

    code: ClassVar[int] = 48
    limit: ClassVar[int] = 2 * MIB

    committee: bytes
    deployment: bytes
    version: bytes
    plan: bytes
    share_bytes: int
    share_digest: bytes
    signed: Signed

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check_id(self.deployment, 32, "deployment")
        check_id(self.version, 32, "version")
        check_id(self.share_digest, 32, "share_digest")
        check(0 <= self.share_bytes < 1 << 40, "share_bytes")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentWanted(Message):
    code: ClassVar[int] = 49

    deployment: bytes
    wanted: bool


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStored(Message):
    code: ClassVar[int] = 50

    deployment: bytes


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawModel(Message):
    """Owner -> party or dealer: drop every deployment of this version of mine."""

    code: ClassVar[int] = 51

    version: bytes


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Message):
    """Querier -> party: bring the committee's deployments into working order; `run` names this attempt."""

    code: ClassVar[int] = 52

    committee: bytes
    run: bytes

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check_id(self.run, SESSION_ID_BYTES, "run")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Message):
    """Done. `max_batch` is the most inputs of one session for which this party has the memory (an owner: 0)."""

    code: ClassVar[int] = 53

    committee: bytes
    bytes_sent: int
    seconds: float
    max_batch: int

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check(0 <= self.bytes_sent < 1 << 63, "bytes_sent is not negative")
        check_seconds(self.seconds, "seconds")
        check(0 <= self.max_batch <= 4096, "max_batch is 0 to 4096")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class StartSession(Message):
    """Querier -> party: run the committee's plans on this share of the input, with the bundle `serial`.

    The parties' bundles fit together by their serial alone; one that has not come yet is waited for. A serial is one
    session's, whatever becomes of it: a second that names it is refused at once, as the querier's fault. `order` is
    the querier's signed `Order` of this session, the same to all parties: of the batch, as many inputs are true ones as
    it counts, more than half of them, and all where rows of the answer depend on each other.
    """

    code: ClassVar[int] = 54

    session: bytes
    committee: bytes
    serial: bytes
    batch: int
    input_bytes: int
    order: Signed

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check_id(self.committee, 32, "committee")
        check_id(self.serial, 16, "serial")
        check(1 <= self.batch <= 4096, "batch is 1 to 4096")
        check(0 <= self.input_bytes < 1 << 40, "input_bytes is not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionProgress(Message):
    code: ClassVar[int] = 55

    session: bytes
    phase: Phase
    done: int
    total: int

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check(0 <= self.done < 1 << 63 and 0 <= self.total < 1 << 63, "done and total are not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult(Message):
    """Party -> querier: my share of the output follows, `output_bytes` in all."""

    code: ClassVar[int] = 56

    session: bytes
    output_bytes: int
    meter: Meter

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check(0 <= self.output_bytes < 1 << 40, "output_bytes is not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """The session (or the preparation, with the committee's id) ended here without a result."""

    code: ClassVar[int] = 57

    subject: bytes
    verdict: Verdict


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class HandOut(Message):
    """Querier -> owner: give the committee's parties their shares of your models, and the dealer the plans."""

    code: ClassVar[int] = 58

    committee: bytes

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
