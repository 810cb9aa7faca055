"""What a session leaves behind: the querier's order, receipts, deployments and epoch statements, and contradictions.

    Order            querier, before the session: run this, and I pay for it
    Receipt          what a session was and what each member did; co-signed by the parties, the dealer and the querier
    Deployment       owner, once: these parties and this dealer may compute with this version of my model
    EpochStatement   opened sums of how the models of many sessions voted; co-signed by the parties and the dealer
    Equivocation     two different bodies for one session that one key signed: a proof against the signer

Bodies are canonical bytes, an id is the hash of the body. A co-signature is Ed25519 over the domain tag of the body's
class and the body, as in `signed.py`; co-signed envelopes list their signatures by peer, ascending. All numbers are
integers: money is micro-credits, time is UTC milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar, NewType

from finode.identity import PeerId, public_key_of
from finode.wire import canonical
from finode.wire.committee import MAX_PARTIES, Reveal, RewardTerms, Terms, Vote
from finode.wire.message import KIB, MIB, Message, check, check_id, check_printable, register
from finode.wire.shares import SESSION_ID_BYTES, Verdict
from finode.wire.signed import Signed

PROTOCOL = "/finode/receipts/1"
ReceiptId = NewType("ReceiptId", bytes)
StatementId = NewType("StatementId", bytes)
HASH_BYTES = 32
MAX_MODELS = 64
MAX_SESSIONS = 4096
"""Sessions of one epoch statement; what is beyond them goes into the next one."""
MAX_JOINT = 1 << 18
"""Entries of the joint votes of one statement; a set of models with more states none."""
_TIME_LIMIT = 1 << 53


class Outcome(StrEnum):
    """How a session ended."""

    ANSWERED = "answered"
    ABORTED = "aborted"


class StatementKind(StrEnum):
    """What an epoch statement sums up: how the models agree, or how often each was right by labels that came later."""

    AGREEMENT = "agreement"
    LABELS = "labels"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Message):
    """Querier, signed: run this session of the committee on `count` inputs, for the price that its terms state.

    `agreed` is the hash of what of the terms a receipt repeats: who sees the receipt and not the terms knows by it that
    the querier ordered just that, from just these members, at that price.
    """

    code: ClassVar[int] = 96

    session: bytes
    committee: bytes
    serial: bytes
    count: int
    created_ms: int
    agreed: bytes

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check_id(self.committee, HASH_BYTES, "committee")
        check_id(self.serial, 16, "serial")
        check_id(self.agreed, HASH_BYTES, "agreed")
        check(1 <= self.count <= 4096, "count is 1 to 4096")
        check(0 < self.created_ms < _TIME_LIMIT, "created_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """A model that a session ran: its version, whose it is, and the deployment that its owner signed."""

    version: bytes
    owner: PeerId
    deployment: bytes

    def __post_init__(self) -> None:
        check_id(self.version, HASH_BYTES, "version")
        check_id(self.deployment, HASH_BYTES, "deployment")
        public_key_of(self.owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What of the terms a receipt repeats. An order signs its hash: nobody else's order can stand behind a receipt."""

    federation: str
    querier: PeerId
    parties: tuple[PeerId, ...]
    dealer: PeerId
    models: tuple[ModelUse, ...]
    service: str
    engine: str
    vote: Vote
    reveal: Reveal
    classes: int
    rewards: RewardTerms
    copies: int

    @classmethod
    def by(cls, terms: Terms) -> Agreed:
        """Return what terms say of it."""
        models = tuple(
            ModelUse(version=model.version, owner=model.owner, deployment=terms.deployment_id(model))
            for model in terms.models
        )
        same = {one.name: getattr(terms, one.name) for one in fields(cls) if one.name != "models"}
        return cls(models=models, **same)

    @property
    def hash(self) -> bytes:
        """What an order signs."""
        return canonical.digest("agreed", canonical.encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one member did in a session: rounds, bytes to other parties, bytes of the bundle that it took (a dealer:
    that it dealt, to all parties together), and milliseconds."""

    peer: PeerId
    rounds: int
    bytes_sent: int
    bundle_bytes: int
    milliseconds: int

    def __post_init__(self) -> None:
        public_key_of(self.peer)
        for name in ("rounds", "bytes_sent", "bundle_bytes", "milliseconds"):
            check(0 <= getattr(self, name) < 1 << 53, f"{name} is not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """What happened in one session. `work` lists the parties in their order, then the dealer.

    `committee` is the hash of the terms, `sealed` that of the terms with all acceptances. `transcript` is keyed with a
    nonce that the parties alone know, and empty where nothing was opened. `verdict` is there only when it was aborted.
    Of each of the `count` inputs there were `copies` more, changed a little (an augmented vote), which cost as much.
    """

    code: ClassVar[int] = 97
    limit: ClassVar[int] = 64 * KIB

    federation: str
    session: bytes
    committee: bytes
    sealed: bytes
    querier: PeerId
    parties: tuple[PeerId, ...]
    dealer: PeerId
    models: tuple[ModelUse, ...]
    service: str
    engine: str
    vote: Vote
    reveal: Reveal
    classes: int
    count: int
    serial: bytes
    rewards: RewardTerms
    started_ms: int
    ended_ms: int
    outcome: Outcome
    verdict: Verdict | None
    work: tuple[Work, ...]
    transcript: bytes
    copies: int = 0

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check_id(self.committee, HASH_BYTES, "committee")
        check_id(self.sealed, HASH_BYTES, "sealed")
        check_id(self.serial, 16, "serial")
        for name in ("federation", "service", "engine"):
            check(0 < len(getattr(self, name)) <= 64, f"{name} has 1 to 64 characters")
            check_printable(getattr(self, name), name)
        check(2 <= len(self.parties) <= MAX_PARTIES, f"2 to {MAX_PARTIES} parties")
        check(len({*self.parties, self.dealer}) == len(self.parties) + 1, "a member stands twice in the receipt")
        check(0 < len(self.models) <= MAX_MODELS, f"1 to {MAX_MODELS} models")
        check(len({model.version for model in self.models}) == len(self.models), "a model stands twice in the receipt")
        check(1 < self.classes <= 1024, "2 to 1024 classes")
        check(1 <= self.count <= 4096 and 0 <= self.copies < 4096, "count is 1 to 4096, copies 0 to 4095")
        check(0 < self.started_ms <= self.ended_ms < _TIME_LIMIT, "the session ended before it began")
        check(tuple(work.peer for work in self.work) == (*self.parties, self.dealer), "work of parties and dealer")
        check((self.outcome is Outcome.ABORTED) == (self.verdict is not None), "a verdict for aborted sessions alone")
        check(len(self.transcript) in (0, HASH_BYTES), "transcript has 32 bytes or none")
        check(bool(self.transcript) or self.outcome is Outcome.ABORTED, "an answered session has a transcript")
        public_key_of(self.querier)
        for peer in (*self.parties, self.dealer):
            public_key_of(peer)

    @property
    def id(self) -> ReceiptId:
        """The hash of the body."""
        return ReceiptId(canonical.digest("receipt", self.encode()))

    @property
    def epoch(self) -> int:
        """The epoch in which the session ended."""
        return self.rewards.epoch_of(self.ended_ms)

    @property
    def price(self) -> int:
        """Micro-credits for all of its inputs and their copies."""
        return self.rewards.price * self.count * (1 + self.copies)

    @property
    def agreed(self) -> bytes:
        """The hash of what it repeats of the terms, as the order signs it."""
        return Agreed(**{one.name: getattr(self, one.name) for one in fields(Agreed)}).hash

    def signers(self) -> tuple[PeerId, ...]:
        """Return who signs: the parties in their order, the dealer, the querier (once each)."""
        return tuple(dict.fromkeys((*self.parties, self.dealer, self.querier)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CoSignature:
    """One member's signature of a body."""

    peer: PeerId
    signature: bytes

    def __post_init__(self) -> None:
        public_key_of(self.peer)
        check_id(self.signature, 64, "signature")


def check_ascending(peers: list[PeerId], limit: int) -> None:
    """Raise `MalformedMessage` unless the peers of signatures stand in ascending order, each once, at most `limit`."""
    check(len(peers) <= limit, "too many signatures")
    check(peers == sorted(set(peers)), "signatures stand in the order of their peers, each once")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReceipt(Message):
    """A receipt with the signatures that were given, and the querier's signed order. Nothing of it is checked yet."""

    code: ClassVar[int] = 98
    limit: ClassVar[int] = 80 * KIB

    body: bytes
    order: Signed
    signatures: tuple[CoSignature, ...]

    def __post_init__(self) -> None:
        check(len(self.body) <= Receipt.limit, "the receipt is too large")
        check_ascending([one.peer for one in self.signatures], MAX_PARTIES + 2)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment(Message):
    """Owner, signed once: these ordered parties and this dealer may compute with this version of my model."""

    code: ClassVar[int] = 99
    limit: ClassVar[int] = 8 * KIB

    federation: str
    deployment: bytes
    version: bytes
    plan_digest: bytes
    owner: PeerId
    parties: tuple[PeerId, ...]
    dealer: PeerId
    engine: str
    fractional_bits: int
    signed_ms: int

    def __post_init__(self) -> None:
        for name in ("deployment", "version", "plan_digest"):
            check_id(getattr(self, name), HASH_BYTES, name)
        check(
            0 < len(self.federation) <= 64 and 0 < len(self.engine) <= 64, "federation and engine: 1 to 64 characters"
        )
        check_printable(self.federation, "federation")
        check_printable(self.engine, "engine")
        check(2 <= len(self.parties) <= MAX_PARTIES, f"2 to {MAX_PARTIES} parties")
        check(8 <= self.fractional_bits <= 16, "fractional_bits is 8 to 16")
        check(0 < self.signed_ms < _TIME_LIMIT, "signed_ms")
        for peer in (self.owner, *self.parties, self.dealer):
            public_key_of(peer)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStatement(Message):
    """Sums over sessions of one set of deployments, one order of parties and one dealer.

    `sessions` are sorted and each stands in one statement of a kind only; `samples` counts their inputs (of kind
    `labels`: those that had a label). Of kind `agreement`, with K models and C classes:

        joint       for each pair k < l, in order, the C x C counts of joint votes, row by row; empty if too many
        counts      K x C, how often each model voted each class
        agreement   K, at scale 2^16: per input the models that agree with the final label share 1
        entropy     K, at scale 2^16: per input in proportion to exp(-H(p_k)), 1 in all

    and of kind `labels`: `correct`, K counts. The others are empty then. `sigma_milli` is a thousand times the
    deviation of the discrete Gaussian noise that each party added to every entry (times 2^16 where that is the scale),
    0 for none.
    """

    code: ClassVar[int] = 100
    limit: ClassVar[int] = 2 * MIB

    federation: str
    kind: StatementKind
    epoch: int
    models: tuple[ModelUse, ...]
    parties: tuple[PeerId, ...]
    dealer: PeerId
    vote: Vote
    classes: int
    sessions: tuple[bytes, ...]
    samples: int
    sigma_milli: int
    joint: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    agreement: tuple[int, ...] = ()
    entropy: tuple[int, ...] = ()
    correct: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(0 < len(self.federation) <= 64, "federation has 1 to 64 characters")
        check(0 <= self.epoch < _TIME_LIMIT, "epoch is not negative")
        check(2 <= len(self.parties) <= MAX_PARTIES, f"2 to {MAX_PARTIES} parties")
        check(len({*self.parties, self.dealer}) == len(self.parties) + 1, "a member stands twice in the statement")
        check(0 < len(self.models) <= MAX_MODELS, f"1 to {MAX_MODELS} models")
        check(len({model.version for model in self.models}) == len(self.models), "a model stands twice")
        check(1 < self.classes <= 1024, "2 to 1024 classes")
        check(0 < len(self.sessions) <= MAX_SESSIONS, f"1 to {MAX_SESSIONS} sessions")
        check(list(self.sessions) == sorted(set(self.sessions)), "sessions are sorted, each once")
        for session in self.sessions:
            check_id(session, SESSION_ID_BYTES, "a session")
        check(0 < self.samples < 1 << 31 and 0 <= self.sigma_milli < 1 << 31, "samples or sigma_milli")
        check(self.sum_lengths() == self._stated_lengths(), "the sums do not have the lengths that the set gives")
        sums = (*self.joint, *self.counts, *self.agreement, *self.entropy, *self.correct)
        check(all(-(1 << 53) < value < 1 << 53 for value in sums), "a sum is out of range")
        for peer in (*self.parties, self.dealer):
            public_key_of(peer)

    def sum_lengths(self) -> tuple[int, ...]:
        """Return how many entries joint, counts, agreement, entropy and correct must have."""
        k, c = len(self.models), self.classes
        if self.kind is StatementKind.LABELS:
            return (0, 0, 0, 0, k)
        pairs = k * (k - 1) // 2 * c * c
        return (pairs if pairs <= MAX_JOINT else 0, k * c, k, k, 0)

    def _stated_lengths(self) -> tuple[int, ...]:
        return (len(self.joint), len(self.counts), len(self.agreement), len(self.entropy), len(self.correct))

    @property
    def id(self) -> StatementId:
        """The hash of the body."""
        return StatementId(canonical.digest("statement", self.encode()))

    def signers(self) -> tuple[PeerId, ...]:
        """Return who signs: the parties in their order, then the dealer."""
        return (*self.parties, self.dealer)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement(Message):
    """An epoch statement with its signatures. Nothing of it is checked yet."""

    code: ClassVar[int] = 101
    limit: ClassVar[int] = 2 * MIB + 8 * KIB

    body: bytes
    signatures: tuple[CoSignature, ...]

    def __post_init__(self) -> None:
        check(len(self.body) <= EpochStatement.limit, "the statement is too large")
        check_ascending([one.peer for one in self.signatures], MAX_PARTIES + 2)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation(Message):
    """Two different receipts of one session (or two statements of a kind that share one), both signed by `signer`.

    `first` is the lower of the two bodies, so that one contradiction has one proof.
    """

    code: ClassVar[int] = 102
    limit: ClassVar[int] = 4 * MIB + 16 * KIB

    signer: PeerId
    of_statements: bool
    first: bytes
    first_signature: bytes
    second: bytes
    second_signature: bytes

    def __post_init__(self) -> None:
        public_key_of(self.signer)
        check(self.first < self.second, "the bodies stand in order and differ")
        check_id(self.first_signature, 64, "first_signature")
        check_id(self.second_signature, 64, "second_signature")
