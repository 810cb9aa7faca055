"""What an owner allows to be done with its models, and the check of terms against it.

A querier proposes the committee, so the owner must not take its word: each rule of `[owner]` is checked against the
terms with the owner's own roster, and a refusal names the rule and what it met. A party, a dealer or a querier that is
the owner itself is always allowed.

The day's limit counts what the terms allow to be asked (`quota`), when the owner signs, per organization of the
querier: with the signature in hand the querier can seal with the others, and the owner would not see a query. For the
same reason nothing is given back when a committee ends early. A day is a UTC day.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from finode.committee.organizations import OrganizationOf, join_names, organization_key
from finode.config import OwnerSection
from finode.identity import PeerId
from finode.wire.committee import RefusalReason, Reveal, Terms, Vote


@dataclass(frozen=True, slots=True)
class Objection:
    """Which rule the terms break: the reason, the peer, model or value that it met, and words for a person."""

    reason: RefusalReason
    subject: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModel:
    """A model that this node owns, as its owner's checks need it."""

    version: bytes
    plan_digest: bytes
    service: str
    service_digest: bytes
    classes: int
    input_shape: tuple[int, ...]
    price: int = 0
    engines: tuple[str, ...] = ("native",)
    counts: bool = False


class QuotaStore(Protocol):
    """Keeps how many inputs each querier was allowed on each day. A real one writes them down before it returns."""

    def used(self, querier: str, day: str) -> int:
        """Return the inputs allowed to `querier` (an organization) on `day` (YYYY-MM-DD) so far."""

    def add(self, querier: str, day: str, inputs: int) -> None:
        """Count `inputs` more."""


@dataclass(slots=True)
class MemoryQuotas:
    """A `QuotaStore` that forgets with the process."""

    _used: dict[tuple[str, str], int] = field(default_factory=dict)

    def used(self, querier: str, day: str) -> int:
        return self._used.get((querier, day), 0)

    def add(self, querier: str, day: str, inputs: int) -> None:
        self._used = {key: count for key, count in self._used.items() if key[1] >= day}
        self._used[querier, day] = self.used(querier, day) + inputs


