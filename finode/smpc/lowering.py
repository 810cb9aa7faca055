"""From a program to a circuit: which gates compute it, and at which scale every value stands.

Models of equal plan are a *lane*: they are computed as one batch, so every value has the shape (models, batch,
*sample); the query's input, common to all, has one model. Scales are lazy. An encoded number stands at 2^f, a product
at the sum of two scales, a mean at a little more, and a value is truncated only by a gate that truncates anyway (ReLU,
max-pool, maximum), or where the next product would not fit. So a chain of layers opens nothing for its scales' sake.

A ReLU before or after a max-pool becomes one gate with it, if nothing else reads what lies between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from finode.errors import InputError, ModelError
from finode.smpc import augmentation, prior
from finode.smpc.circuit import Circuit, CircuitBuilder
from finode.smpc.contribution import with_statistics
from finode.smpc.engine import Program
from finode.smpc.gates.base import Gate
from finode.smpc.gates.layout import Concat, Pad, Slice, Subtract, Times, Transpose
from finode.smpc.gates.linear import AddWeight, Convolution, Form, Mask, Matmul, PerChannel, Product
from finode.smpc.gates.local import Add, AveragePool, Repeat, Reshape, Subsample
from finode.smpc.gates.log_softmax import LOG_BITS, LogSoftmax
from finode.smpc.gates.piecewise import Pieces, PiecewiseLinear, clip, leaky
from finode.smpc.gates.pool import MaxPool, Window, stages
from finode.smpc.gates.product import ELEMENTWISE, MatrixProduct
from finode.smpc.gates.softmax import MAX_SUMMED, PROBABILITY_BITS, Multiply, Softmax
from finode.smpc.gates.spline import ERF, EXP, GELU, GELU_TANH, SIGMOID, TANH, Curve, Spline
from finode.smpc.gates.truncate import Truncate, TruncateRelu
from finode.smpc.plan import INPUT, Op, Plan, Step
from finode.smpc.voting import VOTES, Logits, reveal
from finode.smpc.weights import WeightRef

HEADROOM_BITS = 61
"""A value's magnitude and digits together stay below 2^61, under the 2^62 that truncation allows."""
MAX_BATCH = 4096
"""Rows of a batch; terms allow no more. Sums over a batch (statistics, covariances) have room for them."""
FRACTIONAL_BITS = range(8, 21)
"""Digits after the point that the gates are tested with; terms allow 8 to 16."""
_LEAST_POOL_BITS = 8
"""Of many values in a wide range a mean has fewer exact bits, so that it fits; with fewer than these it is refused."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a circuit: the node or input it comes from, its shape, and its scale 2^point."""

    name: str
    shape: tuple[int, ...]
    point: int


def lower(program: Program) -> Circuit:
    """Return the circuit of a program, whose `rest` computes its statistics if it has any; raise `InputError` or
    `ModelError` when it cannot be computed."""
    _check(program)
    builder = CircuitBuilder((INPUT,))
    masked: dict[str, str] = {}
    x = Value(INPUT, (1, program.batch, *program.plans[0].input_shape), program.fractional_bits)
    groups = lanes(program)
    logits = [LaneLowering(builder, masked, program, models).lower(x) for models in groups]
    order = [model for models in groups for model in models]
    output = reveal(builder, program, logits, order)
    return with_statistics(builder, program, logits, order, output) if program.statistics else builder.build(output)


def lanes(program: Program) -> list[tuple[int, ...]]:
    """Return the indices of the models of each lane: models of equal plan together, in the order of the program."""
    groups: dict[bytes, list[int]] = {}
    for index, plan in enumerate(program.plans):
        groups.setdefault(plan.digest(), []).append(index)
    return [tuple(group) for group in groups.values()]


