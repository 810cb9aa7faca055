"""A checked ONNX graph to a plan and its weights: one method per operator, in the order of computation.

What changes nothing (Identity, Dropout, a Reshape to the same shape) writes no step: its output becomes another name
of its input. What is linear and follows a linear step that nobody else reads (batch-norm, a constant addend) is folded
into that step's weights; so folding needs no pass of its own.

Activations and what moves, joins or multiplies values are in `functions`, what all operators need in `emitter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from finode.models.functions import Functions
from finode.models.graph import Array, Graph, unsupported
from finode.models.nodes import Node
from finode.models.windows import read_windows
from finode.smpc.plan import INPUT, Op, Plan, WeightSpec

_IMAGE_RANK = 3


@dataclass(frozen=True, slots=True)
class Lowered:
    """A plan, its weights by name, and which ONNX node each step came from."""

    plan: Plan
    weights: dict[str, Array] = field(repr=False)
    origins: dict[str, str]


def lower(graph: Graph) -> Lowered:
    """Return the plan and weights of a graph; raise `ModelError` for what a plan cannot express."""
    return _Lowering(graph).run()


class _Lowering(Functions):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._methods: dict[str, Callable[[Node], None]] = {
            **self.function_methods(),
            "AveragePool": self._average_pool,
            "BatchNormalization": self._batch_normalization,
            "Conv": self._conv,
            "Dropout": self._dropout,
            "Flatten": self._reshape,
            "Gemm": self._gemm,
            "GlobalAveragePool": self._global_average_pool,
            "Identity": self._identity,
            "MatMul": self._matmul,
            "MaxPool": self._max_pool,
            "ReduceMean": self._reduce_mean,
            "Relu": self._relu,
            "Reshape": self._reshape,
            "Squeeze": self._reshape,
            "Unsqueeze": self._reshape,
        }

    def run(self) -> Lowered:
        graph = self._graph
        for node in graph.nodes:
            method = self._methods.get(node.op)
            if method is None:
                raise unsupported(graph.source, node.op, node.name, detail=" on computed values")
            method(node)
        output = self._values[graph.output]
        shape = self._shapes[output]
        if len(shape) != 1:
            raise graph.fail(
                f"the output has the shape (batch, {', '.join(map(str, shape))}); it must be (batch, classes)",
                "end the model with a Flatten or a linear layer",
            )
        last = self._steps.get(output)
        ends = (Op.SOFTMAX, Op.LOG_SOFTMAX)
        # The softmax of a log-softmax is the softmax: either at the end leaves the logits.
        softmax_at_end = last is not None and last.op in ends and self._readers[output] == 1
        if last is not None and softmax_at_end:
            self._steps.pop(output)
            output = last.inputs[0]
        plan = Plan(
            input_shape=self._shapes[INPUT],
            classes=shape[0],
            steps=tuple(self._steps.values()),
            weights=tuple(WeightSpec(name=name, shape=w.shape) for name, w in self._weights.items()),
            output=output,
            softmax_at_end=softmax_at_end,
        )
        return Lowered(plan, self._weights, self._origins)

    # ---- linear operators

    def _conv(self, node: Node) -> None:
        weight = self._constant(node, 1, "kernel")
        if weight.ndim != 4:
            raise self._graph.fail(
                f"{node} is a convolution over {weight.ndim - 2} dimensions", "only two-dimensional ones are supported"
            )
        windows = read_windows(self._graph, node, weight.shape[2:])
        groups = int(node.attributes.get("group", 1))
        channels = self._graph.shapes[node.inputs[0]][0]
        if groups < 1 or weight.shape[0] % groups or weight.shape[1] * groups != channels:
            raise self._graph.fail(f"{node} has {groups} groups, {channels} channels and the kernel {weight.shape}")
        bias = self._constant(node, 2, "bias") if node.input(2) else None
        value = self._emit(node, Op.CONV, self._operand(node), weight=weight, bias=bias)
        self._steps[value] = replace(
            self._steps[value],
            strides=windows.strides,
            pads=windows.pads,
            dilations=windows.dilations,
            groups=groups,
        )

    def _gemm(self, node: Node) -> None:
        if node.attributes.get("transA", 0):
            raise self._graph.fail(f"{node} has transA = 1, which moves the batch from the first dimension")
        alpha, beta = float(node.attributes.get("alpha", 1.0)), float(node.attributes.get("beta", 1.0))
        weight = self._constant(node, 1, "matrix")
        weight = alpha * (weight if node.attributes.get("transB", 0) else weight.T)
        bias = None
        if node.input(2) and beta != 0:
            addend = beta * self._constant(node, 2, "addend")
            if addend.ndim > 1 and addend.shape[0] != 1:
                raise self._graph.fail(f"{node} adds {addend.shape}, one row per sample; a bias is needed")
            bias = np.ascontiguousarray(np.broadcast_to(addend.reshape(addend.shape[-1:]), weight.shape[:1]))
        self._emit(node, Op.LINEAR, self._operand(node), weight=np.ascontiguousarray(weight), bias=bias)

    def _matmul(self, node: Node) -> None:
        graph = self._graph
        if not any(name in graph.constants for name in node.inputs):
            self._matrix_product(node)
            return
        if node.inputs[0] in graph.constants:
            raise graph.fail(
                f"{node} has a constant on the left, which multiplies along another dimension than the last",
                "write it as x @ W, or as a Gemm",
            )
        weight = self._constant(node, 1, "matrix")
        sample = graph.shapes[node.inputs[0]]
        if weight.ndim < 2 or math.prod(weight.shape[:-2]) != 1 or weight.ndim > len(sample) + 1:
            raise graph.fail(f"{node} multiplies by the shape {weight.shape}; a matrix is needed")
        matrix = weight.reshape(weight.shape[-2:])
        self._emit(node, Op.LINEAR, self._operand(node), weight=np.ascontiguousarray(matrix.T))

    def _batch_normalization(self, node: Node) -> None:
        graph = self._graph
        if node.attributes.get("training_mode", 0) or any(graph.consumers(name) for name in node.outputs[1:] if name):
            raise graph.fail(f"{node} is in training mode", "export the model after module.eval()")
        if not node.attributes.get("spatial", 1):
            raise graph.fail(f"{node} has spatial = 0, statistics for every pixel", "export it with a newer opset")
        value = self._operand(node)
        channels = self._shapes[value][0]
        names = ("scale", "bias", "mean", "variance")
        gamma, beta, mean, variance = (self._constant(node, i + 1, name) for i, name in enumerate(names))
        for name, array in zip(names, (gamma, beta, mean, variance), strict=True):
            if array.shape != (channels,):
                raise graph.fail(f"the {name} of {node} has the shape {array.shape} for {channels} channels")
        spread = variance + float(node.attributes.get("epsilon", 1e-5))
        if spread.min() <= 0:
            raise graph.fail(f"the variance of {node} is negative or zero")
        factor = gamma / np.sqrt(spread)
        shift = beta - mean * factor
        step = self._foldable(value, Op.CONV, Op.LINEAR, Op.SCALE)
        # A channel is dimension 0 of a sample, but a linear step's outputs are its last dimension.
        if step is not None and (step.op is not Op.LINEAR or len(step.output_shape) == 1):
            weight = self._weights[step.weight]
            self._weights[step.weight] = weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))
            self._set_bias(value, self._bias_of(step) * factor + shift)
            self._alias(node, value)
        else:
            self._emit(node, Op.SCALE, value, weight=factor, bias=shift)

    # ---- the rest

    def _relu(self, node: Node) -> None:
        self._emit(node, Op.RELU, self._operand(node))

    def _max_pool(self, node: Node) -> None:
        self._pool(node, Op.MAX_POOL)

    def _average_pool(self, node: Node) -> None:
        self._pool(node, Op.AVERAGE_POOL)

    def _pool(self, node: Node, op: Op) -> None:
        windows = read_windows(self._graph, node)
        if windows.dilations != (1, 1):
            raise self._graph.fail(f"{node} has dilations = {windows.dilations}; a pool here has none")
        value = self._emit(node, op, self._operand(node))
        self._steps[value] = replace(
            self._steps[value],
            kernel=windows.kernel,
            strides=windows.strides,
            pads=windows.pads,
            count_include_pad=op is Op.AVERAGE_POOL and bool(node.attributes.get("count_include_pad", 0)),
        )

    def _global_average_pool(self, node: Node) -> None:
        if len(self._graph.shapes[node.inputs[0]]) != _IMAGE_RANK:
            raise self._graph.fail(f"{node} works on other samples than (channels, height, width)")
        self._emit(node, Op.GLOBAL_AVERAGE_POOL, self._operand(node))

    def _reduce_mean(self, node: Node) -> None:
        """torch exports AdaptiveAvgPool2d(1) as the mean over height and width."""
        axes = node.attributes.get("axes")
        if node.input(1):
            axes = self._constant(node, 1, "axes").reshape(-1)
        rank = 1 + len(self._graph.shapes[node.inputs[0]])
        over = sorted(int(axis) % rank for axis in axes) if axes is not None else []
        if rank != 4 or over != [2, 3]:
            raise unsupported(self._graph.source, node.op, node.name, detail=" but over height and width")
        self._emit(node, Op.GLOBAL_AVERAGE_POOL, self._operand(node))

    def _reshape(self, node: Node) -> None:
        """Flatten and Reshape: the batch stays first, so a sample's elements keep their order."""
        value = self._operand(node)
        shape = self._graph.shapes[node.outputs[0]]
        if math.prod(shape) != math.prod(self._shapes[value]):
            raise self._graph.fail(f"{node} moves elements between samples")
        before = self._steps.get(value)
        if shape == self._shapes[value]:
            self._alias(node, value)
        elif before is not None and before.op is Op.RESHAPE and self._readers[value] == 1:
            # Two in a row are one, whatever the rank in between.
            self._steps[value] = replace(before, output_shape=shape)
            self._shapes[value] = shape
            self._alias(node, value)
        else:
            self._emit(node, Op.RESHAPE, value)

    def _identity(self, node: Node) -> None:
        self._alias(node, self._operand(node))

    def _dropout(self, node: Node) -> None:
        training = self._constant_or_none(node, 2)
        if (node.input(2) and training is None) or (training is not None and training.any()):
            raise self._graph.fail(f"{node} is in training mode", "export the model after module.eval()")
        self._alias(node, self._operand(node))
