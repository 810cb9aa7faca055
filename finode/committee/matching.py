"""Who sits where: parties and a dealer of different organizations, the best ranked that fit together.

Only organizations make this more than sorting: the one possible dealer must not be spent as a party, and owners may
insist on a party out of a set of organizations. For every organization that can deal, the parties of all other
organizations are taken in order of rank, after a small search for those that are insisted on. The cheapest seating
wins: first by the parties' ranks, since every round waits for them, then by the dealer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finode.identity import PeerId

SEARCH_LIMIT = 4096
"""Most steps of the search for insisted-on parties: many owners with long lists must not stall the querier."""

Ranked = Sequence[tuple[PeerId, str]]
"""Peers, the best first, each with its organization."""


@dataclass(frozen=True, slots=True, order=True)
class Seating:
    """Peer ids of the parties, in the order of `party_index`, and of the dealer."""

    parties: tuple[PeerId, ...]
    dealer: PeerId


def _best_of_each(peers: Ranked) -> dict[str, tuple[int, PeerId]]:
    """Return the rank and the id of every organization's best peer."""
    best: dict[str, tuple[int, PeerId]] = {}
    for rank, (peer, organization) in enumerate(peers):
        best.setdefault(organization, (rank, peer))
    return best


def seat(parties: Ranked, dealers: Ranked, count: int, required: Sequence[frozenset[str]] = ()) -> Seating | None:
    """Return the best seating of `count` parties and a dealer, None if there is none.

    Of each set in `required` one organization must be a party's. The parties come out sorted by peer id, so that one
    set of parties has one order, and one set of deployments.
    """
    party_of = _best_of_each(parties)
    best: tuple[int, int, Seating] | None = None
    for organization, (dealer_rank, dealer) in _best_of_each(dealers).items():
        others = {name: entry for name, entry in party_of.items() if name != organization}
        chosen = _pick(others, count, required)
        if chosen is None:
            continue
        cost = sum(others[name][0] for name in chosen)
        seating = Seating(tuple(sorted(others[name][1] for name in chosen)), dealer)
        if best is None or (cost, dealer_rank, seating) < best:
            best = (cost, dealer_rank, seating)
    return None if best is None else best[2]


def _pick(
    party_of: Mapping[str, tuple[int, PeerId]], count: int, required: Sequence[frozenset[str]]
) -> frozenset[str] | None:
    """Return `count` organizations of low rank that meet every set in `required`, None if there are none."""
    by_rank = sorted(party_of, key=lambda name: party_of[name][0])
    steps = 0

    def meet(chosen: frozenset[str]) -> frozenset[str] | None:
        nonlocal steps
        steps += 1
        unmet = next((names for names in required if not names & chosen), None)
        if unmet is None:
            return chosen
        if len(chosen) == count or steps > SEARCH_LIMIT:
            return None
        for name in by_rank:
            if name in unmet and (found := meet(chosen | {name})) is not None:
                return found
        return None

    chosen = meet(frozenset())
    if chosen is None or len(by_rank) < count:
        return None
    fill = [name for name in by_rank if name not in chosen]
    return chosen | frozenset(fill[: count - len(chosen)])
