"""From the sessions of a query to its answer: what was learned, who computed it, what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from finode.committee.agreement import Agreement
from finode.errors import FinodeError, SessionAborted
from finode.identity import PeerId
from finode.node.batches import joined
from finode.node.feedback import AskedSession
from finode.node.interface import CommitteeView, LeftOutView, QueryAnswer, Timings, Traffic
from finode.smpc.engine import Output
from finode.wire.preprocessing import Dealt
from finode.wire.shares import Meter


@dataclass(slots=True)
class Clock:
    """Seconds of a query by phase, over all of its attempts; of the computing, those that were answered."""

    began: float = field(default_factory=time.monotonic)
    negotiation_s: float = 0.0
    deployment_s: float = 0.0
    offline_s: float = 0.0
    online_s: float = 0.0

    def timings(self, dealt_ahead: bool, compute_s: float) -> Timings:
        return Timings(
            negotiation_s=self.negotiation_s,
            deployment_s=self.deployment_s,
            offline_s=self.offline_s,
            online_s=self.online_s,
            total_s=time.monotonic() - self.began,
            dealt_ahead=dealt_ahead,
            compute_s=compute_s,
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """What one session brought: the answer to the first inputs of those asked about, as many as `output` has."""

    session: bytes
    agreement: Agreement
    output: Output
    meters: tuple[Meter, ...]
    dealt: Dealt
    dealt_ahead: bool
    attempts: int = 1


def sessions_of(answered: Sequence[Answered]) -> tuple[AskedSession, ...]:
    """Return what a querier must remember of a query's sessions to give labels later."""
    return tuple(AskedSession(one.session, one.agreement.committee.terms, len(one.output.labels)) for one in answered)


def in_the_middle(error: FinodeError, answered: Sequence[Answered], inputs: int) -> SessionAborted:
    """Return what ended a query of several sessions after some were answered: those are paid for."""
    done = sum(len(one.output.labels) for one in answered)
    return SessionAborted(
        f"{done} of {inputs} inputs were answered, and are charged; then: {error.message}",
        culprit=getattr(error, "culprit", ""),
        hint=f"{error.hint}; to keep what was answered, ask in smaller batches".removeprefix("; "),
    )


def answer_of(
    service: str,
    session: bytes,
    answered: Sequence[Answered],
    clock: Clock,
    organization_of: Callable[[PeerId], str],
) -> QueryAnswer:
    """Put the answer together; the committee shown is that of the last session.

    Raises `SessionAborted` when the service's spec is not the same for all sessions.
    """
    agreement = answered[-1].agreement
    if len({one.agreement.spec.digest() for one in answered}) > 1:
        raise SessionAborted(f"the service {service!r} changed in the middle of the query", hint="ask again")
    committee, classes = agreement.committee, agreement.spec.classes
    terms = committee.terms
    shown = (*terms.members(), terms.querier, *(one.owner for one in agreement.left_out))
    output = joined([part.output for part in answered])
    sent = [[meter.bytes_sent for meter in part.meters] for part in answered]
    dealt = [part.dealt.bytes_sent for part in answered]
    return QueryAnswer(
        session=session.hex(),
        service=service,
        labels=tuple(classes[index] for index in output.labels),
        label_indices=tuple(int(index) for index in output.labels),
        probabilities=_rows(output.probabilities),
        top=None if output.top is None else tuple(float(value) for value in output.top),
        classes=classes,
        committee=CommitteeView(
            id=committee.id.hex(),
            parties=terms.parties,
            dealer=terms.dealer,
            owners=terms.owners(),
            organizations={peer: organization_of(peer) for peer in shown},
            left_out=tuple(
                LeftOutView(owner=one.owner, version=one.version.hex(), reason=one.reason) for one in agreement.left_out
            ),
        ),
        timings=clock.timings(
            all(part.dealt_ahead for part in answered),
            sum(max(meter.compute_s for meter in part.meters) for part in answered),
        ),
        traffic=Traffic(
            rounds=sum(max(meter.rounds for meter in part.meters) for part in answered),
            bytes_sent_per_party=tuple(map(sum, zip(*sent, strict=True))),
            offline_bytes=sum(map(sum, dealt)),
            offline_bytes_per_party=tuple(map(sum, zip(*dealt, strict=True))),
        ),
        engine=terms.engine,
        attempts=max(part.attempts for part in answered),
    )


def _rows(values: npt.NDArray[np.float64] | None) -> tuple[tuple[float, ...], ...] | None:
    return None if values is None else tuple(tuple(float(value) for value in row) for row in values)
