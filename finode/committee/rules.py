"""What every member checks before it signs terms: all of it against its own view, nothing on the querier's word.

The order is fixed, and the first rule broken is the one told: whose terms these are, the federation, the time, the
roster, the organizations, then the member's own seats (role, engine, price, size, room), and for an owner its consent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from finode.committee.consent import MemoryQuotas, Objection, OwnerPolicy, OwnModel, QuotaStore
from finode.committee.organizations import organization_key, shared_organization
from finode.config import Role
from finode.identity import PeerId
from finode.wire.committee import RefusalReason, RewardTerms, Terms

CLOCK_SKEW_MS = 60_000
"""Terms made this far in our future are still taken: clocks of honest nodes differ, seconds with NTP."""
LONGEST_LIFETIME_MS = 25 * 3600 * 1000
"""A day, which is the most that a querier can configure, and an hour for clocks."""
MOST_INPUT_BYTES = 512 << 20
"""A share of the largest input that terms may foresee: 400 images of 3x224x224."""
PROFILES = ("latency", "throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """What a member knows when terms reach it.

    `organization_of` gives "" for a peer that is not known; it is not asked about the member itself. `in_use` counts
    the sessions that run here now, `holds` the deployments whose shares are kept. `rewards` are the federation's
    rules as this node's settings have them (None: any), `condemned` the peers against whom there is a proof,
    `credit_of` gives a peer's organization's balance in micro-credits.
    """

    peer: PeerId
    organization: str
    federation: str
    roles: frozenset[Role]
    organization_of: Callable[[PeerId], str]
    accepts: Callable[[PeerId], bool]
    condemned: frozenset[PeerId] = frozenset()
    engines: tuple[str, ...] = ("native",)
    capacity: int = 4
    in_use: int = 0
    max_batch: int = 4096
    party_price: int = 0
    dealer_price: int = 0
    rewards: RewardTerms | None = None
    credit_of: Callable[[PeerId], int] = lambda peer: 0
    storage_full: bool = False
    shutting_down: bool = False
    holds: frozenset[bytes] = frozenset()
    models: Mapping[bytes, OwnModel] = field(default_factory=lambda: MappingProxyType({}))
    policy: OwnerPolicy = field(default_factory=OwnerPolicy)
    quotas: QuotaStore = field(default_factory=MemoryQuotas)
    clock_skew_ms: int = CLOCK_SKEW_MS

    def organization_here(self, peer: PeerId) -> str:
        """Return the organization of a peer, this member's own included."""
        return self.organization if peer == self.peer else self.organization_of(peer)


def objection(terms: Terms, sender: PeerId, view: MemberView, now_ms: int) -> Objection | None:
    """Return the first rule that `terms`, proposed by `sender`, break in this member's view; None if none."""
    return (
        _frame_objection(terms, sender, view)
        or _time_objection(terms, view, now_ms)
        or _roster_objection(terms, view)
        or _seat_objection(terms, view)
        or _consent_objection(terms, view, now_ms)
    )


def _frame_objection(terms: Terms, sender: PeerId, view: MemberView) -> Objection | None:
    if view.shutting_down:
        return Objection(RefusalReason.SHUTTING_DOWN)
    if terms.querier != sender:
        return Objection(RefusalReason.BAD_TERMS, terms.querier, f"proposed by {sender}, who is not their querier")
    if view.peer not in terms.members():
        return Objection(RefusalReason.BAD_TERMS, view.peer, "no seat in these terms is this node's")
    if terms.federation != view.federation:
        return Objection(
            RefusalReason.WRONG_FEDERATION, terms.federation[:256], f"this node is of the federation {view.federation}"
        )
    if terms.profile not in PROFILES:
        return Objection(RefusalReason.BAD_TERMS, terms.profile[:256], f"a profile is one of {', '.join(PROFILES)}")
    if view.rewards is not None:
        return _rewards_objection(terms.rewards, replace(view.rewards, price=terms.rewards.price))
    return None


