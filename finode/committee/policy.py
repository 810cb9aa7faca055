"""The querier's choice: which models, which parties, which dealer.

Pure and deterministic: equal candidates, request and constraints give an equal selection, so a query asked again finds
the parties that keep its deployments. What must hold, before any preference:

    parties     on the roster, offer the role and the engine, connected, not excluded, standing not too low;
                their organizations differ from each other
    dealer      the same, and its organization is none of the parties' and not the querier's
    models      all offers of the service by eligible owners whose service specs agree; if specs differ, the one that
                most organizations state counts

Then, in this order: ordered parties with a dealer that keep the most of the models' deployments already; near parties
(round-trip time in steps of `RTT_STEP_MS`, so that noise does not outweigh standing); good standing; low price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from finode.committee.matching import Seating, seat
from finode.committee.organizations import organization_key
from finode.committee.weighting import Weights, vote_weights
from finode.config import FederationSection, Role
from finode.errors import CommitteeError, TooFewParties, UnknownService
from finode.identity import PeerId
from finode.wire.committee import ModelTerm, Reveal, RewardTerms, Terms, Vote
from finode.wire.directory import MAX_MODELS, DeploymentRef, ModelOffer, NodeRecord, ServiceSpec

RTT_STEP_MS = 5.0
"""Round-trip times that differ by less are taken as equal: heartbeats on a busy machine scatter by about this much."""
NO_RTT_MS = 10_000.0
"""Stands in for a round-trip time that was not measured yet: after all measured ones."""

EXCLUDED = "excluded"
REFUSED = "refused or silent"
MODEL_REFUSED = "refused by its owner"
OTHER_SPEC = "with another input or other classes"
SURPLUS = f"a second offer of the same model, or beyond the {MAX_MODELS} of one committee"
"""Some of the reasons for which a candidate, or a model, is not taken (`LeftOut.kind`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A peer as the querier sees it. `organization` is what the roster says, "" if it says nothing."""

    peer: PeerId
    organization: str
    roles: frozenset[Role]
    connected: bool = True
    rtt_ms: float | None = None
    standing: float = 0.0
    capacity: int = 1
    engines: tuple[str, ...] = ("native",)
    party_price: int = 0
    dealer_price: int = 0
    deployments: tuple[DeploymentRef, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    models: tuple[ModelOffer, ...] = ()


def candidate(
    record: NodeRecord,
    *,
    organization: str,
    connected: bool = True,
    rtt_ms: float | None = None,
    standing: float = 0.0,
) -> Candidate:
    """Return the candidate of a verified directory record and of what this node knows of the peer itself."""
    return Candidate(
        peer=record.peer,
        organization=organization,
        roles=frozenset(record.roles),
        connected=connected,
        rtt_ms=rtt_ms,
        standing=standing,
        capacity=record.capacity,
        engines=record.engines,
        party_price=record.party_price,
        dealer_price=record.dealer_price,
        deployments=record.deployments,
        services=record.services,
        models=record.models,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the querier wants of a committee. `exclude` holds peer ids and organization names.

    `quota` is how many inputs may be asked on the committee in all: owners count it against the day's limit when they
    accept, whether it is used or not. `self_party` lets the querier's own node be a party where no committee is
    possible otherwise.
    """

    querier: PeerId
    organization: str
    federation: str
    service: str
    parties: int = 2
    vote: Vote = Vote.SOFT
    reveal: Reveal = Reveal.PROBABILITIES
    max_batch: int = 64
    quota: int = 256
    engine: str = "native"
    profile: str = "latency"
    fractional_bits: int = 16
    session_timeout_s: int = 120
    lifetime_ms: int = 600_000
    min_models: int = 1
    rewards: RewardTerms = field(default_factory=lambda: RewardTerms.of(FederationSection(), 1000))
    max_price: int = 1_000_000
    exclude: frozenset[str] = frozenset()
    minimum_standing: float = -50.0
    self_party: bool = False
    max_attempts: int = 8
    weights: Weights = ()
    copies: int = 0
    gamma: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What refusals so far rule out: roles of peers, models, and organizations of which one must be a party."""

    out: frozenset[tuple[PeerId, Role]] = frozenset()
    models: frozenset[bytes] = frozenset()
    required: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A model of the service that is not asked, and why: what an answer's reader must know to judge it."""

    owner: PeerId
    version: bytes
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """What is known of the reason."""
        return self.detail or self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice that keeps all rules. `left_out` are the other models that are offered for the service, `kept` counts
    those whose deployment all parties keep already."""

    spec: ServiceSpec
    models: tuple[ModelTerm, ...]
    parties: tuple[Candidate, ...]
    dealer: Candidate
    left_out: tuple[LeftOut, ...]
    kept: int
    vote_weights: tuple[int, ...] = ()

    def terms(self, request: Request, *, now_ms: int, nonce: bytes) -> Terms:
        """Return the terms that this selection proposes. Every party gets the price that the dearest one asks.

        Raises `CommitteeError` when more is asked than the request allows.
        """
        party_price, dealer_price = max(party.party_price for party in self.parties), self.dealer.dealer_price
        return Terms(
            federation=request.federation,
            service=request.service,
            service_digest=self.spec.digest(),
            classes=len(self.spec.classes),
            input_shape=self.spec.input.shape,
            models=self.models,
            engine=request.engine,
            fractional_bits=request.fractional_bits,
            profile=request.profile,
            parties=tuple(party.peer for party in self.parties),
            dealer=self.dealer.peer,
            querier=request.querier,
            vote=request.vote,
            reveal=request.reveal,
            max_batch=request.max_batch,
            quota=request.quota,
            party_price=party_price,
            dealer_price=dealer_price,
            rewards=self._rewards(request, party_price, dealer_price),
            session_timeout_s=request.session_timeout_s,
            created_ms=now_ms,
            expires_ms=now_ms + request.lifetime_ms,
            nonce=nonce,
            vote_weights=self.vote_weights,
            copies=request.copies,
            gamma=request.gamma,
        )

    def _rewards(self, request: Request, party_price: int, dealer_price: int) -> RewardTerms:
        asked = (sum(model.price for model in self.models), len(self.parties), party_price, dealer_price)
        least = request.rewards.least_price(*asked)
        if least is None:
            raise CommitteeError(
                "a member asks a price for a role that gets no part of it in this federation",
                hint="compare [federation] owners_part, parties_part and dealer_part with the prices asked",
            )
        price = max(request.rewards.price, least)
        if price > max(request.max_price, request.rewards.price):
            raise CommitteeError(
                f"the members ask {price} micro-credits per input, {request.max_price} are offered at most",
                hint="raise [querier] max_price",
            )
        return replace(request.rewards, price=price)


@dataclass(slots=True)
class _Tally:
    """Why candidates were not eligible, counted by reason, for the message of `TooFewParties`."""

    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counted = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {reason}" for reason, count in counted) or "nobody"


def _hindrance(peer: Candidate, role: Role, request: Request, constraints: Constraints) -> str:
    """Return why `peer` cannot hold a seat of `role`, "" if it can."""
    organization = organization_key(peer.organization)
    excluded = {organization_key(name) for name in request.exclude}
    if not organization:
        return "not on the roster"
    if peer.peer in request.exclude or organization in excluded:
        return EXCLUDED
    if role not in peer.roles:
        return f"not offering the role {role}"
    if not peer.connected:
        return "disconnected"
    if (peer.peer, role) in constraints.out:
        return REFUSED
    if peer.standing < request.minimum_standing:
        return f"of a standing below {request.minimum_standing:g}"
    if role is Role.OWNER:
        return ""
    if request.engine not in peer.engines:
        return f"without the engine {request.engine}"
    if peer.capacity < 1:
        return "without capacity"
    if role is Role.DEALER and peer.peer == request.querier:
        return "the querier itself"
    if role is Role.DEALER and organization == organization_key(request.organization):
        return "of the querier's organization"
    return ""


def _rank(peer: Candidate, price: int) -> tuple[int, float, int, str]:
    rtt_ms = NO_RTT_MS if peer.rtt_ms is None else max(0.0, peer.rtt_ms)
    return int(rtt_ms // RTT_STEP_MS), -peer.standing, price, peer.peer


@dataclass(frozen=True, slots=True)
class _Offers:
    spec: ServiceSpec
    models: tuple[ModelTerm, ...]
    left_out: tuple[LeftOut, ...]


def _offers(candidates: Sequence[Candidate], request: Request, constraints: Constraints) -> _Offers:
    """Return the models to ask, raise `UnknownService` or `CommitteeError` where there are none or too few."""
    left_out: list[LeftOut] = []
    offered: list[tuple[Candidate, ServiceSpec, ModelOffer]] = []
    for owner in candidates:
        spec = next((spec for spec in owner.services if spec.name == request.service), None)
        offers = [offer for offer in owner.models if offer.service == request.service]
        if spec is None or not offers:
            continue
        hindrance = _hindrance(owner, Role.OWNER, request, constraints)
        for offer in offers:
            kind = hindrance
            if not kind and request.engine not in offer.engines:
                kind = f"without the engine {request.engine}"
            elif not kind and offer.version in constraints.models:
                kind = MODEL_REFUSED
            if kind:
                left_out.append(LeftOut(owner=owner.peer, version=offer.version, kind=kind))
            else:
                offered.append((owner, spec, offer))
    if not offered and not left_out:
        raise UnknownService(
            f"nobody in the federation offers the service {request.service!r}",
            hint="`finode services` lists those that are offered",
        )
    models: tuple[ModelTerm, ...] = ()
    if offered:
        digest = _majority(offered)
        agreeing = [(owner, spec, offer) for owner, spec, offer in offered if spec.digest() == digest]
        if request.vote is Vote.PRIOR:
            _check_counts(agreeing)
        models = _spread([(owner.peer, offer) for owner, _, offer in agreeing])
        asked = {(model.owner, model.version) for model in models}
        left_out += [
            LeftOut(owner=owner.peer, version=offer.version, kind=OTHER_SPEC if spec.digest() != digest else SURPLUS)
            for owner, spec, offer in offered
            if (owner.peer, offer.version) not in asked
        ]
    if len(models) < max(1, request.min_models):
        raise CommitteeError(
            f"service {request.service!r}: {len(models)} models can be asked, {max(1, request.min_models)} are needed; "
            f"left out: {_Tally(Counter(one.kind for one in left_out))}",
            hint="`finode services` lists the offers; min_models in [querier] is the fewest an answer may come from",
        )
    return _Offers(agreeing[0][1], models, tuple(left_out))


def askable(candidates: Iterable[Candidate], request: Request) -> tuple[ModelTerm, ...]:
    """Return the models that `choose` would ask, as far as they are for these candidates to give; none if too few."""
    try:
        return _offers(sorted(candidates, key=lambda peer: peer.peer), request, Constraints()).models
    except (CommitteeError, UnknownService):
        return ()


def _vote_weights(models: tuple[ModelTerm, ...], everybody: Sequence[Candidate], request: Request) -> tuple[int, ...]:
    if request.vote is not Vote.WEIGHTED:
        return ()
    organizations = {peer.peer: peer.organization for peer in everybody}
    return vote_weights(request.weights, [(model, organizations[model.owner]) for model in models])


def _check_counts(offers: Sequence[tuple[Candidate, ServiceSpec, ModelOffer]]) -> None:
    """Raise `CommitteeError` unless every model has training counts: without them a prior vote is another one."""
    without = [
        f"{offer.version.hex()[:12]} of {owner.organization!r}" for owner, _, offer in offers if not offer.counts
    ]
    if without:
        raise CommitteeError(
            f"a prior vote needs the training counts of every model; none came with {', '.join(without[:8])}",
            hint="their owners add the models with `finode models add --counts FILE`, or ask for another vote",
        )


def _majority(offered: Sequence[tuple[Candidate, ServiceSpec, ModelOffer]]) -> bytes:
    """Return the digest of the spec that most organizations state (one with many models has one voice), then the one
    with most models, then the smallest."""
    organizations: dict[bytes, set[str]] = {}
    models: Counter[bytes] = Counter()
    for owner, spec, _ in offered:
        organizations.setdefault(spec.digest(), set()).add(organization_key(owner.organization))
        models[spec.digest()] += 1
    return min(organizations, key=lambda digest: (-len(organizations[digest]), -models[digest], digest))


def _spread(offers: Iterable[tuple[PeerId, ModelOffer]]) -> tuple[ModelTerm, ...]:
    """Return at most `MAX_MODELS` terms: every owner's first model before anybody's second."""
    turns: Counter[PeerId] = Counter()
    ranked: list[tuple[int, PeerId, ModelTerm]] = []
    taken: set[bytes] = set()
    for owner, offer in sorted(offers, key=lambda pair: (pair[0], pair[1].version)):
        if offer.version in taken:
            continue
        taken.add(offer.version)
        term = ModelTerm(version=offer.version, plan_digest=offer.plan_digest, owner=owner, price=offer.price)
        ranked.append((turns[owner], owner, term))
        turns[owner] += 1
    ranked.sort(key=lambda entry: (entry[0], entry[1], entry[2].version))
    return tuple(term for _, _, term in islice(ranked, MAX_MODELS))


def _kept_seatings(
    parties: Mapping[PeerId, Candidate],
    dealers: Mapping[PeerId, Candidate],
    models: tuple[ModelTerm, ...],
    request: Request,
    required: Sequence[frozenset[str]],
) -> list[tuple[int, Seating]]:
    """Return (how many models all parties keep already, seating) of every feasible ordered set that keeps any."""
    wanted = {model.version for model in models}
    claims: dict[tuple[tuple[PeerId, ...], PeerId], Counter[bytes]] = {}
    for peer in parties.values():
        for ref in set(peer.deployments):
            if ref.model in wanted and peer.peer in ref.parties and len(ref.parties) == request.parties:
                claims.setdefault((ref.parties, ref.dealer), Counter())[ref.model] += 1
    found = []
    for (order, dealer), counted in claims.items():
        kept = sum(count == len(order) for count in counted.values())
        if not kept or dealer not in dealers or any(peer not in parties for peer in order):
            continue
        organizations = [organization_key(parties[peer].organization) for peer in order]
        distinct = {*organizations, organization_key(dealers[dealer].organization)}
        if len(distinct) == len(order) + 1 and all(group & set(organizations) for group in required):
            found.append((kept, Seating(order, dealer)))
    return found


def choose(candidates: Iterable[Candidate], request: Request, constraints: Constraints | None = None) -> Selection:
    """Return the best selection that keeps all rules.

    Raises `UnknownService`; `CommitteeError` when fewer than `min_models` models can be asked; `TooFewParties` with
    how many were eligible, and why the others were not.
    """
    constraints = constraints or Constraints()
    everybody = sorted(candidates, key=lambda peer: peer.peer)
    offers = _offers(everybody, request, constraints)
    tallies = {Role.PARTY: _Tally(), Role.DEALER: _Tally()}
    eligible: dict[Role, dict[PeerId, Candidate]] = {Role.PARTY: {}, Role.DEALER: {}}
    for role, tally in tallies.items():
        for peer in everybody:
            hindrance = _hindrance(peer, role, request, constraints)
            if hindrance:
                tally.reasons[hindrance] += 1
            else:
                eligible[role][peer.peer] = peer
    own = eligible[Role.PARTY].pop(request.querier, None)
    required = tuple(frozenset(organization_key(name) for name in names) for names in constraints.required)
    attempts = [eligible[Role.PARTY]]
    if own is not None and request.self_party:
        attempts.append({**eligible[Role.PARTY], own.peer: own})
    elif own is not None:
        tallies[Role.PARTY].reasons["the querier itself"] += 1
    dealers = eligible[Role.DEALER]
    for parties in attempts:
        seating, kept = _seating(parties, dealers, offers.models, request, required)
        if seating is not None:
            return Selection(
                spec=offers.spec,
                models=offers.models,
                parties=tuple(parties[peer] for peer in seating.parties),
                dealer=dealers[seating.dealer],
                left_out=offers.left_out,
                kept=kept,
                vote_weights=_vote_weights(offers.models, everybody, request),
            )
    raise TooFewParties(_too_few(attempts[-1], dealers, tallies, request, required), hint=_HINT)


_HINT = "ask for fewer parties, or wait until more nodes that offer the roles are connected: `finode peers`"


def _seating(
    parties: Mapping[PeerId, Candidate],
    dealers: Mapping[PeerId, Candidate],
    models: tuple[ModelTerm, ...],
    request: Request,
    required: Sequence[frozenset[str]],
) -> tuple[Seating | None, int]:
    party_order = sorted(parties.values(), key=lambda peer: _rank(peer, peer.party_price))
    dealer_order = sorted(dealers.values(), key=lambda peer: _rank(peer, peer.dealer_price))
    place = {peer.peer: index for index, peer in enumerate(party_order)}
    dealer_place = {peer.peer: index for index, peer in enumerate(dealer_order)}
    kept = _kept_seatings(parties, dealers, models, request, required)
    if kept:
        count, best = min(
            kept,
            key=lambda entry: (
                -entry[0],
                sum(place[peer] for peer in entry[1].parties),
                dealer_place[entry[1].dealer],
                entry[1],
            ),
        )
        return best, count
    found = seat(
        [(peer.peer, organization_key(peer.organization)) for peer in party_order],
        [(peer.peer, organization_key(peer.organization)) for peer in dealer_order],
        request.parties,
        required,
    )
    return found, 0


def _too_few(
    parties: Mapping[PeerId, Candidate],
    dealers: Mapping[PeerId, Candidate],
    tallies: Mapping[Role, _Tally],
    request: Request,
    required: Sequence[frozenset[str]],
) -> str:
    organizations = {organization_key(peer.organization) for peer in parties.values()}
    dealing = {organization_key(peer.organization) for peer in dealers.values()}
    message = (
        f"service {request.service!r} needs {request.parties} parties and a dealer, all of different organizations, "
        f"the dealer's not your own; eligible are {len(parties)} parties of {len(organizations)} organizations "
        f"and {len(dealers)} dealers of {len(dealing)} organizations ({len(organizations | dealing)} in all); "
        f"not as party: {tallies[Role.PARTY]}; not as dealer: {tallies[Role.DEALER]}"
    )
    if required:
        message += "; owners insist on a party of: " + "; ".join(" or ".join(sorted(names)) for names in required)
    return message
