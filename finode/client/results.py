"""What a client gets back: frozen and typed, arrays as numpy arrays.

The views of the node and of its ledger (`StatusView`, `ReceiptView` and others) are those of `finode.node.interface`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from finode.errors import FinodeError
from finode.node.interface import CommitteeView, QueryAnswer, Timings, Traffic

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a query is. `phase` is committee, deployment, preprocessing or rounds; `total` is 0 if unknown."""

    session: str
    phase: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """The answer to a query of `batch` inputs.

    `labels` are names of classes, `label_indices` (batch,) their indices in `classes`; `probabilities` is
    (batch, classes) or None, `top` (batch,) the largest of each or None, as was revealed. `attempts` counts the
    committees that were tried.
    """

    session: str
    service: str
    labels: tuple[str, ...]
    label_indices: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64] | None = field(repr=False)
    top: npt.NDArray[np.float64] | None
    classes: tuple[str, ...]
    committee: CommitteeView
    timings: Timings
    traffic: Traffic
    engine: str
    attempts: int

    @classmethod
    def of(cls, answer: QueryAnswer) -> Answer:
        return cls(
            session=answer.session,
            service=answer.service,
            labels=answer.labels,
            label_indices=np.asarray(answer.label_indices, np.int64),
            probabilities=None if answer.probabilities is None else np.asarray(answer.probabilities, np.float64),
            top=None if answer.top is None else np.asarray(answer.top, np.float64),
            classes=answer.classes,
            committee=answer.committee,
            timings=answer.timings,
            traffic=answer.traffic,
            engine=answer.engine,
            attempts=answer.attempts,
        )


def convert(value: object, as_type: type[T]) -> T:
    """Return a typed value of the daemon's JSON; what a newer daemon adds is left out."""
    try:
        return msgspec.convert(value, as_type, strict=True)
    except msgspec.ValidationError as error:
        raise FinodeError(
            f"the daemon's answer is not understood: {error}", hint="is it another version of finode?"
        ) from None
