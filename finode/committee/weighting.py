"""The public weights of a weighted vote: what the querier says of organizations and versions, model by model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from finode.committee.organizations import organization_key
from finode.errors import CommitteeError, InputError
from finode.wire.committee import MAX_VOTE_WEIGHT, ModelTerm

REST = "*"
"""Names all models that nothing else names."""
SHORTEST_PREFIX = 4

Weights = tuple[tuple[str, float], ...]


def checked_weights(weights: Mapping[str, float]) -> Weights:
    """Return weights by name in a fixed order; raise `InputError` for one that is none."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise InputError(f"the weight of {name!r} is {weight}", hint="weights are numbers from 0 on")
    if not any(weights.values()):
        raise InputError("a weighted vote needs a weight above 0", hint="such as --weights 'clinic a=2,*=1'")
    return tuple(sorted((name, float(weight)) for name, weight in weights.items()))


def vote_weights(weights: Weights, models: Sequence[tuple[ModelTerm, str]]) -> tuple[int, ...]:
    """Return one integer per (model, owner's organization), the largest MAX_VOTE_WEIGHT.

    A name is the start of a version, at least `SHORTEST_PREFIX` digits long, or else an organization, whose models all
    get the weight; `REST` is whatever is left. Raises `CommitteeError` for a model without a weight, and for a name
    without a model: the answer would not be what was asked for.
    """
    unused = {name for name, _ in weights} - {REST}
    found: list[float] = []
    for model, organization in models:
        version = model.version.hex()
        by_version = [(n, w) for n, w in weights if len(n) >= SHORTEST_PREFIX and version.startswith(n.lower())]
        by_owner = [(n, w) for n, w in weights if n != REST and organization_key(n) == organization_key(organization)]
        by_rest = [(n, w) for n, w in weights if n == REST]
        named = next((entries for entries in (by_version, by_owner, by_rest) if entries), None)
        if named is None:
            raise CommitteeError(
                f"model {version[:12]} of {organization!r} has no weight",
                hint=f"name every organization, or give the others one with {REST}=0",
            )
        unused -= {name for name, _ in (*by_version, *by_owner)}
        found.append(max(weight for _, weight in named))
    if unused:
        raise CommitteeError(
            f"no model that can be asked is of {', '.join(map(repr, sorted(unused)))}",
            hint="weights go by an owner's organization or the first digits of a version: `finode services` lists both",
        )
    largest = max(found)
    if not largest:
        raise CommitteeError("every model that can be asked has the weight 0", hint="give one of them more")
    return tuple(round(weight / largest * MAX_VOTE_WEIGHT) for weight in found)
