"""Does a model fit the engine's fixed-point range? Answered on calibration inputs, before anything is registered.

SMPC.md, "Fixed point": with f fractional bits and 28 comparison bits a value compared with zero must stay below
2^(28-f), and values compared with each other (max-pool, softmax, the classes of the vote) below half of that. At the
default f = 16 these are 4096 and 2048. What is compared with nothing keeps the wider limit too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from finode.errors import InputError, RangeExceeded
from finode.models.float_run import run_float, softmax
from finode.models.graph import Array
from finode.models.onnx_import import ImportedModel
from finode.smpc.plan import INPUT, Op, Plan

FRACTIONAL_BITS = 16
COMPARISON_BITS = 28
NARROW_BITS = COMPARISON_BITS - 1 - FRACTIONAL_BITS
"""|value| < 2^11 for what is compared with each other; twice that for what is compared with zero."""

# Inputs of one run of the calibration: bounds memory, changes nothing else.
_SLICE = 32
# Below one bit of room an input twice as large as the calibration's would leave the range.
_COMFORTABLE_BITS = 1.0
# A query promises probabilities within this of the plaintext ones, so coarser weights deserve a word.
_TOLERANCE = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was seen. `largest` is the value nearest to its limit, at `step`; `margin_bits` = log2(limit / largest).

    `range_bits` is what the plan may promise; `warnings` are sentences for the owner.
    """

    range_bits: int
    largest: float
    step: str
    margin_bits: float
    samples: int
    warnings: tuple[str, ...]


def limits(plan: Plan) -> dict[str, int]:
    """Return the bits r of every value of a plan: |value| must stay below 2^r."""
    # The input too: a querier encodes it without knowing the plan (`finode.smpc.sharing.INPUT_RANGE_BITS`).
    narrow = {plan.output, INPUT}
    for step in plan.steps:
        if step.op in (Op.MAX_POOL, Op.SOFTMAX):
            narrow.update(step.inputs)
    # ReLU and max-pool are one gate, in either order: what is compared with each other is then the ReLU's input.
    for step in reversed(plan.steps):
        if step.output in narrow and step.op in (Op.RELU, Op.RESHAPE):
            narrow.update(step.inputs)
    return {name: NARROW_BITS if name in narrow else NARROW_BITS + 1 for name in plan.shapes()}


def calibrate(model: ImportedModel, inputs: Array) -> Calibration:
    """Run the plan on `inputs` (n, *input_shape) and measure every value against its limit.

    Raises `InputError` for inputs of the wrong shape and `RangeExceeded` that names the step, the value and the limit.
    """
    plan = model.plan
    if inputs.ndim != 1 + len(plan.input_shape) or inputs.shape[1:] != plan.input_shape or len(inputs) == 0:
        expected = ", ".join(map(str, plan.input_shape))
        raise InputError(f"the calibration inputs have the shape {inputs.shape}; expected (n, {expected})")
    bits = limits(plan)
    peaks = dict.fromkeys(bits, 0.0)

    def watch(name: str, values: Array) -> None:
        peaks[name] = max(peaks[name], float(np.abs(values).max()))

    coarse = {name: _round(values) for name, values in model.weights.items()}
    difference = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(inputs), _SLICE):
            x = inputs[start : start + _SLICE]
            exact = run_float(plan, model.weights, x, watch)
            _check(model, bits, peaks)
            difference = max(
                difference, float(np.abs(softmax(exact) - softmax(run_float(plan, coarse, _round(x)))).max())
            )
    worst = min(peaks, key=lambda name: 2.0 ** bits[name] / max(peaks[name], 2.0**-FRACTIONAL_BITS))
    margin = math.log2(2.0 ** bits[worst] / max(peaks[worst], 2.0**-FRACTIONAL_BITS))
    warnings = []
    if margin < _COMFORTABLE_BITS:
        warnings.append(
            f"{_place(model, worst)} reaches {peaks[worst]:.6g} of at most {2 ** bits[worst]}: larger inputs than "
            "those of the calibration may leave the range; scale the input or the weights down"
        )
    if difference > _TOLERANCE:
        warnings.append(
            f"rounding the weights to {FRACTIONAL_BITS} binary digits changes a probability by {difference:.4f}: "
            "some weights are very small, and answers will differ from the original model's"
        )
    return Calibration(
        # A tighter promise would tell the others more about the weights than the engine needs to know.
        range_bits=max(NARROW_BITS, *(math.frexp(peak)[1] for peak in peaks.values())),
        largest=peaks[worst],
        step=worst,
        margin_bits=margin,
        samples=len(inputs),
        warnings=tuple(warnings),
    )


def with_range(model: ImportedModel, range_bits: int) -> ImportedModel:
    """Return the model with a plan that promises `range_bits`."""
    return replace(model, plan=replace(model.plan, range_bits=range_bits))


def _round(values: Array) -> Array:
    return np.asarray(np.rint(values * 2.0**FRACTIONAL_BITS) / 2.0**FRACTIONAL_BITS)


def _check(model: ImportedModel, bits: dict[str, int], peaks: dict[str, float]) -> None:
    # In the order of computation, so that the first step that leaves the range is named, not what follows from it.
    for name, peak in peaks.items():
        if not peak < 2.0 ** bits[name]:
            raise RangeExceeded(
                f"{_place(model, name)} reaches {peak:.6g} on the calibration inputs; the engine's fixed-point range "
                f"ends at {2 ** bits[name]} there",
                hint="scale the input or the weights down (batch-norm helps), or calibrate with inputs as in real use",
            )


def _place(model: ImportedModel, name: str) -> str:
    if name == INPUT:
        return "the input"
    origin = model.origins.get(name, "")
    return f"step {name!r}" + (f" (node {origin!r})" if origin else "")
