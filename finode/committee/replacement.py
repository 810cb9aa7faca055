"""What a refusal means for the next proposal: who is replaced, whose models are left out, or whose wish is met.

    refused as party or dealer, or silent   not asked again for that role (silent, or at odds with us: for any role)
    one model refused by its owner          that model is left out
    the owner's rule names a party, a
    dealer or an organization it insists on first the wish is met, if a committee can be had; else the owner is left out
    any other refusal by an owner           its models are left out
    most members do not know one of them    that one is replaced, not those who said so

An owner's wishes are met `CONCESSIONS` times at most, and only with peers that the querier's own policy accepts: an
owner must not steer the committee at will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from finode.committee.organizations import split_names
from finode.committee.policy import Constraints
from finode.config import Role
from finode.identity import PeerId
from finode.wire.committee import RefusalReason, Terms

CONCESSIONS = 3

_ANY_ROLE = frozenset({Role.PARTY, Role.DEALER, Role.OWNER})
_COMPUTING = frozenset({Role.PARTY, Role.DEALER})
_OF_COMPUTING = frozenset(
    {
        RefusalReason.BUSY,
        RefusalReason.STORAGE_FULL,
        RefusalReason.BATCH_TOO_LARGE,
        RefusalReason.UNSUPPORTED_ENGINE,
    }
)
_OF_OWNERS = frozenset(
    {
        RefusalReason.UNKNOWN_SERVICE,
        RefusalReason.UNKNOWN_MODEL,
        RefusalReason.PARTY_NOT_ALLOWED,
        RefusalReason.REQUIRED_PARTY_MISSING,
        RefusalReason.DEALER_NOT_ALLOWED,
        RefusalReason.QUERIER_NOT_ALLOWED,
        RefusalReason.QUERY_LIMIT,
        RefusalReason.NO_CREDIT,
        RefusalReason.REVEALS_TOO_MUCH,
    }
)
_OF_ONE_MODEL = frozenset(
    {
        RefusalReason.UNKNOWN_MODEL,
        RefusalReason.PRICE_TOO_LOW,
        RefusalReason.UNSUPPORTED_ENGINE,
        RefusalReason.BAD_TERMS,
    }
)
_OF_ONE_ROLE = frozenset({RefusalReason.ROLE_NOT_OFFERED, RefusalReason.PRICE_TOO_LOW, RefusalReason.STORAGE_FULL})
_ABOUT_ANOTHER = frozenset({RefusalReason.NOT_ON_ROSTER, RefusalReason.SAME_ORGANIZATION, RefusalReason.CONDEMNED})
_ROLE_OF_WISH = {RefusalReason.PARTY_NOT_ALLOWED: Role.PARTY, RefusalReason.DEALER_NOT_ALLOWED: Role.DEALER}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A member's no; `reason` None when it did not answer."""

    peer: PeerId
    reason: RefusalReason | None
    subject: str = ""
    detail: str = ""

    @property
    def words(self) -> str:
        """What the member did, without its name."""
        told = self.detail.removeprefix(f"{self.peer} ")
        if self.reason is None and told != self.detail:
            return told
        subject = f" {self.subject}" if self.subject else ""
        did = "did not answer" if self.reason is None else f"refused ({self.reason}{subject})"
        return did + (f": {told}" if told else "")

    def __str__(self) -> str:
        return f"{self.peer} {self.words}"


@dataclass(slots=True)
class _Wishes:
    """What an owner wants that could be met: no such party or dealer, a party of one of these organizations."""

    unwanted: set[tuple[PeerId, Role]] = field(default_factory=set)
    required: list[frozenset[str]] = field(default_factory=list)
    models: set[bytes] = field(default_factory=set)
    conceded: int = 0


