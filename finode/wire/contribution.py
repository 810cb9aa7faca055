"""Sums of how models vote, from shares to a signed statement, and labels that come later: /finode/contribution/1.

An opening, party 0 of a deployment set -> every other party; nothing leaves before all are ready, and what a party once
gave for a list of sessions it never gives for another list that shares one with it:

    first party -> party   ProposeOpening           these sessions of this set
    party -> first party   OpeningReady             which of them it lacks; the opening goes on only if none does
    first party -> party   CommitShare              the hash of its own share
    party -> first party   raw frames: its share of the sums
    first party -> party   OpenShares, then raw frames: the shares of all parties, in their order
    party -> first party   StatementSigned | shares.Failed
    first party -> dealer  SignStatement -> StatementSigned | OpeningReady (receipts that it lacks) | shares.Failed

Labels, querier -> party; each party goes on once all of them keep their votes:

    querier -> party       GiveLabels
    party -> querier       BallotsKept
    querier -> party       raw frames: its share of the labels
    party -> querier       LabelsCounted | shares.Failed
    party -> higher party  JoinFeedback, then raw frames both ways, one a round
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from finode.identity import PeerId, public_key_of
from finode.wire import canonical
from finode.wire.committee import MAX_PARTIES, Vote
from finode.wire.message import KIB, MIB, Message, check, check_id, register
from finode.wire.receipts import HASH_BYTES, MAX_MODELS, MAX_SESSIONS, EpochStatement, ModelUse, StatementKind
from finode.wire.shares import SESSION_ID_BYTES

PROTOCOL = "/finode/contribution/1"
SALT_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSet:
    """Whose sums may be added up on shares: equal deployments, equal order of parties, one dealer, equal rules."""

    federation: str
    kind: StatementKind
    models: tuple[ModelUse, ...]
    parties: tuple[PeerId, ...]
    dealer: PeerId
    vote: Vote
    classes: int
    epoch_s: int
    min_queries: int
    sigma_milli: int

    def __post_init__(self) -> None:
        check(0 < len(self.federation) <= 64, "federation has 1 to 64 characters")
        check(0 < len(self.models) <= MAX_MODELS, "1 to 64 models")
        check(2 <= len(self.parties) <= MAX_PARTIES, "2 to 16 parties")
        check(1 < self.classes <= 1024, "2 to 1024 classes")
        check(1 <= self.epoch_s <= 366 * 86400, "epoch_s is 1 second to a year")
        check(1 <= self.min_queries < 1 << 31 and 0 <= self.sigma_milli < 1 << 31, "min_queries or sigma_milli")
        for peer in (*self.parties, self.dealer):
            public_key_of(peer)

    @property
    def key(self) -> bytes:
        """The hash by which parties keep what belongs to the set."""
        return canonical.digest("deployment set", canonical.encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is to be opened: the sum over these sessions of a set, `samples` inputs, as of the end of `epoch`."""

    of: DeploymentSet
    epoch: int
    sessions: tuple[bytes, ...]
    samples: int

    def __post_init__(self) -> None:
        check(0 <= self.epoch < 1 << 53, "epoch is not negative")
        check(0 < len(self.sessions) <= MAX_SESSIONS, "1 to 4096 sessions")
        check(list(self.sessions) == sorted(set(self.sessions)), "sessions are sorted, each once")
        for session in self.sessions:
            check_id(session, SESSION_ID_BYTES, "a session")
        check(0 < self.samples < 1 << 31, "samples is positive")

    @property
    def id(self) -> bytes:
        """The hash by which parties know that they gave their share of exactly this."""
        return canonical.digest("opening", canonical.encode(self))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeOpening(Message):
    """First party -> party: let us open this."""

    code: ClassVar[int] = 120
    limit: ClassVar[int] = 128 * KIB

    opening: Opening


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningReady(Message):
    """These sessions are not here, were opened already, or break a rule; none: go on."""

    code: ClassVar[int] = 121
    limit: ClassVar[int] = 96 * KIB

    opening: bytes
    lacking: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_id(self.opening, HASH_BYTES, "opening")
        check(len(self.lacking) <= MAX_SESSIONS, "at most 4096 sessions")
        for session in self.lacking:
            check_id(session, SESSION_ID_BYTES, "a session")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class CommitShare(Message):
    """First party -> party: all are ready. `commitment` is the hash of a salt and my share."""

    code: ClassVar[int] = 122

    opening: bytes
    commitment: bytes

    def __post_init__(self) -> None:
        check_id(self.opening, HASH_BYTES, "opening")
        check_id(self.commitment, HASH_BYTES, "commitment")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShares(Message):
    """First party -> party: the salt of my commitment; everybody's shares follow."""

    code: ClassVar[int] = 123

    opening: bytes
    salt: bytes

    def __post_init__(self) -> None:
        check_id(self.opening, HASH_BYTES, "opening")
        check_id(self.salt, SALT_BYTES, "salt")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class StatementSigned(Message):
    """My signature of the epoch statement."""

    code: ClassVar[int] = 124

    statement: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check_id(self.statement, HASH_BYTES, "statement")
        check_id(self.signature, 64, "signature")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SignStatement(Message):
    """First party -> dealer: sign this, if your receipts say the same of its sessions."""

    code: ClassVar[int] = 125
    limit: ClassVar[int] = 2 * MIB + 4 * KIB

    statement: EpochStatement


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class GiveLabels(Message):
    """Querier -> party: I have labels for this session's inputs now; `labelled` of its `count` have one."""

    code: ClassVar[int] = 126

    session: bytes
    count: int
    labelled: int

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check(1 <= self.count <= 4096 and 1 <= self.labelled <= self.count, "labelled is 1 to count, count 1 to 4096")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class BallotsKept(Message):
    """Whether the votes of a session are still kept here."""

    code: ClassVar[int] = 127

    session: bytes
    kept: bool

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsCounted(Message):
    """The labels were counted, on shares; the votes of the session are wiped."""

    code: ClassVar[int] = 128

    session: bytes

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinFeedback(Message):
    """Party -> higher party: this stream carries the rounds that count the labels of a session."""

    code: ClassVar[int] = 129

    session: bytes

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
