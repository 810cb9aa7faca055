"""The terms of a query and how they are agreed: /finode/committee/1.

    querier -> member   Propose(terms)            to every party, the dealer and every owner
    member  -> querier  Accepted(signed Accept) | Refuse(reason)
    querier -> member   Seal(all signed Accepts)
    member  -> querier  Sealed | Refuse
    either way, later   Dissolve

The hash of the terms is the committee's id. An `Accept` is a signature over that id, so all members agree to the
same terms or to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NewType

from finode.config import FederationSection, Role
from finode.identity import PeerId, public_key_of
from finode.wire import canonical
from finode.wire.message import KIB, Message, check, check_id, check_printable, register
from finode.wire.signed import Signed

PROTOCOL = "/finode/committee/1"
MAX_PARTIES = 16
MAX_VOTE_WEIGHT = 1 << 16
MAX_COPIES = 15
MAX_GAMMA = 16
GAMMA_BITS = 8
CommitteeId = NewType("CommitteeId", bytes)


class Vote(StrEnum):
    """How the models' outputs become one: the mean of probabilities, the count of labels, the mean with the querier's
    public weights, or with weights that follow, on shares, from the entropy of each answer, from the confidences of a
    whole batch, from how little augmented copies of the input move the logits, or, class by class, from the owners'
    secret counts of training samples."""

    SOFT = "soft"
    HARD = "hard"
    WEIGHTED = "weighted"
    ENTROPY = "entropy"
    SPECTRAL = "spectral"
    AUGMENTED = "augmented"
    PRIOR = "prior"


class Reveal(StrEnum):
    """What the querier sees; the order is from least to most."""

    LABEL = "label"
    TOP1 = "top1"
    PROBABILITIES = "probabilities"

    def at_most(self, other: Reveal) -> bool:
        """Whether this shows no more than `other`."""
        order = list(Reveal)
        return order.index(self) <= order.index(other)


class RefusalReason(StrEnum):
    """Why a member refuses."""

    BUSY = "busy"
    SHUTTING_DOWN = "shutting-down"
    BAD_TERMS = "bad-terms"
    EXPIRED = "expired"
    WRONG_FEDERATION = "wrong-federation"
    NOT_ON_ROSTER = "not-on-roster"
    ROLE_NOT_OFFERED = "role-not-offered"
    SAME_ORGANIZATION = "same-organization"
    UNKNOWN_SERVICE = "unknown-service"
    UNKNOWN_MODEL = "unknown-model"
    UNSUPPORTED_ENGINE = "unsupported-engine"
    PRICE_TOO_LOW = "price-too-low"
    BATCH_TOO_LARGE = "batch-too-large"
    PARTY_NOT_ALLOWED = "party-not-allowed"
    REQUIRED_PARTY_MISSING = "required-party-missing"
    DEALER_NOT_ALLOWED = "dealer-not-allowed"
    QUERIER_NOT_ALLOWED = "querier-not-allowed"
    QUERY_LIMIT = "query-limit"
    REVEALS_TOO_MUCH = "reveals-too-much"
    STORAGE_FULL = "storage-full"
    NOT_SEALED = "not-sealed"
    QUOTA_USED = "quota-used"
    OTHER_REWARDS = "other-rewards"
    NO_CREDIT = "no-credit"
    CONDEMNED = "condemned"


class Scheme(StrEnum):
    """How the owners' part of what queries paid is split between the models (`finode.ledger.schemes`)."""

    EQUAL = "equal"
    FINAL_AGREEMENT = "final_agreement"
    ENTROPY = "entropy"
    DAWID_SKENE = "dawid_skene"
    LABELLED = "labelled"


