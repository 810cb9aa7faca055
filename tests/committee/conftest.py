"""A federation on paper: identities by name, candidates, terms, views. No network and no clock."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from finode.committee.consent import MemoryQuotas, OwnerPolicy, OwnModel
from finode.committee.policy import Candidate, Request
from finode.committee.rules import MemberView
from finode.committee.sealed import SealedCommittee
from finode.config import FederationSection, Role
from finode.identity import Identity, PeerId
from finode.wire.committee import Accept, ModelTerm, Reveal, RewardTerms, Terms, Vote
from finode.wire.directory import InputSpec, ModelOffer, ServiceSpec
from finode.wire.signed import Signed, sign

NOW = 1_790_000_000_000
ALL_ROLES = frozenset({Role.OWNER, Role.PARTY, Role.DEALER})
SERVICE = ServiceSpec(name="digits", input=InputSpec(shape=(1, 8, 8)), classes=("zero", "one", "two"))


def hashed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class World:
    """Peers by name: "acme" is the one peer of the organization acme; "acme/2" is another of its peers."""

    def __init__(self) -> None:
        self._identities: dict[str, Identity] = {}
        self._names: dict[str, str] = {}

    def identity(self, name: str) -> Identity:
        if name not in self._identities:
            identity = Identity.from_seed(hashed(name))
            self._identities[name] = identity
            self._names[identity.peer_id] = name
        return self._identities[name]

    def peer(self, name: str) -> PeerId:
        return self.identity(name).peer_id

    def name(self, peer: str) -> str:
        return self._names[peer]

    def identity_of(self, peer: str) -> Identity:
        return self._identities[self._names[peer]]

    def organization_of(self, peer: PeerId) -> str:
        return self._names[peer].split("/")[0] if peer in self._names else ""

    def offer(self, name: str, **changes: Any) -> ModelOffer:
        values: dict[str, Any] = {
            "version": hashed(f"version {name}"),
            "plan_digest": hashed(f"plan {name}"),
            "service": SERVICE.name,
            "price": 0,
        }
        return ModelOffer(**(values | changes))

    def candidate(self, name: str, *, owned: int = 0, **changes: Any) -> Candidate:
        values: dict[str, Any] = {
            "peer": self.peer(name),
            "organization": name.split("/")[0],
            "roles": ALL_ROLES,
            "rtt_ms": 1.0,
            "services": (SERVICE,) if owned else (),
            "models": tuple(self.offer(f"{name}#{index}") for index in range(owned)),
        }
        return Candidate(**(values | changes))

    def federation(self, names: Iterable[str], **changes: Mapping[str, Any]) -> list[Candidate]:
        """Return candidates that each own one model; `changes` by name."""
        return [self.candidate(name, **({"owned": 1} | dict(changes.get(name, {})))) for name in names]

    def request(self, **changes: Any) -> Request:
        values: dict[str, Any] = {
            "querier": self.peer("asker"),
            "organization": "asker",
            "federation": "test",
            "service": SERVICE.name,
        }
        return Request(**(values | changes))

    def terms(
        self,
        *,
        parties: Iterable[str] = ("acme", "beta"),
        dealer: str = "corp",
        owners: Iterable[str] = ("dune",),
        querier: str = "asker",
        **changes: Any,
    ) -> Terms:
        values: dict[str, Any] = {
            "federation": "test",
            "service": SERVICE.name,
            "service_digest": SERVICE.digest(),
            "classes": len(SERVICE.classes),
            "input_shape": SERVICE.input.shape,
            "models": tuple(self.term(f"{owner}#0") for owner in owners),
            "engine": "native",
            "fractional_bits": 16,
            "profile": "latency",
            "parties": tuple(self.peer(name) for name in parties),
            "dealer": self.peer(dealer),
            "querier": self.peer(querier),
            "vote": Vote.SOFT,
            "reveal": Reveal.PROBABILITIES,
            "max_batch": 64,
            "quota": 256,
            "party_price": 0,
            "dealer_price": 0,
            "rewards": RewardTerms.of(FederationSection(), 1000),
            "session_timeout_s": 120,
            "created_ms": NOW,
            "expires_ms": NOW + 600_000,
            "nonce": bytes(16),
        }
        return Terms(**(values | changes))

    def term(self, name: str, **changes: Any) -> ModelTerm:
        """Return the term of the model "owner#index"."""
        values: dict[str, Any] = {
            "version": hashed(f"version {name}"),
            "plan_digest": hashed(f"plan {name}"),
            "owner": self.peer(name.split("#")[0]),
            "price": 0,
        }
        return ModelTerm(**(values | changes))

    def own_model(self, name: str, **changes: Any) -> OwnModel:
        values: dict[str, Any] = {
            "version": hashed(f"version {name}"),
            "plan_digest": hashed(f"plan {name}"),
            "service": SERVICE.name,
            "service_digest": SERVICE.digest(),
            "classes": len(SERVICE.classes),
            "input_shape": SERVICE.input.shape,
        }
        return OwnModel(**(values | changes))

    def view(self, name: str, *, owned: int = 1, **changes: Any) -> MemberView:
        own = [self.own_model(f"{name}#{index}") for index in range(owned)]
        values: dict[str, Any] = {
            "peer": self.peer(name),
            "organization": name.split("/")[0],
            "federation": "test",
            "roles": ALL_ROLES,
            "organization_of": self.organization_of,
            "accepts": lambda peer: peer in self._names,
            "models": {model.version: model for model in own},
            "policy": OwnerPolicy(),
            "quotas": MemoryQuotas(),
        }
        return MemberView(**(values | changes))

    def accept(self, name: str, terms: Terms, **changes: Any) -> Signed:
        identity = self.identity(name)
        values: dict[str, Any] = {"committee": terms.committee_id(), "peer": identity.peer_id}
        return sign(identity, Accept(**(values | changes)))

    def accepts(self, terms: Terms) -> tuple[Signed, ...]:
        return tuple(self.accept(self.name(peer), terms) for peer in terms.members())

    def sealed(self, terms: Terms | None = None, **changes: Any) -> SealedCommittee:
        agreed = dataclasses.replace(terms or self.terms(), **changes)
        return SealedCommittee(agreed, self.accepts(agreed))


@pytest.fixture
def world() -> World:
    return World()