def _rewards_objection(proposed: RewardTerms, own: RewardTerms) -> Objection | None:
    """All members must pay and count alike: the rules are the federation's, only the price is the querier's."""
    for rule in fields(RewardTerms):
        theirs, ours = getattr(proposed, rule.name), getattr(own, rule.name)
        if theirs != ours:
            return Objection(
                RefusalReason.OTHER_REWARDS, rule.name, f"{theirs} proposed, this node's settings say {ours}"
            )
    return None


def _time_objection(terms: Terms, view: MemberView, now_ms: int) -> Objection | None:
    if now_ms >= terms.expires_ms:
        return Objection(RefusalReason.EXPIRED, str(terms.expires_ms), "the terms have expired; compare the clocks")
    if terms.created_ms > now_ms + view.clock_skew_ms:
        ahead_s = (terms.created_ms - now_ms) // 1000
        return Objection(
            RefusalReason.BAD_TERMS, str(terms.created_ms), f"made {ahead_s} s in the future; compare the clocks"
        )
    if terms.expires_ms - terms.created_ms > LONGEST_LIFETIME_MS:
        return Objection(RefusalReason.BAD_TERMS, str(terms.expires_ms), "the terms would last longer than a day")
    return None


def _roster_objection(terms: Terms, view: MemberView) -> Objection | None:
    for peer in dict.fromkeys((terms.querier, *terms.members())):
        known = peer == view.peer or view.accepts(peer)
        if not known or not organization_key(view.organization_here(peer)):
            return Objection(RefusalReason.NOT_ON_ROSTER, peer, "not on this node's roster with an organization")
        if peer in view.condemned:
            return Objection(RefusalReason.CONDEMNED, peer, "it signed two bodies that contradict each other")
    shared = shared_organization(terms, view.organization_here)
    return None if shared is None else Objection(RefusalReason.SAME_ORGANIZATION, *shared)


def _seat_objection(terms: Terms, view: MemberView) -> Objection | None:
    held = [role for peer, role, _ in terms.seats() if peer == view.peer]
    for role in held:
        if role not in view.roles:
            return Objection(RefusalReason.ROLE_NOT_OFFERED, role, f"this node is no {role}")
    computing = [role for role in held if role is not Role.OWNER]
    if not computing:
        return None
    if terms.engine not in view.engines:
        return Objection(
            RefusalReason.UNSUPPORTED_ENGINE, terms.engine[:256], f"this node runs {', '.join(view.engines)}"
        )
    if terms.max_batch > view.max_batch:
        return Objection(RefusalReason.BATCH_TOO_LARGE, str(terms.max_batch), f"at most {view.max_batch} here")
    share_bytes = 8 * terms.max_batch * math.prod(terms.input_shape)
    if share_bytes > MOST_INPUT_BYTES:
        detail = f"{share_bytes} bytes of input, at most {MOST_INPUT_BYTES}"
        return Objection(RefusalReason.BATCH_TOO_LARGE, str(terms.max_batch), detail)
    for role in computing:
        offered, asked = (
            (terms.party_price, view.party_price) if role is Role.PARTY else (terms.dealer_price, view.dealer_price)
        )
        if offered < asked:
            return Objection(RefusalReason.PRICE_TOO_LOW, role, f"{offered} micro-credits offered, {asked} asked")
    if Role.PARTY in computing and view.storage_full:
        return Objection(RefusalReason.STORAGE_FULL, Role.PARTY, "no room for weight shares")
    if view.in_use >= view.capacity:
        return Objection(RefusalReason.BUSY, str(view.capacity), f"{view.in_use} sessions run here")
    return None


def _consent_objection(terms: Terms, view: MemberView, now_ms: int) -> Objection | None:
    if view.peer not in terms.owners():
        return None
    balance, most = view.credit_of(terms.querier), terms.quota * terms.rewards.price
    if balance - most < -terms.rewards.credit_limit:
        detail = f"its balance is {balance} micro-credits, these terms may cost it {most}, it may owe "
        return Objection(RefusalReason.NO_CREDIT, terms.querier, f"{detail}{terms.rewards.credit_limit}")
    return view.policy.objection(
        terms,
        owner=view.peer,
        models=view.models,
        organization_of=view.organization_here,
        quotas=view.quotas,
        now_ms=now_ms,
    )