def _check(program: Program) -> None:
    plans = program.plans
    if not plans or len(plans) != len(program.deployments):
        raise InputError("a program has one deployment for each of its models, and at least one model")
    if len(plans) > MAX_SUMMED:
        raise InputError(f"{len(plans)} models are more than the {MAX_SUMMED} that one vote adds up")
    if any(plan.input_shape != plans[0].input_shape or plan.classes != plans[0].classes for plan in plans):
        raise ModelError("the models of a program differ in their input or their classes")
    if (program.vote == "weighted") != bool(program.vote_weights) or len(program.vote_weights) not in (0, len(plans)):
        raise InputError(f"a {program.vote} vote of {len(plans)} models with {len(program.vote_weights)} weights")
    if program.vote not in VOTES or program.reveal not in ("probabilities", "top1", "label"):
        raise InputError(f"unknown vote {program.vote!r} or reveal {program.reveal!r}")
    augmentation.check(program)
    prior.check(program)
    if program.fractional_bits not in FRACTIONAL_BITS:
        raise InputError(
            f"{program.fractional_bits} digits after the point",
            hint=f"fractional_bits may be {FRACTIONAL_BITS[0]} to {FRACTIONAL_BITS[-1]}",
        )
    for plan in plans:
        if 2 * program.fractional_bits + plan.range_bits > HEADROOM_BITS:
            raise ModelError(
                f"values below 2^{plan.range_bits} with {program.fractional_bits} digits after the point do not fit",
                hint=f"range_bits + 2 * fractional_bits may be {HEADROOM_BITS} at most",
            )
    if program.parties < 2 or program.batch < 1:
        raise InputError(f"a program needs two parties and one input, not {program.parties} and {program.batch}")
    if program.batch > MAX_BATCH:
        raise InputError(f"a batch of {program.batch} inputs", hint=f"ask in batches of {MAX_BATCH} at most")