def day_of(now_ms: int) -> str:
    """Return the UTC day of a time, YYYY-MM-DD."""
    return datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC).date().isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerPolicy:
    """The rules of `[owner]`. Empty sets of organizations allow all on the roster."""

    allow_parties: tuple[str, ...] = ()
    allow_dealers: tuple[str, ...] = ()
    require_party: tuple[str, ...] = ()
    allow_queriers: tuple[str, ...] = ()
    queries_per_day: int = 10_000
    reveal_at_most: Reveal = Reveal.PROBABILITIES

    @classmethod
    def of(cls, section: OwnerSection) -> OwnerPolicy:
        """Return the policy that a node's settings state."""
        return cls(
            allow_parties=section.allow_parties,
            allow_dealers=section.allow_dealers,
            require_party=section.require_party,
            allow_queriers=section.allow_queriers,
            queries_per_day=section.queries_per_day,
            reveal_at_most=Reveal(section.reveal_at_most),
        )

    def objection(
        self,
        terms: Terms,
        *,
        owner: PeerId,
        models: Mapping[bytes, OwnModel],
        organization_of: OrganizationOf,
        quotas: QuotaStore,
        now_ms: int,
    ) -> Objection | None:
        """Return the first rule that the terms break, None if the owner consents. Counts nothing: see `charge`."""
        return (
            _model_objection(terms, owner, models)
            or self._people_objection(terms, owner, organization_of)
            or self._reveal_objection(terms)
            or self._limit_objection(terms, owner, organization_of, quotas, now_ms)
        )

    def charge(
        self, terms: Terms, *, owner: PeerId, organization_of: OrganizationOf, quotas: QuotaStore, now_ms: int
    ) -> None:
        """Count the quota of terms that are about to be signed. The owner's own queries are not counted."""
        if terms.querier != owner:
            quotas.add(organization_key(organization_of(terms.querier)), day_of(now_ms), terms.quota)

    def _people_objection(self, terms: Terms, owner: PeerId, organization_of: OrganizationOf) -> Objection | None:
        def allowed(peer: PeerId, names: tuple[str, ...]) -> bool:
            return peer == owner or not names or _is_one_of(organization_of(peer), names)

        if not allowed(terms.querier, self.allow_queriers):
            organization = organization_of(terms.querier)
            return Objection(
                RefusalReason.QUERIER_NOT_ALLOWED, terms.querier, f"{organization!r} may not query this owner's models"
            )
        for index, party in enumerate(terms.parties):
            if not allowed(party, self.allow_parties):
                detail = f"party {index}, {organization_of(party)!r}, may not hold shares of this owner's models"
                return Objection(RefusalReason.PARTY_NOT_ALLOWED, party, detail)
        if self.require_party and not any(
            party == owner or _is_one_of(organization_of(party), self.require_party) for party in terms.parties
        ):
            return Objection(
                RefusalReason.REQUIRED_PARTY_MISSING,
                join_names(self.require_party),
                "this owner insists on one of these organizations, or itself, as a party",
            )
        if not allowed(terms.dealer, self.allow_dealers):
            detail = f"{organization_of(terms.dealer)!r} may not deal for this owner's models"
            return Objection(RefusalReason.DEALER_NOT_ALLOWED, terms.dealer, detail)
        return None

    def _reveal_objection(self, terms: Terms) -> Objection | None:
        if terms.reveal.at_most(self.reveal_at_most):
            return None
        return Objection(
            RefusalReason.REVEALS_TOO_MUCH, terms.reveal, f"this owner allows {self.reveal_at_most} at most"
        )

    def _limit_objection(
        self, terms: Terms, owner: PeerId, organization_of: OrganizationOf, quotas: QuotaStore, now_ms: int
    ) -> Objection | None:
        if terms.querier == owner:
            return None
        used = quotas.used(organization_key(organization_of(terms.querier)), day_of(now_ms))
        if used + terms.quota <= self.queries_per_day:
            return None
        left = max(0, self.queries_per_day - used)
        detail = f"{terms.quota} inputs asked for, {left} of {self.queries_per_day} left on {day_of(now_ms)} (UTC)"
        return Objection(RefusalReason.QUERY_LIMIT, terms.querier, detail)


def _is_one_of(organization: str, names: tuple[str, ...]) -> bool:
    return organization_key(organization) in {organization_key(name) for name in names}


def _model_objection(terms: Terms, owner: PeerId, models: Mapping[bytes, OwnModel]) -> Objection | None:
    for term in terms.models:
        if term.owner != owner:
            continue
        own = models.get(term.version)
        subject = term.version.hex()
        if own is None:
            return Objection(RefusalReason.UNKNOWN_MODEL, subject, "this owner has no such model, or has withdrawn it")
        if term.plan_digest != own.plan_digest:
            return Objection(RefusalReason.UNKNOWN_MODEL, subject, "the plan's digest is not the model's")
        if (terms.service, terms.service_digest) != (own.service, own.service_digest):
            detail = f"model {subject[:12]} is of the service {own.service!r} as its owner states it"
            return Objection(RefusalReason.UNKNOWN_SERVICE, terms.service, detail)
        if (terms.classes, terms.input_shape) != (own.classes, own.input_shape):
            return Objection(RefusalReason.BAD_TERMS, subject, "classes or input shape are not the service's")
        if terms.engine not in own.engines:
            return Objection(RefusalReason.UNSUPPORTED_ENGINE, subject, f"the model runs on {', '.join(own.engines)}")
        if terms.vote is Vote.PRIOR and not own.counts:
            return Objection(RefusalReason.BAD_TERMS, subject, "a prior vote needs training counts, the model has none")
        if term.price < own.price:
            return Objection(
                RefusalReason.PRICE_TOO_LOW, subject, f"{term.price} micro-credits per input offered, {own.price} asked"
            )
    return None
