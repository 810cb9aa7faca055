"""What the API and the commands show of a registered model."""

from __future__ import annotations

from finode.models.registry import ModelEntry
from finode.node.interface import ModelView


def model_view(entry: ModelEntry) -> ModelView:
    """Return what the API shows of a registered model."""
    return ModelView(
        version=entry.version.hex(),
        service=entry.service.name,
        price=entry.price,
        parameters=entry.parameters,
        steps=len(entry.plan.steps),
        operators=entry.operators,
        input_shape=entry.plan.input_shape,
        classes=entry.service.classes,
        softmax_at_end=entry.plan.softmax_at_end,
        range_bits=entry.plan.range_bits,
        added=entry.added,
    )