@dataclass(slots=True)
class Replacements:
    """Everything learned from refusals of one negotiation. `refusals` is the full list, for the final error."""

    refusals: list[Refusal] = field(default_factory=list)
    _out: set[tuple[PeerId, Role]] = field(default_factory=set)
    _wishes: dict[PeerId, _Wishes] = field(default_factory=dict)

    def constraints(self) -> Constraints:
        """Return what the next choice must keep to."""
        wishes = [wish for owner, wish in self._wishes.items() if (owner, Role.OWNER) not in self._out]
        return Constraints(
            out=frozenset(self._out.union(*(wish.unwanted for wish in wishes))),
            models=frozenset[bytes]().union(*(wish.models for wish in wishes)),
            required=tuple(names for wish in wishes for names in wish.required),
        )

    def give_up_a_wish(self) -> bool:
        """Leave out the owner whose wish came last, with its models; False if no wish is left."""
        for owner, wish in reversed(self._wishes.items()):
            if (owner, Role.OWNER) not in self._out and (wish.unwanted or wish.required):
                self._out.add((owner, Role.OWNER))
                return True
        return False

    def learn(self, terms: Terms, refusals: Mapping[PeerId, Refusal]) -> None:
        """Take in the refusals of one proposal. Each rules out at least one seat of these terms."""
        self.refusals.extend(refusals.values())
        unknown = self._unknown_to_most(terms, refusals)
        if unknown is not None:
            self._out.update((unknown, role) for role in _ANY_ROLE)
        for peer, refusal in refusals.items():
            if unknown is not None and refusal.subject == unknown and refusal.reason in _ABOUT_ANOTHER:
                continue
            if not self._concede(terms, refusal):
                self._out.update((peer, role) for role in _roles_refused(terms, refusal))

    @staticmethod
    def _unknown_to_most(terms: Terms, refusals: Mapping[PeerId, Refusal]) -> PeerId | None:
        """Return the member that more than half of the others refuse to sit with. Fewer cannot drive a member out."""
        objections = Counter(
            refusal.subject
            for peer, refusal in refusals.items()
            if refusal.reason in _ABOUT_ANOTHER and refusal.subject != peer
        )
        others = len(terms.members()) - 1
        return next((peer for peer in terms.members() if objections[peer] * 2 > others), None)

    def _concede(self, terms: Terms, refusal: Refusal) -> bool:
        """Note a wish that an owner's refusal names, if it is one that can be met; say whether it was."""
        own = {model.version.hex(): model.version for model in terms.models if model.owner == refusal.peer}
        if not own:
            return False
        wishes = self._wishes.get(refusal.peer, _Wishes())
        if wishes.conceded >= CONCESSIONS:
            return False
        role = _ROLE_OF_WISH.get(refusal.reason) if refusal.reason else None
        if refusal.reason in _OF_ONE_MODEL and refusal.subject in own and len(own) > 1:
            wishes.models.add(own[refusal.subject])
        elif role is Role.PARTY and refusal.subject in terms.parties:
            wishes.unwanted.add((PeerId(refusal.subject), role))
        elif role is Role.DEALER and refusal.subject == terms.dealer:
            wishes.unwanted.add((terms.dealer, role))
        elif refusal.reason is RefusalReason.REQUIRED_PARTY_MISSING and refusal.subject:
            names = split_names(refusal.subject)
            if not names or names in wishes.required:
                return False
            wishes.required.append(names)
        else:
            return False
        wishes.conceded += 1
        # The latest wish goes to the end: it is the first to be given up.
        self._wishes.pop(refusal.peer, None)
        self._wishes[refusal.peer] = wishes
        return True


def _roles_refused(terms: Terms, refusal: Refusal) -> frozenset[Role]:
    """Return the roles for which the peer is not asked again: at least one that it holds in these terms."""
    held = frozenset(role for peer, role, _ in terms.seats() if peer == refusal.peer)
    own_models = {model.version.hex() for model in terms.models if model.owner == refusal.peer}
    refused = _ANY_ROLE
    if refusal.reason is None:
        pass
    elif refusal.reason in _OF_ONE_ROLE and refusal.subject in held:
        refused = frozenset({Role(refusal.subject)})
    elif refusal.reason in _OF_OWNERS or refusal.subject in own_models:
        refused = frozenset({Role.OWNER})
    elif refusal.reason in _OF_COMPUTING:
        refused = _COMPUTING
    return refused if refused & held else _ANY_ROLE
