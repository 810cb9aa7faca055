"""A sealed committee: a type that exists only where every signature was checked.

`SealedCommittee` verifies on construction, so whoever holds one holds proof that each member of the terms signed for
exactly these terms. Sessions take nothing less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from finode.errors import BadSignature, MalformedMessage
from finode.identity import PeerId
from finode.wire import canonical
from finode.wire.committee import Accept, CommitteeId, Seal, Terms
from finode.wire.message import check
from finode.wire.signed import Signed, open_signed


def open_accept(signed: Signed, terms: Terms, *, signer: PeerId | None = None) -> Accept:
    """Return the `Accept` in `signed` if it is by a member (by `signer`, if given) and for exactly these terms.

    Raises `BadSignature` or `MalformedMessage` that names the peer.
    """
    accept = open_signed(signed, Accept, signer=signer)
    if accept.peer != signed.signer:
        raise BadSignature(f"{signed.signer} signed an acceptance in the name of {accept.peer}")
    check(accept.peer in terms.members(), f"{accept.peer} accepted but is no member of the committee")
    check(accept.committee == terms.committee_id(), f"{accept.peer} accepted other terms")
    known = {terms.deployment_id(model) for model in terms.models}
    check(set(accept.holds) <= known, f"{accept.peer} holds a deployment that is not in the terms")
    return accept


@dataclass(frozen=True, slots=True)
class SealedCommittee:
    """Terms that every member signed. Building one raises `BadSignature` or `MalformedMessage` unless `accepts` has
    exactly one valid acceptance of each member.

    `holds` says which deployments each member keeps already, as it signed.
    """

    terms: Terms
    accepts: tuple[Signed, ...] = field(repr=False)
    id: CommitteeId = field(init=False)
    holds: Mapping[PeerId, frozenset[bytes]] = field(init=False, repr=False, hash=False, compare=False)

    def __post_init__(self) -> None:
        holds: dict[PeerId, frozenset[bytes]] = {}
        for signed in self.accepts:
            if signed.signer in holds:
                raise MalformedMessage(f"{signed.signer} accepted twice")
            holds[signed.signer] = frozenset(open_accept(signed, self.terms).holds)
        missing = [peer for peer in self.terms.members() if peer not in holds]
        if missing:
            raise MalformedMessage(f"the acceptance of {missing[0]} is missing")
        object.__setattr__(self, "id", self.terms.committee_id())
        object.__setattr__(self, "holds", MappingProxyType(holds))

    def seal(self) -> Seal:
        """Return the message that lets every member check the same."""
        return Seal(committee=self.id, accepts=self.accepts)

    def digest(self) -> bytes:
        """Return the hash of the terms with all acceptances, in the order of their signers."""
        accepts = [(accept.signer, accept.body, accept.signature) for accept in self.accepts]
        return canonical.digest("sealed", canonical.encode([self.terms.encode(), *map(list, sorted(accepts))]))

    def party_index(self, peer: PeerId) -> int:
        """Return the party index of a peer, -1 if it is no party."""
        return self.terms.parties.index(peer) if peer in self.terms.parties else -1

    def expired(self, now_ms: int) -> bool:
        return now_ms >= self.terms.expires_ms


def verify_seal(terms: Terms, seal: Seal) -> SealedCommittee:
    """Return the committee that a `Seal` proves; raise `BadSignature` or `MalformedMessage` if it proves nothing."""
    check(seal.committee == terms.committee_id(), "the seal is for other terms")
    return SealedCommittee(terms, seal.accepts)
