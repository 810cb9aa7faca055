"""A plan: a model's public graph, as the engine runs it. Weights are never part of it.

A plan is a list of steps in the order of computation. Each step reads values by name, may use weights by name, and
writes one value. `INPUT` is the name of the query's input. Shapes are without the batch dimension, which comes first
in every tensor.

    op                    inputs  weights            attributes
    conv                  x       weight[, bias]     strides, pads (top, left, bottom, right), dilations, groups
    linear                x       weight[, bias]     -                       x @ weight^T + bias, last dimension
    add                   a, b    -                  -
    sub                   a, b    -                  -
    mul                   a, b    -                  -                       two secrets; samples broadcast
    matmul                a, b    -                  -                       two secrets; a @ b, last two dimensions
    add_weight            x       value              -                       value broadcasts against one sample
    mul_weight            x       value              -                       value broadcasts against one sample
    scale                 x       weight[, bias]     -                       per channel (dimension 0 of a sample)
    times                 x       -                  numbers (factor)        public factor
    relu                  x       -                  -
    leaky_relu            x       -                  numbers (slope)         slope below zero
    clip                  x       -                  numbers (least, most)   infinite where there is no bound
    sigmoid, tanh, gelu,  x       -                  -                       gelu: exact, x Phi(x)
    gelu_tanh, erf, exp
    max_pool              x       -                  kernel, strides, pads
    average_pool          x       -                  kernel, strides, pads, count_include_pad
    global_average_pool   x       -                  -
    reshape               x       -                  shape (of one sample, no -1)
    transpose             x       -                  axes                    of a sample: output axis i is axes[i]
    concat                a, ...  -                  axes (one)              along that axis of a sample
    slice                 x       -                  starts, strides         along every axis; strides may be negative
    pad                   x       -                  pads, numbers (value)   all first sides, then all last sides
    softmax, log_softmax  x       -                  -                       over the last dimension

`conv` weights have the shape (out, in / groups, kh, kw), `linear` weights (out, in). Samples have one to four
dimensions; convolutions and pools work on (channels, height, width). What stands in `numbers` is public: the shape of
an activation, never what was trained. The output is the logits, one per class; a softmax or log-softmax at the end of
the model is not a step but `softmax_at_end`, so that soft voting does not apply it twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from finode.errors import ModelError
from finode.wire import canonical

INPUT = "input"
MAX_STEPS = 4096
LEAST_RANGE_BITS = 4
"""exp, sigmoid and tanh compare a value with ends that lie just below 2^4 (gates/softmax.py, gates/spline.py)."""


class Op(StrEnum):
    """The operations of a plan."""

    CONV = "conv"
    LINEAR = "linear"
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    MATMUL = "matmul"
    ADD_WEIGHT = "add_weight"
    MUL_WEIGHT = "mul_weight"
    SCALE = "scale"
    TIMES = "times"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    CLIP = "clip"
    SIGMOID = "sigmoid"
    TANH = "tanh"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    ERF = "erf"
    EXP = "exp"
    MAX_POOL = "max_pool"
    AVERAGE_POOL = "average_pool"
    GLOBAL_AVERAGE_POOL = "global_average_pool"
    RESHAPE = "reshape"
    TRANSPOSE = "transpose"
    CONCAT = "concat"
    SLICE = "slice"
    PAD = "pad"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log_softmax"


PRODUCTS = frozenset({Op.CONV, Op.LINEAR, Op.SCALE, Op.MUL_WEIGHT})
"""The operations that multiply a secret with their `weight`. A `bias`, and any other weight, is only added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """A weight's name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation. `output_shape` is that of one sample."""

    op: Op
    name: str
    inputs: tuple[str, ...]
    output: str
    output_shape: tuple[int, ...]
    weight: str = ""
    bias: str = ""
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    groups: int = 1
    count_include_pad: bool = False
    axes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model's public graph. `range_bits` r promises |value| < 2^r for every value in it, seen on calibration data.

    A weight is either multiplied with or added, by whatever steps read it, since parties keep the one masked and the
    other shared (weights.py).
    """

    input_shape: tuple[int, ...]
    classes: int
    steps: tuple[Step, ...]
    weights: tuple[WeightSpec, ...]
    output: str
    softmax_at_end: bool
    range_bits: int = 11

    def __post_init__(self) -> None:
        if not 0 < len(self.steps) <= MAX_STEPS:
            raise ModelError(f"a plan has 1 to {MAX_STEPS} steps, this one {len(self.steps)}")
        if self.range_bits < LEAST_RANGE_BITS:
            raise ModelError(
                f"the plan's range_bits is {self.range_bits}: gates are right from {LEAST_RANGE_BITS} on",
                hint=f"import the model again, or set its plan's range_bits to {LEAST_RANGE_BITS} or more",
            )
        self._check_weights()
        known = {INPUT: self.input_shape}
        weights = {weight.name for weight in self.weights}
        for step in self.steps:
            missing = [name for name in step.inputs if name not in known]
            missing += [name for name in (step.weight, step.bias) if name and name not in weights]
            if missing:
                raise ModelError(f"step {step.name!r} reads {missing[0]!r}, which nothing before it gives")
            if step.output in known:
                raise ModelError(f"step {step.name!r} writes {step.output!r} a second time")
            known[step.output] = step.output_shape
        if known.get(self.output) != (self.classes,):
            raise ModelError(f"the plan's output {self.output!r} is not one value for each of {self.classes} classes")

    def _check_weights(self) -> None:
        names = [weight.name for weight in self.weights]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"two weights of the plan are called {twice!r}", hint="give each a name of its own")
        factors = {step.weight for step in self.steps if step.op in PRODUCTS}
        summands = {step.bias for step in self.steps} | {step.weight for step in self.steps if step.op not in PRODUCTS}
        if both := factors & summands - {""}:
            raise ModelError(
                f"the plan both multiplies with the weight {min(both)!r} and adds it",
                hint="import the model again: it gets a weight for each of the two",
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one sample of every value."""
        return {INPUT: self.input_shape} | {step.output: step.output_shape for step in self.steps}

    def weight_numel(self) -> int:
        """Return the number of ring elements of all weights together."""
        return sum(weight.numel for weight in self.weights)

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical.encode(self)

    def digest(self) -> bytes:
        """Return the 32-byte hash that names this plan."""
        return canonical.digest("plan", self.encode())


def decode_plan(data: bytes) -> Plan:
    """Return the plan of canonical bytes; raise `MalformedMessage` or `ModelError`."""
    return canonical.decode(data, Plan)
