"""The organization rules: whose names must differ, and when two names are the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from finode.identity import PeerId
from finode.wire.committee import Terms

OrganizationOf = Callable[[PeerId], str]
"""What the roster says a peer's organization is; "" if it says nothing."""


def organization_key(organization: str) -> str:
    """Return the form in which two names are compared: case, width and outer blanks do not make two of one."""
    return unicodedata.normalize("NFKC", organization).casefold().strip()


def shared_organization(terms: Terms, organization_of: OrganizationOf) -> tuple[PeerId, str] | None:
    """Return the first peer whose organization must differ from another's in the terms but does not, and why.

    The parties' organizations differ from each other: one that runs all parties would hold every share. The dealer's
    differs from theirs and from the querier's: it knows all masks, and beside a party's or the querier's view they
    would uncover the secrets.
    """
    seen: dict[str, str] = {}
    for index, party in enumerate(terms.parties):
        key = organization_key(organization_of(party))
        if key in seen:
            return party, f"party {index} is of the same organization as {seen[key]}"
        seen[key] = f"party {index}"
    dealer = organization_key(organization_of(terms.dealer))
    if dealer in seen:
        return terms.dealer, f"the dealer is of the same organization as {seen[dealer]}"
    if dealer == organization_key(organization_of(terms.querier)):
        return terms.dealer, "the dealer is of the same organization as the querier"
    return None


def join_names(names: tuple[str, ...], limit: int = 256) -> str:
    """Return organization names as the one string of a refusal's subject, as many as fit."""
    joined = ""
    for name in names:
        longer = f"{joined} | {name}" if joined else name
        if len(longer) > limit:
            break
        joined = longer
    return joined


def split_names(subject: str) -> frozenset[str]:
    """Return the names of `join_names`."""
    return frozenset(name.strip() for name in subject.split(" | ") if name.strip())
