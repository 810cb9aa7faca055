"""What the querier wants of a committee, and whom it may choose from: from its settings and from what it knows."""

from __future__ import annotations

from dataclasses import replace

from finode.committee.policy import Candidate, Request, candidate
from finode.config import Config, Role
from finode.errors import InputError
from finode.identity import PeerId
from finode.net.interface import Network
from finode.net.standing import GRAYLIST
from finode.node.interface import QueryRequest
from finode.wire.committee import Reveal, RewardTerms, Terms, Vote

COMPUTING = "computing:"
"""Before a peer id among the excluded: not as party or dealer, but its models still count."""


def wanted_of(
    request: QueryRequest, config: Config, querier: PeerId, organization: str, exclude: frozenset[str]
) -> Request:
    """Return what a query asks of its committee; raise `InputError` for a vote or a reveal that there is not."""
    settings = config.querier
    try:
        vote, reveal = Vote(request.vote), Reveal(request.reveal)
    except ValueError as error:
        raise InputError(str(error)) from None
    return Request(
        querier=querier,
        organization=organization,
        federation=config.federation.name,
        service=request.service,
        parties=request.parties or settings.parties,
        vote=vote,
        reveal=reveal,
        max_batch=settings.max_batch,
        quota=max(settings.quota, settings.max_batch),
        engine=request.engine or settings.engine,
        fractional_bits=settings.fractional_bits,
        session_timeout_s=max(1, round(settings.deadline_s)),
        lifetime_ms=round(settings.committee_lifetime_s * 1000),
        min_models=settings.min_models,
        rewards=RewardTerms.of(config.federation, settings.price),
        max_price=settings.max_price,
        profile=settings.profile,
        self_party=settings.self_party,
        exclude=exclude | frozenset(settings.exclude),
    )


def in_good_standing(network: Network, terms: Terms) -> bool:
    """Return whether no member has lost so much standing, since it was chosen, that nothing is heard from it now."""
    return all(network.standing(peer) > GRAYLIST for peer in terms.members())


def candidates(network: Network, own: Candidate | None, exclude: frozenset[str]) -> list[Candidate]:
    """Return everybody in the directory as a candidate; those that may not compute are owners at most."""
    found = [
        candidate(
            state.record,
            organization=state.organization,
            connected=state.connected,
            rtt_ms=state.rtt_ms,
            standing=state.standing,
        )
        for state in network.states().values()
        if state.record is not None
    ]
    return [
        replace(peer, roles=peer.roles & {Role.OWNER}) if f"{COMPUTING}{peer.peer}" in exclude else peer
        for peer in (*found, *(() if own is None else (own,)))
    ]
