"""A plan in plain float64 numpy: the measure of the import, and what calibration looks at.

Convolutions and pools take their windows as a strided view; nothing here is fast, and nothing needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from finode.models.graph import Array
from finode.smpc.plan import INPUT, Op, Plan, Step

Weights = Mapping[str, Array]
Watcher = Callable[[str, Array], None]
"""Is shown every value by name, the input included, as soon as it is known."""
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def run_float(plan: Plan, weights: Weights, x: Array, watch: Watcher | None = None) -> Array:
    """Return the logits (batch, classes) of `x` (batch, *input_shape)."""
    values: dict[str, Array] = {INPUT: np.asarray(x, dtype=np.float64)}
    # A value is dropped after its last reader: a deep model's values would not all fit into memory.
    last = {name: index for index, step in enumerate(plan.steps) for name in step.inputs}
    if watch is not None:
        watch(INPUT, values[INPUT])
    for index, step in enumerate(plan.steps):
        inputs = [values[name] for name in step.inputs]
        values[step.output] = run_step(step, inputs, weights)
        if watch is not None:
            watch(step.output, values[step.output])
        for name in step.inputs:
            if last[name] == index and name != plan.output:
                values.pop(name, None)
    return values[plan.output]


def run_step(step: Step, inputs: list[Array], weights: Weights) -> Array:
    """Return the value of one step from its inputs' values."""
    return _OPS[step.op](step, inputs, weights)


