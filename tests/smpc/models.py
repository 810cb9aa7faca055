"""Small models for tests: plans with random weights, and what they compute in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from finode.models.float_run import run_step
from finode.smpc.engine import Program
from finode.smpc.plan import INPUT, Op, Plan, Step, WeightSpec

Floats = npt.NDArray[np.float64]
Weights = dict[str, Floats]


class PlanMaker:
    """Builds a plan step by step, inferring shapes and drawing weights of a trained model's size."""

    def __init__(self, input_shape: tuple[int, ...], seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.input_shape = input_shape
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: input_shape}
        self.steps: list[Step] = []
        self.weights: Weights = {}
        self.last = INPUT

    def weight(self, name: str, *shape: int, fan: int) -> str:
        self.weights[name] = self._generator.normal(size=shape) * (1.6 / np.sqrt(fan))
        return name

    def step(self, op: Op, shape: tuple[int, ...], *inputs: str, **attributes: object) -> str:
        name = f"{op.value}{len(self.steps)}"
        made = Step(op=op, name=name, inputs=inputs or (self.last,), output=f"v{len(self.steps)}", output_shape=shape)
        self.steps.append(replace(made, **attributes))  # type: ignore[arg-type]
        self.shapes[made.output] = shape
        self.last = made.output
        return self.last

    def conv(
        self, out: int, kernel: int, *, stride: int = 1, pad: int = 0, groups: int = 1, dilation: int = 1, of: str = ""
    ) -> str:
        source = of or self.last
        channels, height, width = self.shapes[source]
        extent = dilation * (kernel - 1) + 1
        size = [(n + 2 * pad - extent) // stride + 1 for n in (height, width)]
        index, inner = len(self.steps), channels // groups
        return self.step(
            Op.CONV,
            (out, *size),
            source,
            weight=self.weight(f"w{index}", out, inner, kernel, kernel, fan=inner * kernel**2),
            bias=self.weight(f"b{index}", out, fan=100),
            strides=(stride, stride),
            pads=(pad,) * 4,
            dilations=(dilation, dilation),
            groups=groups,
        )

    def linear(self, out: int) -> str:
        inner, index = self.shapes[self.last][-1], len(self.steps)
        return self.step(
            Op.LINEAR,
            (out,),
            weight=self.weight(f"w{index}", out, inner, fan=inner),
            bias=self.weight(f"b{index}", out, fan=100),
        )

    def relu(self) -> str:
        return self.step(Op.RELU, self.shapes[self.last])

    def pool(self, op: Op, kernel: int, *, stride: int | None = None, pad: int = 0, include: bool = False) -> str:
        stride = stride or kernel
        channels, height, width = self.shapes[self.last]
        size = [(n + 2 * pad - kernel) // stride + 1 for n in (height, width)]
        return self.step(
            op,
            (channels, *size),
            kernel=(kernel, kernel),
            strides=(stride, stride),
            pads=(pad,) * 4,
            count_include_pad=include,
        )

    def flatten(self) -> str:
        return self.step(Op.RESHAPE, (int(np.prod(self.shapes[self.last])),))

    def plan(self, range_bits: int = 11) -> Plan:
        return Plan(
            input_shape=self.input_shape,
            classes=self.shapes[self.last][0],
            steps=tuple(self.steps),
            weights=tuple(WeightSpec(name=name, shape=value.shape) for name, value in self.weights.items()),
            output=self.last,
            softmax_at_end=True,
            range_bits=range_bits,
        )


def mlp(seed: int, classes: int = 10) -> PlanMaker:
    maker = PlanMaker((1, 8, 8), seed)
    maker.flatten()
    maker.linear(32)
    maker.relu()
    maker.linear(classes)
    return maker


def small_cnn(seed: int) -> PlanMaker:
    """A LeNet in small: convolution, max-pool and ReLU in both orders, two linear layers."""
    maker = PlanMaker((1, 8, 8), seed)
    maker.conv(6, 3, pad=1)
    maker.relu()
    maker.pool(Op.MAX_POOL, 2)
    maker.conv(8, 3, pad=1)
    maker.pool(Op.MAX_POOL, 2)
    maker.relu()
    maker.flatten()
    maker.linear(16)
    maker.relu()
    maker.linear(10)
    return maker


def average_cnn(seed: int) -> PlanMaker:
    """Average pools of a power of two and of nine values, grouped and dilated convolutions, a global average pool."""
    maker = PlanMaker((1, 8, 8), seed)
    maker.conv(4, 3, pad=1)
    maker.relu()
    maker.pool(Op.AVERAGE_POOL, 2)
    maker.conv(8, 3, pad=2, groups=2, dilation=2)
    maker.relu()
    maker.pool(Op.AVERAGE_POOL, 3, stride=1, pad=1)
    maker.conv(10, 1)
    maker.step(Op.GLOBAL_AVERAGE_POOL, (10,))
    return maker


def residual_cnn(seed: int) -> PlanMaker:
    """A residual block with a strided shortcut, a per-channel scale, an added weight and a 3x3 max-pool."""
    maker = PlanMaker((1, 8, 8), seed)
    maker.conv(4, 3, pad=1)
    start = maker.relu()
    maker.conv(8, 3, stride=2, pad=1)
    maker.relu()
    main = maker.conv(8, 3, pad=1)
    shortcut = maker.conv(8, 1, stride=2, of=start)
    maker.step(Op.ADD, maker.shapes[main], main, shortcut)
    maker.relu()
    maker.step(Op.SCALE, maker.shapes[main], weight=maker.weight("gain", 8, fan=2), bias=maker.weight("lift", 8, fan=4))
    maker.step(Op.ADD_WEIGHT, maker.shapes[main], weight=maker.weight("shift", 8, 1, 1, fan=4))
    maker.pool(Op.MAX_POOL, 3, stride=1, pad=1)
    maker.flatten()
    maker.linear(10)
    return maker


def lenet(seed: int) -> PlanMaker:
    """LeNet-5 for 3x32x32 with max-pools."""
    maker = PlanMaker((3, 32, 32), seed)
    for channels in (6, 16):
        maker.conv(channels, 5)
        maker.relu()
        maker.pool(Op.MAX_POOL, 2)
    maker.flatten()
    for width in (120, 84):
        maker.linear(width)
        maker.relu()
    maker.linear(10)
    return maker


def program_of(makers: Sequence[PlanMaker], **changes: object) -> Program:
    """Return a program of the makers' plans: 2 parties, batch 1, soft vote, probabilities, unless changed."""
    program = Program(
        plans=tuple(maker.plan() for maker in makers),
        deployments=tuple(bytes([i]) * 32 for i in range(len(makers))),
        parties=2,
        batch=1,
        fractional_bits=16,
        vote="soft",
        reveal="probabilities",
    )
    return replace(program, **changes)  # type: ignore[arg-type]


def float_logits(maker: PlanMaker, x: Floats) -> Tensor:
    """Evaluate a model in float64 with torch's own operators."""
    values = {INPUT: torch.from_numpy(x)}
    weights = {name: torch.from_numpy(value) for name, value in maker.weights.items()}
    for step in maker.steps:
        values[step.output] = _float_step(step, [values[name] for name in step.inputs], weights)
    return values[maker.last]


def _float_step(step: Step, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    x = inputs[0]
    weight, bias = weights.get(step.weight), weights.get(step.bias)
    match step.op:
        case Op.CONV:
            assert weight is not None
            return functional.conv2d(x, weight, bias, step.strides, step.pads[:2], step.dilations, step.groups)
        case Op.LINEAR:
            assert weight is not None
            return functional.linear(x, weight, bias)
        case Op.SCALE:
            assert weight is not None
            assert bias is not None
            return x * weight[:, None, None] + bias[:, None, None]
        case Op.ADD:
            return x + inputs[1]
        case Op.ADD_WEIGHT:
            assert weight is not None
            return x + weight
        case Op.RELU:
            return x.relu()
        case Op.MAX_POOL:
            return functional.max_pool2d(x, step.kernel, step.strides, step.pads[:2])
        case Op.AVERAGE_POOL:
            return functional.avg_pool2d(
                x, step.kernel, step.strides, step.pads[:2], count_include_pad=step.count_include_pad
            )
        case Op.GLOBAL_AVERAGE_POOL:
            return x.mean((2, 3)).reshape(x.shape[0], *step.output_shape)
        case Op.RESHAPE:
            return x.reshape(x.shape[0], *step.output_shape)
        case Op.SOFTMAX:
            return x.softmax(-1)
        case _:
            return torch.from_numpy(run_step(step, [value.numpy() for value in inputs], {}))


def float_votes(makers: Sequence[PlanMaker], x: Floats) -> Tensor:
    """Return the mean of the models' probabilities in float64."""
    return torch.stack([float_logits(maker, x).softmax(-1) for maker in makers]).mean(0)
