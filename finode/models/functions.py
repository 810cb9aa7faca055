"""Activations, products of computed values, and what moves or joins values: ONNX operators to steps.

A constant of the file is the owner's secret, and becomes a weight. Public, as attributes of a step, are only what
shapes an activation (the slope of a leaky ReLU, the bounds of a clip, a pad's value) and a power of two by which a
whole value is multiplied: those are structure, and nobody's training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from finode.models.emitter import Emitter
from finode.models.graph import Array, unsupported
from finode.models.nodes import Node
from finode.smpc.plan import Op

_INFINITE = float("inf")
_MAX_POWER = 3


class Functions(Emitter):
    """The operators of this module, by name."""

    def function_methods(self) -> dict[str, Callable[[Node], None]]:
        """Return what lowers each of them."""
        return {
            "Add": self._add,
            "Clip": self._clip,
            "Concat": self._concat,
            "Div": self._div,
            "Erf": self._plain(Op.ERF),
            "Exp": self._plain(Op.EXP),
            "Gelu": self._gelu,
            "LeakyRelu": self._leaky_relu,
            "LogSoftmax": self._softmax,
            "Max": self._bounded,
            "Min": self._bounded,
            "Mul": self._mul,
            "Neg": lambda node: self._times(node, self._operand(node), -1.0),
            "Pad": self._pad,
            "Pow": self._pow,
            "Sigmoid": self._plain(Op.SIGMOID),
            "Slice": self._slice,
            "Softmax": self._softmax,
            "Split": self._split,
            "Sub": self._sub,
            "Tanh": self._plain(Op.TANH),
            "Transpose": self._transpose,
        }

    def _plain(self, op: Op) -> Callable[[Node], None]:
        def emit(node: Node) -> None:
            self._emit(node, op, self._operand(node))

        return emit

    # ---- activations

    def _gelu(self, node: Node) -> None:
        tanh = node.attributes.get("approximate", "none") == "tanh"
        self._emit(node, Op.GELU_TANH if tanh else Op.GELU, self._operand(node))

    def _leaky_relu(self, node: Node) -> None:
        slope = self._number(node, float(node.attributes.get("alpha", 0.01)))
        self._emit(node, Op.LEAKY_RELU, self._operand(node), numbers=(slope,))

    def _clip(self, node: Node) -> None:
        bounds = []
        for index, name, none in ((1, "min", -_INFINITE), (2, "max", _INFINITE)):
            bound = self._scalar(node, index, name) if node.input(index) else float(node.attributes.get(name, none))
            # What ONNX itself writes for no bound is the largest float.
            bounds.append(bound if abs(bound) < 1e30 else math.copysign(_INFINITE, bound))
        self._emit(node, Op.CLIP, self._operand(node), numbers=tuple(bounds))

    def _bounded(self, node: Node) -> None:
        """Max and Min with a number are how torch writes a clamp with one bound."""
        constant = self._constant_operand(node)
        if constant is None or len(node.inputs) != 2:
            raise unsupported(self._graph.source, node.op, node.name, detail=" but of a value and a number")
        bound = self._scalar(node, constant, "bound")
        numbers = (bound, _INFINITE) if node.op == "Max" else (-_INFINITE, bound)
        self._emit(node, Op.CLIP, self._operand(node, 1 - constant), numbers=numbers)

    def _softmax(self, node: Node) -> None:
        rank = 1 + len(self._graph.shapes[node.inputs[0]])
        # Before opset 13 the default was 1, and all dimensions from the axis on were taken together.
        axis = int(node.attributes.get("axis", -1 if self._graph.opset >= 13 else 1)) % rank
        if axis != rank - 1:
            raise self._graph.fail(
                f"{node} goes over dimension {axis} of {rank}", "a softmax must go over the last dimension"
            )
        self._emit(node, Op.SOFTMAX if node.op == "Softmax" else Op.LOG_SOFTMAX, self._operand(node))

    # ---- sums and products

    def _constant_operand(self, node: Node) -> int | None:
        return next((i for i, name in enumerate(node.inputs) if name in self._graph.constants), None)

    def _number(self, node: Node, value: float) -> float:
        if not math.isfinite(value):
            raise self._graph.fail(f"{node} holds {value}")
        return value

    def _scalar(self, node: Node, index: int, what: str) -> float:
        value = self._constant(node, index, what)
        if value.size != 1:
            raise self._graph.fail(f"the {what} of {node} has the shape {value.shape}; a number is needed")
        return float(value.reshape(()))

    def _add(self, node: Node) -> None:
        constant = self._constant_operand(node)
        if constant is not None:
            self._add_constant(node, self._operand(node, 1 - constant), self._constant(node, constant, "addend"))
            return
        self._combine(node, Op.ADD)

    def _sub(self, node: Node) -> None:
        constant = self._constant_operand(node)
        if constant == 1:
            self._add_constant(node, self._operand(node), -self._constant(node, 1, "subtrahend"))
        elif constant == 0:
            value = self._operand(node, 1)
            addend = self._per_sample(node, value, self._constant(node, 0, "minuend"))
            negative = self._emit(node, Op.TIMES, value, numbers=(-1.0,))
            self._then(node, negative, Op.ADD_WEIGHT, weight=addend)
        else:
            self._combine(node, Op.SUB)

    def _combine(self, node: Node, op: Op) -> None:
        a, b = self._operand(node, 0), self._operand(node, 1)
        if self._shapes[a] != self._shapes[b]:
            verb = "adds" if op is Op.ADD else "subtracts"
            raise self._graph.fail(f"{node} {verb} samples of the shapes {self._shapes[a]} and {self._shapes[b]}")
        self._emit(node, op, a, b)

    def _mul(self, node: Node) -> None:
        constant = self._constant_operand(node)
        if constant is not None:
            self._scale(node, self._operand(node, 1 - constant), self._constant(node, constant, "factor"))
            return
        a, b = self._operand(node, 0), self._operand(node, 1)
        if len(self._shapes[a]) != len(self._shapes[b]):
            raise self._graph.fail(f"{node} multiplies samples of the shapes {self._shapes[a]} and {self._shapes[b]}")
        self._emit(node, Op.MUL, a, b)

    def _div(self, node: Node) -> None:
        if self._constant_operand(node) != 1:
            raise unsupported(self._graph.source, node.op, node.name, detail=" by a computed value")
        divisor = self._constant(node, 1, "divisor")
        if not divisor.all():
            raise self._graph.fail(f"{node} divides by zero")
        self._scale(node, self._operand(node), 1 / divisor)

    def _pow(self, node: Node) -> None:
        exponent = self._scalar(node, 1, "exponent")
        if exponent not in range(2, _MAX_POWER + 1):
            raise unsupported(self._graph.source, node.op, node.name, detail=f" with the exponent {exponent:g}")
        x = self._operand(node)
        power = self._emit(node, Op.MUL, x, x)
        self._readers[x] += 1
        if exponent == _MAX_POWER:
            self._readers[power] = 1
            self._readers[x] += 1
            self._emit(node, Op.MUL, power, x)

    def _matrix_product(self, node: Node) -> None:
        a, b = self._operand(node, 0), self._operand(node, 1)
        left, right = self._shapes[a], self._shapes[b]
        if len(left) != len(right) or len(left) < 2:
            raise self._graph.fail(f"{node} multiplies samples of the shapes {left} and {right}; matrices are needed")
        self._emit(node, Op.MATMUL, a, b)

    def _per_sample(self, node: Node, value: str, constant: Array) -> Array:
        """Return a constant that broadcasts against one sample, with the sample's rank."""
        sample = self._shapes[value]
        if constant.ndim > len(sample):
            if constant.ndim > len(sample) + 1 or constant.shape[0] != 1:
                raise self._graph.fail(f"{node} takes {constant.shape}, which is not the same for every sample")
            constant = constant[0]
        if self._graph.shapes[node.outputs[0]] != sample:
            raise self._graph.fail(f"{node} widens a sample of the shape {sample} to that of {constant.shape}")
        return np.ascontiguousarray(constant.reshape((1,) * (len(sample) - constant.ndim) + constant.shape))

    def _is_per_channel(self, value: str, constant: Array) -> bool:
        """Whether a constant of the sample's rank varies only along the channels of the step that writes `value`."""
        linear = value in self._steps and self._steps[value].op is Op.LINEAR
        channel = constant.ndim - 1 if linear else 0
        return all(side == 1 for axis, side in enumerate(constant.shape) if axis != channel)

    def _add_constant(self, node: Node, value: str, addend: Array) -> None:
        addend = self._per_sample(node, value, addend)
        step = self._foldable(value, Op.CONV, Op.LINEAR)
        if step is not None and self._is_per_channel(value, addend):
            self._set_bias(value, self._bias_of(step) + addend.reshape(-1))
            self._alias(node, value)
        else:
            self._emit(node, Op.ADD_WEIGHT, value, weight=addend)

    def _scale(self, node: Node, value: str, factor: Array) -> None:
        """Multiply by a constant: into the weights of a linear step, by a power of two, or as a weight of its own."""
        factor = self._per_sample(node, value, factor)
        step = self._foldable(value, Op.CONV, Op.LINEAR, Op.SCALE)
        if step is not None and self._is_per_channel(value, factor):
            weight, flat = self._weights[step.weight], factor.reshape(-1)
            self._weights[step.weight] = weight * flat.reshape((-1,) + (1,) * (weight.ndim - 1))
            if step.bias:
                self._set_bias(value, self._weights[step.bias] * flat)
            self._alias(node, value)
        elif factor.size == 1 and abs(math.frexp(float(factor.reshape(())))[0]) == 0.5:
            self._times(node, value, float(factor.reshape(())))
        else:
            self._emit(node, Op.MUL_WEIGHT, value, weight=factor)

    def _times(self, node: Node, value: str, factor: float) -> None:
        if factor == 1:
            self._alias(node, value)
        else:
            self._emit(node, Op.TIMES, value, numbers=(factor,))

    # ---- what moves values

    def _axis(self, node: Node, axis: int) -> int:
        """Return the sample's dimension of an ONNX axis, which counts the batch."""
        rank = 1 + len(self._graph.shapes[node.inputs[0]])
        if not -rank <= axis < rank or axis % rank == 0:
            raise self._graph.fail(f"{node} works along dimension {axis}: the batch must stay as it is")
        return axis % rank - 1

    def _transpose(self, node: Node) -> None:
        value = self._operand(node)
        rank = 1 + len(self._shapes[value])
        order = [int(axis) for axis in node.attributes.get("perm", reversed(range(rank)))]
        if order[0] != 0:
            raise self._graph.fail(f"{node} moves the batch to another dimension")
        axes = tuple(axis - 1 for axis in order[1:])
        if axes == tuple(range(rank - 1)):
            self._alias(node, value)
            return
        name = self._emit(node, Op.TRANSPOSE, value)
        self._steps[name] = replace(self._steps[name], axes=axes)

    def _concat(self, node: Node) -> None:
        axis = self._axis(node, int(node.attributes.get("axis", 1)))
        name = self._emit(node, Op.CONCAT, *(self._operand(node, index) for index in range(len(node.inputs))))
        self._steps[name] = replace(self._steps[name], axes=(axis,))

    def _integers(self, node: Node, index: int, name: str) -> list[int] | None:
        """Return a list of integers from an input, or in old opsets from an attribute; None if it is left out."""
        if node.input(index):
            return [int(entry) for entry in self._constant(node, index, name).reshape(-1)]
        given = node.attributes.get(name)
        return None if given is None else [int(entry) for entry in given]

    def _slice(self, node: Node) -> None:
        value = self._operand(node)
        sample = self._shapes[value]
        begins, ends = self._integers(node, 1, "starts") or [], self._integers(node, 2, "ends") or []
        given = self._integers(node, 3, "axes")
        axes = list(range(len(begins))) if given is None else given
        steps = self._integers(node, 4, "steps") or [1] * len(begins)
        starts, strides = [0] * len(sample), [1] * len(sample)
        for axis, begin, end, step in zip(axes, begins, ends, steps, strict=True):
            if axis == 0 and begin == 0 and step == 1 and end >= np.iinfo(np.int32).max:
                continue  # all of the batch
            place = self._axis(node, axis)
            starts[place], _, strides[place] = slice(begin, end, step).indices(sample[place])
        name = self._emit(node, Op.SLICE, value)
        self._steps[name] = replace(self._steps[name], starts=tuple(starts), strides=tuple(strides))

    def _split(self, node: Node) -> None:
        value, axis = self._operand(node), self._axis(node, int(node.attributes.get("axis", 0)))
        start = 0
        for index, output in enumerate(node.outputs):
            if self._graph.consumers(output):
                self._readers[value] += 1
                name = self._emit(node, Op.SLICE, value, output=index)
                starts = [0] * len(self._shapes[value])
                starts[axis] = start
                self._steps[name] = replace(self._steps[name], starts=tuple(starts), strides=(1,) * len(starts))
            start += self._graph.shapes[output][axis]

    def _pad(self, node: Node) -> None:
        if node.attributes.get("mode", "constant") != "constant":
            raise self._graph.fail(f"{node} has mode = {node.attributes['mode']!r}; only constant pads are supported")
        value = self._operand(node)
        rank = 1 + len(self._shapes[value])
        given, axes = self._integers(node, 1, "pads") or [], self._integers(node, 3, "axes")
        places = list(range(rank)) if axes is None else [axis % rank for axis in axes]
        pads = [0] * (2 * rank)
        for index, place in enumerate(places):
            pads[place], pads[place + rank] = given[index], given[index + len(places)]
        if pads[0] or pads[rank] or min(pads) < 0:
            raise self._graph.fail(f"{node} pads the batch, or by less than nothing: {pads}")
        fill = self._scalar(node, 2, "value") if node.input(2) else float(node.attributes.get("value", 0.0))
        name = self._emit(node, Op.PAD, value, numbers=(self._number(node, fill),))
        self._steps[name] = replace(self._steps[name], pads=(*pads[1:rank], *pads[rank + 1 :]))