class LaneLowering:
    """Lowers the steps of one lane's plan."""

    def __init__(
        self, builder: CircuitBuilder, masked: dict[str, str], program: Program, models: tuple[int, ...]
    ) -> None:
        """`masked` maps values to their masked openings, for all lanes: the input's is common to them."""
        self._builder = builder
        self._masked = masked
        self._models = models
        self._plan: Plan = program.plans[models[0]]
        self._f = program.fractional_bits
        self._profile = program.profile
        self._prefix = f"model{models[0]}" if len(models) == 1 else f"models{'+'.join(map(str, models))}"
        self._values: dict[str, Value] = {}
        self._truncated: dict[str, Value] = {}
        self._readers = Counter(name for step in self._plan.steps for name in step.inputs)
        self._readers[self._plan.output] += 1
        # Outputs of ReLUs that wait for the max-pool after them, and of max-pools that did the ReLU after them.
        self._pending_relu: set[str] = set()
        self._did_relu: set[str] = set()

    def lower(self, x: Value) -> Logits:
        """Add the gates of all steps; return the logits."""
        self._values[INPUT] = x
        handlers: dict[Op, Callable[[Step, Value], Value]] = {
            Op.CONV: lambda step, v: self._product(
                step, v, Convolution(step.strides, step.pads, step.dilations, step.groups)
            ),
            Op.LINEAR: lambda step, v: self._product(step, v, Matmul()),
            Op.SCALE: lambda step, v: self._product(step, v, PerChannel()),
            Op.MUL_WEIGHT: lambda step, v: self._product(step, v, ELEMENTWISE),
            Op.ADD: lambda step, v: self._sum(step, v, Add),
            Op.SUB: lambda step, v: self._sum(step, v, Subtract),
            Op.MUL: self._multiply,
            Op.MATMUL: self._multiply,
            Op.TIMES: self._times,
            Op.ADD_WEIGHT: self._add_weight,
            Op.RELU: self._relu,
            Op.LEAKY_RELU: self._leaky_relu,
            Op.CLIP: self._clip,
            Op.SIGMOID: lambda step, v: self._curve(step, v, SIGMOID),
            Op.TANH: lambda step, v: self._curve(step, v, TANH),
            Op.GELU: lambda step, v: self._curve(step, v, GELU),
            Op.GELU_TANH: lambda step, v: self._curve(step, v, GELU_TANH),
            Op.ERF: lambda step, v: self._curve(step, v, ERF),
            Op.EXP: lambda step, v: self._curve(step, v, EXP),
            Op.MAX_POOL: self._max_pool,
            Op.AVERAGE_POOL: self._average_pool,
            Op.GLOBAL_AVERAGE_POOL: self._global_average_pool,
            Op.RESHAPE: self._reshape,
            Op.TRANSPOSE: lambda step, v: self._moved(step, v, Transpose(step.axes)),
            Op.CONCAT: self._concat,
            Op.SLICE: lambda step, v: self._moved(step, v, Slice(step.starts, step.strides, step.output_shape)),
            Op.PAD: self._pad,
            Op.SOFTMAX: self._softmax,
            Op.LOG_SOFTMAX: self._log_softmax,
        }
        for step in self._plan.steps:
            value = handlers[step.op](step, self._values[step.inputs[0]])
            if value.shape[2:] != step.output_shape:
                raise ModelError(f"step {step.name!r} gives {value.shape[2:]} where the plan says {step.output_shape}")
            self._values[step.output] = value
        logits = self._raisable(self._values[self._plan.output], 0)
        if logits.shape[0] < len(self._models):
            name = self._builder.add(f"{logits.name}/repeat", Repeat(len(self._models)), logits.name)
            logits = Value(name, (len(self._models), *logits.shape[1:]), logits.point)
        return Logits(logits.name, logits.shape, logits.point, self._plan.range_bits)

    @property
    def _compare_bits(self) -> int:
        """Bits of a difference of two values at scale 2^f."""
        return self._f + self._plan.range_bits + 1

    def _shape(self, step: Step, models: int) -> tuple[int, ...]:
        return (models, self._values[INPUT].shape[1], *step.output_shape)

    def _name(self, step: Step, suffix: str = "") -> str:
        return f"{self._prefix}/{step.name or step.output}{suffix}"

    def _at_f(self, value: Value) -> Value:
        """Return `value` at scale 2^f, truncated once for all that ask."""
        if value.point == self._f:
            return value
        if value.name not in self._truncated:
            name = self._builder.add(f"{value.name}/truncate", Truncate(value.shape, value.point - self._f), value.name)
            self._truncated[value.name] = replace(value, name=name, point=self._f)
        return self._truncated[value.name]

    def _raisable(self, value: Value, raised: int) -> Value:
        """Return `value` at a scale that can be raised by `raised` bits."""
        fits = value.point + raised + self._plan.range_bits <= HEADROOM_BITS
        return value if fits else self._at_f(value)

    def _excess(self, point: int) -> int:
        """Return by how many bits a value at scale 2^point does not fit."""
        return max(0, point + self._plan.range_bits - HEADROOM_BITS)

    def _too_wide(self, step: Step) -> ModelError:
        return ModelError(
            f"step {step.name!r} has no room for values below 2^{self._plan.range_bits} with {self._f} fractional bits",
            hint="import the model with fewer range_bits: scale its weights so that its values are smaller",
        )

    def _product(self, step: Step, value: Value, form: Form) -> Value:
        value = self._raisable(value, self._f)
        if value.name not in self._masked:
            self._masked[value.name] = self._builder.add(f"{value.name}/mask", Mask(value.shape), value.name)
        bias = WeightRef(self._models, step.bias) if step.bias else None
        gate = Product(
            self._shape(step, len(self._models)), form, WeightRef(self._models, step.weight), bias, value.point
        )
        name = self._builder.add(self._name(step), gate, self._masked[value.name])
        return Value(name, gate.shape, value.point + self._f)

    def _aligned(self, step: Step) -> tuple[list[Value], int]:
        """Return the inputs of a step that adds them or sets them side by side, and the scale that they meet at."""
        values = [self._values[name] for name in step.inputs]
        point = max(value.point for value in values)
        values = [self._raisable(value, point - value.point) for value in values]
        point = max(value.point for value in values)
        if point + self._plan.range_bits > HEADROOM_BITS:
            return [self._at_f(value) for value in values], self._f
        return values, point

    def _sum(self, step: Step, left: Value, make: Callable[[int, int], Gate[None]]) -> Value:
        (left, right), point = self._aligned(step)
        gate = make(point - left.point, point - right.point)
        models = max(left.shape[0], right.shape[0])
        name = self._builder.add(self._name(step), gate, left.name, right.name)
        return Value(name, self._shape(step, models), point)

    def _multiply(self, step: Step, left: Value) -> Value:
        right = self._values[step.inputs[1]]
        if left.point + right.point + self._plan.range_bits > HEADROOM_BITS:
            left, right = self._at_f(left), self._at_f(right)
        gate = (Multiply if step.op is Op.MUL else MatrixProduct)(left.shape, right.shape)
        if step.op is Op.MUL and len(left.shape) != len(right.shape):
            raise ModelError(f"step {step.name!r} multiplies samples of {left.shape[2:]} and {right.shape[2:]}")
        name = self._builder.add(self._name(step), gate, left.name, right.name)
        return Value(name, self._shape(step, max(left.shape[0], right.shape[0])), left.point + right.point)

    def _times(self, step: Step, value: Value) -> Value:
        """An integer is itself, a fraction 1 / 2^k moves the point, anything else is its fixed-point number."""
        factor = step.numbers[0]
        # Times 2^most the least value is out of range; times 2^-most the largest is below it.
        most = self._f + self._plan.range_bits
        if not abs(factor) < 2.0**most:
            raise self._too_wide(step)
        mantissa, exponent = math.frexp(abs(factor))
        if factor == round(factor):
            value, integer, raised = self._raisable(value, 0), round(factor), 0
        elif mantissa == 0.5 and 1 - exponent <= most:
            raised = 1 - exponent
            value, integer = self._raisable(value, raised), 1 if factor > 0 else -1
        else:
            raised = self._f
            value, integer = self._raisable(value, raised), round(factor * 2.0**self._f)
        name = value.name if integer == 1 else self._builder.add(self._name(step), Times(integer), value.name)
        return replace(value, name=name, point=value.point + raised)

    def _add_weight(self, step: Step, value: Value) -> Value:
        value = self._raisable(value, 0)
        gate = AddWeight(WeightRef(self._models, step.weight), len(step.output_shape), value.point - self._f)
        name = self._builder.add(self._name(step), gate, value.name)
        return Value(name, self._shape(step, len(self._models)), value.point)

    def _relu(self, step: Step, value: Value) -> Value:
        if step.inputs[0] in self._did_relu:
            return value
        value = self._raisable(value, 0)
        if self._only_reader(step.output, Op.MAX_POOL):
            self._pending_relu.add(step.output)
            return value
        gate = TruncateRelu(value.shape, value.point - self._f, self._compare_bits)
        return Value(self._builder.add(self._name(step), gate, value.name), value.shape, self._f)

    def _leaky_relu(self, step: Step, value: Value) -> Value:
        one = 1 << self._f
        return self._pieces(step, value, leaky(round(step.numbers[0] * one), one), self._f)

    def _clip(self, step: Step, value: Value) -> Value:
        largest = 2.0**self._plan.range_bits
        # A bound that no value of the plan reaches is none.
        least, most = (round(x * 2**self._f) if abs(x) < largest else None for x in step.numbers)
        if least is None and most is None:
            return value
        return self._pieces(step, value, clip(least, most), 0)

    def _pieces(self, step: Step, value: Value, pieces: Pieces, raised: int) -> Value:
        value = self._raisable(value, 0)
        # A knot may lie as far out as a value: their difference has a bit more.
        gate = PiecewiseLinear(value.shape, value.point - self._f, self._compare_bits, pieces)
        name = self._builder.add(self._name(step), gate, value.name)
        return Value(name, value.shape, self._f + raised)

    def _curve(self, step: Step, value: Value, curve: Curve) -> Value:
        value = self._raisable(value, 0)
        gate = Spline(value.shape, value.point - self._f, self._f, self._compare_bits, curve)
        return Value(self._builder.add(self._name(step), gate, value.name), value.shape, self._f)

    def _only_reader(self, name: str, op: Op) -> bool:
        return self._readers[name] == 1 and any(step.op is op and name in step.inputs for step in self._plan.steps)

    def _max_pool(self, step: Step, value: Value) -> Value:
        value = self._raisable(value, 0)
        relu = step.inputs[0] in self._pending_relu
        if not relu and self._only_reader(step.output, Op.RELU):
            relu = True
            self._did_relu.add(step.output)
        # An axis that is only thinned out, not pooled, is cut first: the rest does not see the other values.
        thinned = tuple(s if k == 1 else 1 for k, s in zip(step.kernel, step.strides, strict=True))
        if thinned != (1, 1):
            shape = (*value.shape[:-2], *(-(-n // s) for n, s in zip(value.shape[-2:], thinned, strict=True)))
            value = Value(
                self._builder.add(self._name(step, "/thin"), Subsample(thinned), value.name), shape, value.point
            )
        strides = tuple(1 if k == 1 else s for k, s in zip(step.kernel, step.strides, strict=True))
        if step.kernel == (1, 1):
            if not relu:
                return value
            gate = TruncateRelu(value.shape, value.point - self._f, self._compare_bits)
            return Value(self._builder.add(self._name(step), gate, value.name), value.shape, self._f)
        poolings = stages(Window(step.kernel, strides, step.pads), self._profile)
        for index, window in enumerate(poolings):
            last = index == len(poolings) - 1
            pool = MaxPool(value.shape, window, value.point - self._f, self._compare_bits, relu and last)
            name = self._builder.add(self._name(step, "" if last else f"/stage{index}"), pool, value.name)
            value = Value(name, window.output(value.shape), self._f)
        return value

    def _average_pool(self, step: Step, value: Value) -> Value:
        height, width = value.shape[-2:]
        gate = AveragePool(Window(step.kernel, step.strides, step.pads), height, width, step.count_include_pad, self._f)
        value = self._raisable(value, gate.raised_bits)
        if excess := self._excess(value.point + gate.raised_bits):
            gate = replace(gate, precision_bits=self._f - excess)
            if gate.precision_bits < _LEAST_POOL_BITS or self._excess(value.point + gate.raised_bits):
                raise self._too_wide(step)
        name = self._builder.add(self._name(step), gate, value.name)
        return Value(name, self._shape(step, value.shape[0]), value.point + gate.raised_bits)

    def _global_average_pool(self, step: Step, value: Value) -> Value:
        whole = replace(
            step, kernel=value.shape[-2:], strides=(1, 1), pads=(0, 0, 0, 0), output_shape=(value.shape[2], 1, 1)
        )
        pooled = self._average_pool(whole, value)
        if pooled.shape[2:] == step.output_shape:
            return pooled
        return self._reshape(step, pooled)

    def _reshape(self, step: Step, value: Value) -> Value:
        name = self._builder.add(self._name(step), Reshape(step.output_shape), value.name)
        return Value(name, self._shape(step, value.shape[0]), value.point)

    def _moved(self, step: Step, value: Value, gate: Gate[None]) -> Value:
        name = self._builder.add(self._name(step), gate, value.name)
        return Value(name, self._shape(step, value.shape[0]), value.point)

    def _concat(self, step: Step, value: Value) -> Value:
        values, point = self._aligned(step)
        gate = Concat(step.axes[0], tuple(point - value.point for value in values))
        name = self._builder.add(self._name(step), gate, *(value.name for value in values))
        return Value(name, self._shape(step, max(value.shape[0] for value in values)), point)

    def _pad(self, step: Step, value: Value) -> Value:
        value = self._raisable(value, 0)
        return self._moved(step, value, Pad(step.pads, round(step.numbers[0] * 2.0**value.point)))

    def _log_softmax(self, step: Step, value: Value) -> Value:
        if self._excess(LOG_BITS):
            raise self._too_wide(step)
        value = self._raisable(value, 0)
        gate = LogSoftmax(value.shape, value.point - self._f, self._f, self._compare_bits)
        return Value(self._builder.add(self._name(step), gate, value.name), value.shape, LOG_BITS)

    def _softmax(self, step: Step, value: Value) -> Value:
        value = self._raisable(value, 0)
        gate = Softmax(value.shape, value.point - self._f, self._f, self._compare_bits)
        return Value(self._builder.add(self._name(step), gate, value.name), value.shape, PROBABILITY_BITS)
