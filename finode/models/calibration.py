"""Does a model fit the engine's fixed-point range, and which range? Answered on calibration inputs, before anything is
registered.

A plan promises |value| < 2^range_bits for every value in it. Comparisons are made over range_bits + 17 bits, cut into
digits of six: so a wider range costs bytes and digits, and it is chosen from `RANGES`, the least that leaves a factor
of two to the largest value seen. Few ranges, because models of equal plan run as one batch, and because a tight promise
would say more about the weights than the engine needs to know.

    range_bits    values below    bits compared    digits
    11            2,048           28               5
    13            8,192           30               5         a tenth more bytes dealt per comparison
    19            524,288         36               6         a fifth more, and 2 bits more in its round

The input itself stays below 2^11: a querier encodes it without knowing the plan. So does what comes out of an Exp,
whose table ends there.
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
from finode.smpc.sharing import INPUT_RANGE_BITS

FRACTIONAL_BITS = 16
RANGES = (11, 13, 19)
"""What `range_bits` an import chooses from."""

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


def limits(plan: Plan, range_bits: int = RANGES[-1]) -> dict[str, int]:
    """Return the bits r of every value of a plan that promises `range_bits`: |value| must stay below 2^r."""
    fixed = {INPUT, *(step.output for step in plan.steps if step.op is Op.EXP)}
    return {name: INPUT_RANGE_BITS if name in fixed else range_bits for name in plan.shapes()}


def choose_range(plan: Plan, peaks: dict[str, float]) -> int:
    """Return the least of `RANGES` with a factor of two to the largest values seen, or else the widest."""
    free = max((peak for name, peak in peaks.items() if limits(plan)[name] == RANGES[-1]), default=0.0)
    return next((bits for bits in RANGES if 2 * free < 2.0**bits), RANGES[-1])


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
    range_bits = choose_range(plan, peaks)
    bits = limits(plan, range_bits)
    worst = min(peaks, key=lambda name: 2.0 ** bits[name] / max(peaks[name], 2.0**-FRACTIONAL_BITS))
    margin = math.log2(2.0 ** bits[worst] / max(peaks[worst], 2.0**-FRACTIONAL_BITS))
    warnings = []
    if margin < _COMFORTABLE_BITS:
        warnings.append(
            f"{_place(model, worst)} reaches {peaks[worst]:.6g} of at most {2 ** bits[worst]}: larger inputs than "
            "those of the calibration may leave the range; scale the input or the weights down"
        )
    if range_bits > RANGES[0]:
        warnings.append(
            f"values up to {max(peaks.values()):.6g} make this a plan for values below 2^{range_bits}: it costs more "
            f"than one below 2^{RANGES[0]}, and runs in one batch only with models like it; scale the input or the "
            "weights down"
        )
    if difference > _TOLERANCE:
        warnings.append(
            f"rounding the weights to {FRACTIONAL_BITS} binary digits changes a probability by {difference:.4f}: "
            "some weights are very small, and answers will differ from the original model's"
        )
    return Calibration(
        range_bits=range_bits,
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
