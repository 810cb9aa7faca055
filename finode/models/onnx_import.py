"""An ONNX file to a plan, which is public, and weights, which are the owner's secret.

`import_onnx` reads and checks the file (`graph`) and turns it into a plan (`lowering`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finode.errors import ModelError, RangeExceeded
from finode.models.graph import MAX_MODEL_BYTES, SUPPORTED, Array, read_graph
from finode.models.lowering import Lowered, lower
from finode.smpc.plan import Plan
from finode.smpc.sharing import WEIGHT_RANGE_BITS

MAX_PLAN_BYTES = 1 << 20
"""A plan travels in one message of at most 2 MiB (`finode.wire.shares.OfferDeployment`)."""

__all__ = ["SUPPORTED", "ImportedModel", "import_onnx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """A model as the engine takes it.

    `operators` are the ONNX operators of the file, sorted; `origins` maps a step's name to the ONNX node's name, for
    messages to the owner. `weights` are float64 arrays in the shapes that the plan states.
    """

    plan: Plan
    weights: dict[str, Array] = field(repr=False)
    operators: tuple[str, ...]
    origins: dict[str, str] = field(repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.plan.input_shape

    @property
    def classes_count(self) -> int:
        return self.plan.classes

    @property
    def softmax_at_end(self) -> bool:
        return self.plan.softmax_at_end

    @property
    def parameters(self) -> int:
        return self.plan.weight_numel()


def import_onnx(source: Path | str | bytes, *, name: str = "", max_bytes: int = MAX_MODEL_BYTES) -> ImportedModel:
    """Return the plan and the weights of an ONNX file, or of its bytes (which messages call `name`).

    Raises `ModelError` that names the file, the node and the remedy; `UnsupportedOperator` for an operator outside
    `SUPPORTED`; `RangeExceeded` for a weight that no engine can encode.
    """
    graph = read_graph(Path(source) if isinstance(source, str) else source, name=name, max_bytes=max_bytes)
    try:
        lowered = lower(graph)
        plan_bytes = len(lowered.plan.encode())
    except ModelError as error:
        if graph.source in error.message:
            raise
        raise graph.fail(error.message, error.hint) from None
    if plan_bytes > MAX_PLAN_BYTES:
        raise graph.fail(f"its plan has {plan_bytes} bytes, over the limit of {MAX_PLAN_BYTES}")
    if lowered.plan.classes < 2:
        raise graph.fail("it has one output value; a service needs at least 2 classes")
    _check_weights(lowered, graph.source)
    return ImportedModel(
        plan=lowered.plan,
        weights=lowered.weights,
        # The mean over height and width is how torch spells it.
        operators=tuple(sorted({"GlobalAveragePool" if n.op == "ReduceMean" else n.op for n in graph.nodes})),
        origins=lowered.origins,
    )


def _check_weights(lowered: Lowered, label: str) -> None:
    for step in lowered.plan.steps:
        for name in filter(None, (step.weight, step.bias)):
            largest = float(np.abs(lowered.weights[name]).max(initial=0.0))
            if largest >= 2.0**WEIGHT_RANGE_BITS:
                raise RangeExceeded(
                    f"{label}: a weight of node {lowered.origins[step.name]!r} reaches {largest:.6g}, batch-norm "
                    f"included; the engine's range for weights ends at {2**WEIGHT_RANGE_BITS}",
                    hint="a batch-norm channel that never varied, or training that diverged: train it again",
                )
