"""What the querier wants of a committee, and whom it may choose from: from its settings and from what it knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finode.committee.policy import Candidate, Request, candidate
from finode.committee.weighting import checked_weights
from finode.config import Config, Role
from finode.errors import InputError
from finode.identity import PeerId
from finode.net.interface import Network
from finode.net.standing import GRAYLIST
from finode.node.interface import QueryRequest
from finode.smpc.engine import AnswerSpec
from finode.smpc.engines import CRYPTEN, NATIVE
from finode.wire.committee import GAMMA_BITS, MAX_COPIES, MAX_GAMMA, Reveal, RewardTerms, Terms, Vote

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
        **_vote_of(request, config, vote),
    )


def _vote_of(request: QueryRequest, config: Config, vote: Vote) -> dict[str, Any]:
    """Return the fields of a `Request` that belong to one vote alone; raise `InputError` if they do not fit it."""
    settings = config.querier
    engine = request.engine or settings.engine
    if engine == CRYPTEN and vote not in (Vote.SOFT, Vote.HARD):
        raise InputError(f"the engine {engine} has no {vote} vote", hint=f"ask with the engine {NATIVE}")
    if (request.weights is not None) != (vote is Vote.WEIGHTED):
        raise InputError(
            f"a {vote} vote {'needs' if vote is Vote.WEIGHTED else 'takes no'} weights",
            hint="`finode query --vote weighted --weights NAME=W,...` gives each organization one",
        )
    if vote is not Vote.AUGMENTED:
        if request.copies is not None or request.gamma is not None:
            raise InputError(f"a {vote} vote takes no copies and no gamma", hint="they belong to the vote augmented")
        return {} if request.weights is None else {"weights": checked_weights(request.weights)}
    copies = settings.copies if request.copies is None else request.copies
    gamma = settings.gamma if request.gamma is None else request.gamma
    if not 1 <= copies <= MAX_COPIES or not abs(gamma) <= MAX_GAMMA:
        raise InputError(f"{copies} copies with gamma = {gamma:g}: 1 to {MAX_COPIES}, and -{MAX_GAMMA} to {MAX_GAMMA}")
    if copies >= settings.max_batch:
        raise InputError(
            f"an input with {copies} copies is more than the {settings.max_batch} inputs of one session",
            hint="take fewer copies, or raise [querier] max_batch",
        )
    return {"copies": copies, "gamma": round(gamma * (1 << GAMMA_BITS))}


def answer_spec(terms: Terms, batch: int) -> AnswerSpec:
    """Return what tells how a session's output shares become an answer."""
    return AnswerSpec(
        models=len(terms.models),
        classes=terms.classes,
        parties=len(terms.parties),
        batch=batch,
        fractional_bits=terms.fractional_bits,
        vote=terms.vote.value,
        reveal=terms.reveal.value,
        copies=terms.copies,
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
