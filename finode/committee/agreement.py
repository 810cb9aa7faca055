"""What a negotiation came to: the sealed committee, and which models of the service are not in it.

An answer of three models out of four is a right answer, but another one: whoever reads it is told whose model is
missing, and why. And a committee is used again only as long as no model can be asked that it goes without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from finode.committee.policy import EXCLUDED, MODEL_REFUSED, REFUSED, Candidate, LeftOut, Request, Selection, askable
from finode.committee.replacement import Refusal
from finode.committee.sealed import SealedCommittee
from finode.wire.directory import ServiceSpec

_BY_THE_OWNER = frozenset({REFUSED, MODEL_REFUSED})


@dataclass(frozen=True, slots=True)
class Agreement:
    """A sealed committee for one request, the service as its members state it, and the models that it goes without."""

    committee: SealedCommittee
    spec: ServiceSpec
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def of(
        cls,
        committee: SealedCommittee,
        selection: Selection,
        refusals: Sequence[Refusal],
        lost: Mapping[str, str],
    ) -> Agreement:
        """Return the agreement on a selection. `refusals` are all of the negotiation, `lost` the peers that earlier
        attempts of the query go without, with what they did."""
        left_out = tuple(replace(one, detail=_detail(one, refusals, lost)) for one in selection.left_out)
        return cls(committee, selection.spec, left_out)

    def outdated(self, candidates: Iterable[Candidate], request: Request) -> bool:
        """Return whether a model can be asked now that has no vote here: of a new owner, or of one that is back. An
        owner that refused, or was silent, is not asked again while this committee lasts."""
        known = {(model.owner, model.version) for model in self.committee.terms.models}
        known |= {(one.owner, one.version) for one in self.left_out if one.kind in _BY_THE_OWNER}
        return any((model.owner, model.version) not in known for model in askable(candidates, request))


def _detail(one: LeftOut, refusals: Sequence[Refusal], lost: Mapping[str, str]) -> str:
    """Return what the owner said or did, "" where that is not known."""
    if one.kind == EXCLUDED:
        return lost.get(one.owner, "")
    if one.kind not in _BY_THE_OWNER:
        return ""
    own = [refusal.words for refusal in refusals if refusal.peer == one.owner]
    of_others = [str(refusal) for refusal in refusals if refusal.subject == one.owner]
    return (own or of_others or [""])[-1]