def softmax(values: Array) -> Array:
    """Return the softmax over the last dimension."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def probabilities(plan: Plan, weights: Weights, x: Array) -> Array:
    """Return the class probabilities (batch, classes) of `x` (batch, *input_shape)."""
    return softmax(run_float(plan, weights, x))


def _bias(step: Step, weights: Weights, values: Array, axis: int) -> Array:
    if not step.bias:
        return values
    shape = [1] * values.ndim
    shape[axis] = -1
    return np.asarray(values + weights[step.bias].reshape(shape))


def _windows(step: Step, x: Array, kernel: tuple[int, int], fill: float) -> Array:
    """Return the windows of `x` (batch, channels, height, width): (batch, channels, rows, columns, kh, kw)."""
    top, left, bottom, right = step.pads or (0, 0, 0, 0)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    dy, dx = step.dilations or (1, 1)
    reach = (dy * (kernel[0] - 1) + 1, dx * (kernel[1] - 1) + 1)
    sy, sx = step.strides or (1, 1)
    return sliding_window_view(padded, reach, axis=(2, 3))[:, :, ::sy, ::sx, ::dy, ::dx]


def _conv(step: Step, inputs: list[Array], weights: Weights) -> Array:
    weight = weights[step.weight]
    out, per_group, kh, kw = weight.shape
    windows = _windows(step, inputs[0], (kh, kw), 0.0)
    batch, _, rows, columns = windows.shape[:4]
    # One matrix product per group: (positions, fan-in) @ (fan-in, channels).
    grouped = windows.reshape(batch, step.groups, per_group, rows, columns, kh, kw)
    left = grouped.transpose(1, 0, 3, 4, 2, 5, 6).reshape(step.groups, batch * rows * columns, per_group * kh * kw)
    right = weight.reshape(step.groups, out // step.groups, per_group * kh * kw).transpose(0, 2, 1)
    product = (left @ right).reshape(step.groups, batch, rows, columns, out // step.groups)
    values = product.transpose(1, 0, 4, 2, 3).reshape(batch, out, rows, columns)
    return _bias(step, weights, values, 1)


def _linear(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return _bias(step, weights, inputs[0] @ weights[step.weight].T, -1)


def _add(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] + inputs[1])


def _add_weight(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] + weights[step.weight][np.newaxis])


def _scale(step: Step, inputs: list[Array], weights: Weights) -> Array:
    factor = weights[step.weight].reshape((1, -1) + (1,) * (inputs[0].ndim - 2))
    return _bias(step, weights, inputs[0] * factor, 1)


def _relu(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.maximum(inputs[0], 0.0)


def _max_pool(step: Step, inputs: list[Array], weights: Weights) -> Array:
    kh, kw = step.kernel
    return np.asarray(_windows(step, inputs[0], (kh, kw), -np.inf).max(axis=(4, 5)))


def _average_pool(step: Step, inputs: list[Array], weights: Weights) -> Array:
    kh, kw = step.kernel
    sums = _windows(step, inputs[0], (kh, kw), 0.0).sum(axis=(4, 5))
    if step.count_include_pad:
        return np.asarray(sums / (kh * kw))
    counts = _windows(step, np.ones((1, 1, *inputs[0].shape[2:])), (kh, kw), 0.0).sum(axis=(4, 5))
    return np.asarray(sums / counts)


def _global_average_pool(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0].mean(axis=(2, 3)).reshape(-1, *step.output_shape))


def _reshape(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return inputs[0].reshape(-1, *step.output_shape)


def _sub(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] - inputs[1])


def _mul(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] * inputs[1])


def _matmul(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] @ inputs[1])


def _mul_weight(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] * weights[step.weight][np.newaxis])


def _times(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] * step.numbers[0])


def _leaky_relu(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(np.where(inputs[0] < 0, step.numbers[0] * inputs[0], inputs[0]))


def _clip(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(np.minimum(np.maximum(inputs[0], step.numbers[0]), max(step.numbers)))


def _sigmoid(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(inputs[0] / 2)))


def _tanh(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.tanh(inputs[0])


def _erf(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(_ERF(inputs[0]), dtype=np.float64)


def _gelu(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.asarray(inputs[0] * 0.5 * (1 + _erf(step, [inputs[0] / math.sqrt(2)], weights)))


def _gelu_tanh(step: Step, inputs: list[Array], weights: Weights) -> Array:
    x = inputs[0]
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _exp(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.exp(inputs[0])


def _transpose(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return inputs[0].transpose(0, *(1 + axis for axis in step.axes))


def _concat(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return np.concatenate(inputs, axis=1 + step.axes[0])


def _slice(step: Step, inputs: list[Array], weights: Weights) -> Array:
    x = inputs[0]
    for axis, (start, stride, count) in enumerate(zip(step.starts, step.strides, step.output_shape, strict=True)):
        x = x.take(start + stride * np.arange(count), axis=1 + axis)
    return x


def _pad(step: Step, inputs: list[Array], weights: Weights) -> Array:
    rank = len(step.pads) // 2
    sides = [(0, 0), *zip(step.pads[:rank], step.pads[rank:], strict=True)]
    return np.pad(inputs[0], sides, constant_values=step.numbers[0])


def _log_softmax(step: Step, inputs: list[Array], weights: Weights) -> Array:
    shifted = inputs[0] - inputs[0].max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _softmax(step: Step, inputs: list[Array], weights: Weights) -> Array:
    return softmax(inputs[0])


_OPS: Mapping[Op, Callable[[Step, list[Array], Weights], Array]] = {
    Op.CONV: _conv,
    Op.LINEAR: _linear,
    Op.ADD: _add,
    Op.ADD_WEIGHT: _add_weight,
    Op.SCALE: _scale,
    Op.RELU: _relu,
    Op.MAX_POOL: _max_pool,
    Op.AVERAGE_POOL: _average_pool,
    Op.GLOBAL_AVERAGE_POOL: _global_average_pool,
    Op.RESHAPE: _reshape,
    Op.SOFTMAX: _softmax,
    Op.SUB: _sub,
    Op.MUL: _mul,
    Op.MATMUL: _matmul,
    Op.MUL_WEIGHT: _mul_weight,
    Op.TIMES: _times,
    Op.LEAKY_RELU: _leaky_relu,
    Op.CLIP: _clip,
    Op.SIGMOID: _sigmoid,
    Op.TANH: _tanh,
    Op.GELU: _gelu,
    Op.GELU_TANH: _gelu_tanh,
    Op.ERF: _erf,
    Op.EXP: _exp,
    Op.TRANSPOSE: _transpose,
    Op.CONCAT: _concat,
    Op.SLICE: _slice,
    Op.PAD: _pad,
    Op.LOG_SOFTMAX: _log_softmax,
}