PER_MILLE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTerms:
    """What a query costs, and for whom: the federation's rules, and the querier's price.

    `price` is micro-credits per input; `owners`, `parties` and `dealer` are the parts of it, per mille. Sums of how
    the models vote are opened once `min_queries` inputs of an epoch of `epoch_s` seconds are in, with noise of
    deviation `sigma_milli` / 1000. An owner refuses a querier whose balance would fall below -`credit_limit`.
    """

    price: int
    owners: int
    parties: int
    dealer: int
    scheme: Scheme
    epoch_s: int
    min_queries: int
    sigma_milli: int
    credit_limit: int

    def __post_init__(self) -> None:
        check(0 <= self.price < 1 << 40, "price is 0 to 2^40 micro-credits per input")
        parts = (self.owners, self.parties, self.dealer)
        check(min(parts) >= 0 and sum(parts) == PER_MILLE, "owners, parties and dealer add up to 1000")
        check(1 <= self.epoch_s <= 366 * 86400, "epoch_s is 1 second to a year")
        check(1 <= self.min_queries < 1 << 31, "min_queries is 1 or more")
        check(0 <= self.sigma_milli < 1 << 31, "sigma_milli is not negative")
        check(0 <= self.credit_limit < 1 << 53, "credit_limit is not negative")

    @classmethod
    def of(cls, section: FederationSection, price: int) -> RewardTerms:
        """Return the federation's rules as a node's settings state them, with a querier's price."""
        return cls(
            price=price,
            owners=section.owners_part,
            parties=section.parties_part,
            dealer=section.dealer_part,
            scheme=Scheme(section.scheme),
            epoch_s=section.epoch_s,
            min_queries=section.min_queries,
            sigma_milli=round(1000 * section.noise),
            credit_limit=section.credit_limit,
        )

    def epoch_of(self, time_ms: int) -> int:
        """Return the number of the epoch of a UTC time: epochs are counted from 1970."""
        return time_ms // (1000 * self.epoch_s)

    def covers(self, models: int, parties: int, party_price: int, dealer_price: int) -> bool:
        """Return whether each part of the price is enough for what is asked: the sum of the models' prices, the same
        for each of `parties`, and the dealer's; all in micro-credits per input."""
        asked = ((self.owners, models), (self.parties, parties * party_price), (self.dealer, dealer_price))
        return all(self.price * part >= PER_MILLE * ask for part, ask in asked)

    def least_price(self, models: int, parties: int, party_price: int, dealer_price: int) -> int | None:
        """Return the lowest price whose parts are enough, None if a part of 0 should pay something."""
        asked = ((self.owners, models), (self.parties, parties * party_price), (self.dealer, dealer_price))
        if any(ask and not part for part, ask in asked):
            return None
        return max((-(-PER_MILLE * ask // part) for part, ask in asked if ask), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerm:
    """One model of the ensemble and the owner whose it is."""

    version: bytes
    plan_digest: bytes
    owner: PeerId
    price: int

    def __post_init__(self) -> None:
        check_id(self.version, 32, "version")
        check_id(self.plan_digest, 32, "plan_digest")
        public_key_of(self.owner)
        check(0 <= self.price < 1 << 53, "price is not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(Message):
    """Everything that the members agree to.

    `parties` are in the order of their `party_index`. `quota` is the number of inputs that may be asked on this
    committee in all, `max_batch` of one session. Prices of models, parties and the dealer are what they ask at least,
    in micro-credits per input; `rewards` states what is paid.

    `vote_weights` are those of a weighted vote, in the order of `models` and of any size. With an augmented vote each
    input has `copies` beside it, which count as inputs everywhere, and `gamma` is in units of 2^-8.
    """

    code: ClassVar[int] = 32
    limit: ClassVar[int] = 64 * KIB

    federation: str
    service: str
    service_digest: bytes
    classes: int
    input_shape: tuple[int, ...]
    models: tuple[ModelTerm, ...]
    engine: str
    fractional_bits: int
    profile: str
    parties: tuple[PeerId, ...]
    dealer: PeerId
    querier: PeerId
    vote: Vote
    reveal: Reveal
    max_batch: int
    quota: int
    party_price: int
    dealer_price: int
    rewards: RewardTerms
    session_timeout_s: int
    created_ms: int
    expires_ms: int
    nonce: bytes
    vote_weights: tuple[int, ...] = ()
    copies: int = 0
    gamma: int = 0

    def __post_init__(self) -> None:
        check_id(self.service_digest, 32, "service_digest")
        check_id(self.nonce, 16, "nonce")
        for name in ("federation", "service", "engine", "profile"):
            value = getattr(self, name)
            check(0 < len(value) <= 64, f"{name} has 1 to 64 characters")
            check_printable(value, name)
        check(2 <= len(self.parties) <= MAX_PARTIES, f"2 to {MAX_PARTIES} parties")
        check(len(set(self.parties)) == len(self.parties), "a party stands twice in the terms")
        check(self.dealer not in self.parties, "the dealer is a party")
        check(self.dealer != self.querier, "the dealer is the querier")
        check(0 < len(self.models) <= 64, "1 to 64 models")
        check(len({m.version for m in self.models}) == len(self.models), "a model stands twice in the terms")
        check(1 < self.classes <= 1024, "2 to 1024 classes")
        check(0 < len(self.input_shape) <= 4 and all(0 < s <= 1 << 20 for s in self.input_shape), "input_shape")
        check(8 <= self.fractional_bits <= 16, "fractional_bits is 8 to 16")  # a plan promises |x| < 2^11 or 2^12
        check(1 <= self.max_batch <= 4096 and self.max_batch <= self.quota < 1 << 53, "max_batch or quota")
        check(0 <= self.party_price < 1 << 53 and 0 <= self.dealer_price < 1 << 53, "prices are not negative")
        asked = (sum(m.price for m in self.models), len(self.parties), self.party_price, self.dealer_price)
        check(self.rewards.covers(*asked), "the price does not cover what models, parties and the dealer ask")
        check(1 <= self.session_timeout_s <= 86400, "session_timeout_s is 1 to 86400")
        check(self.created_ms < self.expires_ms, "the terms expire before they were made")
        if self.vote is Vote.WEIGHTED:
            check(len(self.vote_weights) == len(self.models), "a weighted vote has one of vote_weights for each model")
            check(all(0 <= weight <= MAX_VOTE_WEIGHT for weight in self.vote_weights), "vote_weights are 0 to 65536")
            check(any(self.vote_weights), "vote_weights are all zero")
        if self.vote is not Vote.WEIGHTED:
            check(not self.vote_weights, "vote_weights are for a weighted vote")
        if self.vote is Vote.AUGMENTED:
            check(1 <= self.copies <= MAX_COPIES, "copies are 1 to 15 in an augmented vote")
            check(self.copies < self.max_batch, "an input with its copies is more than max_batch")
            check(abs(self.gamma) <= MAX_GAMMA << GAMMA_BITS, "gamma is -16 to 16, in units of 2^-8")
        if self.vote is not Vote.AUGMENTED:
            check(self.copies == self.gamma == 0, "copies and gamma are for an augmented vote")
        for peer in (*self.parties, self.dealer, self.querier):
            public_key_of(peer)

    def foresees(self, batch: int) -> bool:
        """Whether a session may have `batch` inputs, those that are copies included."""
        return 1 <= batch <= self.max_batch and batch % (1 + self.copies) == 0

    def committee_id(self) -> CommitteeId:
        """Return the hash of the terms."""
        return CommitteeId(canonical.digest("terms", self.encode()))

    def owners(self) -> tuple[PeerId, ...]:
        """Return the owners, each once, in the order of their first model."""
        return tuple(dict.fromkeys(model.owner for model in self.models))

    def seats(self) -> tuple[tuple[PeerId, Role, int], ...]:
        """Return (peer, role, party_index or -1) of every member who must accept; a peer may hold several."""
        return (
            *((peer, Role.PARTY, index) for index, peer in enumerate(self.parties)),
            (self.dealer, Role.DEALER, -1),
            *((peer, Role.OWNER, -1) for peer in self.owners()),
        )

    def members(self) -> tuple[PeerId, ...]:
        """Return every peer that holds a seat, each once."""
        return tuple(dict.fromkeys(peer for peer, _, _ in self.seats()))

    def deployment_id(self, model: ModelTerm) -> bytes:
        """Return the id of the model's deployment to these ordered parties with this dealer."""
        return deployment_id(model, self.parties, self.dealer, self.engine, self.fractional_bits)


def deployment_id(
    model: ModelTerm, parties: tuple[PeerId, ...], dealer: PeerId, engine: str, fractional_bits: int
) -> bytes:
    """Return the 32-byte id of a deployment: one owner's model version in one encoding, one ordered set of parties,
    one dealer.

    The dealer's mask A follows from this id, and opening W - A for two W under one A would show their difference. So
    the owner belongs to it (another could offer weights it knows under a version that it has seen), the plan, the
    engine and the fixed point.
    """
    parts = [model.version, model.plan_digest, model.owner, list(parties), dealer, engine, fractional_bits]
    return canonical.digest("deployment", canonical.encode(parts))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Propose(Message):
    """Querier -> member: would you hold your seats in these terms?"""

    code: ClassVar[int] = 33
    limit: ClassVar[int] = 64 * KIB

    terms: Terms


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Accept(Message):
    """Member -> querier, signed: I hold all my seats of this committee until it expires.

    `holds` lists the deployments of these terms whose shares the member already keeps.
    """

    code: ClassVar[int] = 34
    limit: ClassVar[int] = 8 * KIB

    committee: bytes
    peer: PeerId
    holds: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        public_key_of(self.peer)
        check(len(self.holds) <= 64, "at most 64 deployments")
        for deployment in self.holds:
            check_id(deployment, 32, "a deployment held")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Message):
    """Carries a signed `Accept`."""

    code: ClassVar[int] = 35
    limit: ClassVar[int] = 16 * KIB

    accept: Signed


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Message):
    """Member -> querier: no, and which rule says so. `subject` is the peer, model or value that the rule met."""

    code: ClassVar[int] = 36

    committee: bytes
    reason: RefusalReason
    subject: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check(len(self.subject) <= 256 and len(self.detail) <= 1024, "subject or detail too long")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Seal(Message):
    """Querier -> member: everybody's signed `Accept`; each member checks each."""

    code: ClassVar[int] = 37
    limit: ClassVar[int] = 1024 * KIB

    committee: bytes
    accepts: tuple[Signed, ...]

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check(len(self.accepts) <= MAX_PARTIES + 1 + 64, "too many acceptances")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed(Message):
    """Member -> querier: every signature checks; I serve this committee."""

    code: ClassVar[int] = 38

    committee: bytes

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Dissolve(Message):
    """Either way: the committee ends before it expires; `reason` for the log."""

    code: ClassVar[int] = 39

    committee: bytes
    reason: str

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check(len(self.reason) <= 1024, "reason too long")
