"""The models that are measured: the shapes of arXiv 2603.02214, section 5, with random weights, as ONNX files.

What a query costs depends on the shapes alone, never on the weights, so nothing is trained. Weights are drawn as He et
al. do it (arXiv 1502.01852), so that values keep their size from layer to layer, and those of the last layer so that
the probabilities of the classes differ: an error in them would show. All have ten classes and inputs of 3 x 32 x 32,
but for ResNet-50 (He et al., arXiv 1512.03385), which is there to show what large models take: 3 x 224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES: Final = 10
INPUT_SHAPE: Final = (3, 32, 32)
LARGE_INPUT_SHAPE: Final = (3, 224, 224)
_OPSET: Final = 17
_IR_VERSION: Final = 9
_LOGIT_SCALE: Final = 1.0
"""Deviation of the logits, about, where the layer before gives values of deviation 1."""


class _Builder:
    """An ONNX graph, layer by layer; each method appends to the last value and returns its name."""

    def __init__(self, seed: int, shape: tuple[int, ...] = INPUT_SHAPE) -> None:
        self._generator = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, npt.NDArray[np.float32]] = {}
        self.shape = shape
        self._shape_in = shape
        self.last = "x"

    def _append(self, operator: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        self.last = name
        return name

    def _weight(self, values: npt.NDArray[np.float64]) -> str:
        name = f"w{len(self._weights)}"
        self._weights[name] = values.astype(np.float32)
        return name

    def _normal(self, shape: tuple[int, ...], deviation: float) -> str:
        return self._weight(self._generator.normal(scale=deviation, size=shape))

    def conv(self, channels: int, kernel: int, *, stride: int = 1, pad: int = 0, gain: float = 2.0) -> str:
        per, height, width = self.shape
        weight = self._normal((channels, per, kernel, kernel), (gain / (per * kernel * kernel)) ** 0.5)
        bias = self._normal((channels,), 0.05)
        size = tuple((side + 2 * pad - kernel) // stride + 1 for side in (height, width))
        self.shape = (channels, *size)
        return self._append("Conv", (self.last, weight, bias), pads=[pad] * 4, strides=[stride] * 2)

    def normalize(self) -> str:
        """Append a batch normalization whose statistics are those of what He's weights give."""
        channels = self.shape[0]
        scale = self._weight(self._generator.uniform(0.9, 1.1, channels))
        shift = self._normal((channels,), 0.05)
        mean = self._normal((channels,), 0.05)
        variance = self._weight(self._generator.uniform(0.9, 1.1, channels))
        return self._append("BatchNormalization", (self.last, scale, shift, mean, variance), epsilon=1e-5)

    def relu(self) -> str:
        return self._append("Relu", (self.last,))

    def pool(self, operator: str = "MaxPool", *, kernel: int = 2, pad: int = 0) -> str:
        channels, height, width = self.shape
        size = tuple((side + 2 * pad - kernel) // 2 + 1 for side in (height, width))
        self.shape = (channels, *size)
        return self._append(operator, (self.last,), kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4)

    def global_average(self) -> str:
        self.shape = (self.shape[0], 1, 1)
        return self._append("GlobalAveragePool", (self.last,))

    def flatten(self) -> str:
        self.shape = (int(np.prod(self.shape)),)
        return self._append("Flatten", (self.last,))

    def linear(self, features: int, *, gain: float = 2.0) -> str:
        weight = self._normal((features, self.shape[0]), (gain / self.shape[0]) ** 0.5)
        bias = self._normal((features,), 0.05)
        self.shape = (features,)
        return self._append("Gemm", (self.last, weight, bias), transB=1)

    def add(self, one: str, other: str) -> str:
        return self._append("Add", (one, other))

    def write(self, path: Path) -> None:
        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *self._shape_in])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, ["batch", *self.shape])],
            [numpy_helper.from_array(values, name) for name, values in self._weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def _classify(net: _Builder) -> None:
    net.linear(CLASSES, gain=_LOGIT_SCALE**2 * 2)


def _mlp(net: _Builder) -> None:
    net.flatten()
    net.linear(512)
    net.relu()
    _classify(net)


def _tiny(net: _Builder) -> None:
    net.flatten()
    net.linear(8)
    net.relu()
    _classify(net)


def _convolutions(channels: tuple[int, ...], hidden: tuple[int, ...]) -> Callable[[_Builder], None]:
    def build(net: _Builder) -> None:
        for count in channels:
            net.conv(count, 3, pad=1)
            net.relu()
            net.pool()
        net.flatten()
        for count in hidden:
            net.linear(count)
            net.relu()
        _classify(net)

    return build


def _lenet(pooling: str) -> Callable[[_Builder], None]:
    def build(net: _Builder) -> None:
        for channels in (6, 16):
            net.conv(channels, 5)
            net.relu()
            net.pool(pooling)
        net.flatten()
        for features in (120, 84):
            net.linear(features)
            net.relu()
        _classify(net)

    return build


def _resnet18(net: _Builder) -> None:
    net.conv(64, 3, pad=1)
    net.normalize()
    net.relu()
    for channels, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first_stride, 1):
            _residual(net, channels, stride)
    net.global_average()
    net.flatten()
    _classify(net)


def _residual(net: _Builder, channels: int, stride: int) -> None:
    """Append two convolutions and what goes around them, at half the variance each, so that their sum keeps it."""
    before, shape = net.last, net.shape
    net.conv(channels, 3, stride=stride, pad=1)
    net.normalize()
    net.relu()
    inner = net.conv(channels, 3, pad=1, gain=1.0)
    inner = net.normalize()
    if stride != 1 or shape[0] != channels:
        net.last, after, net.shape = before, net.shape, shape
        net.conv(channels, 1, stride=stride, gain=1.0)
        before = net.normalize()
        net.shape = after
    net.add(inner, before)
    net.relu()


def _resnet50(net: _Builder) -> None:
    net.conv(64, 7, stride=2, pad=3)
    net.normalize()
    net.relu()
    net.pool(kernel=3, pad=1)
    for channels, blocks, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            _bottleneck(net, channels, first_stride if index == 0 else 1)
    net.global_average()
    net.flatten()
    _classify(net)


def _bottleneck(net: _Builder, channels: int, stride: int) -> None:
    """Append 1 x 1, 3 x 3 (with the stride) and 1 x 1 to four times the channels, and what goes around them."""
    before, shape = net.last, net.shape
    for kernel, step in ((1, 1), (3, stride)):
        net.conv(channels, kernel, stride=step, pad=kernel // 2)
        net.normalize()
        net.relu()
    net.conv(4 * channels, 1, gain=1.0)
    inner, after = net.normalize(), net.shape
    if shape != after:
        net.last, net.shape = before, shape
        net.conv(4 * channels, 1, stride=stride, gain=1.0)
        before = net.normalize()
    net.add(inner, before)
    net.relu()


MODELS: Final[Mapping[str, Callable[[_Builder], None]]] = MappingProxyType(
    {
        "mlp": _mlp,
        "small-cnn": _convolutions((32, 64), (256,)),
        "medium-cnn": _convolutions((32, 64, 128), (512,)),
        "large-cnn": _convolutions((64, 64, 128, 128), (512, 256)),
        "lenet": _lenet("MaxPool"),
        "lenet-avg": _lenet("AveragePool"),
        "resnet18": _resnet18,
        "resnet50": _resnet50,
        "tiny": _tiny,
    }
)
"""By name; "tiny" is no model of the paper but a quick one for trying things out."""


def write_model(name: str, seed: int, path: Path) -> None:
    """Write the model `name` of `MODELS`, with the weights of `seed`."""
    net = _Builder(seed, input_shape(name))
    MODELS[name](net)
    net.write(path)


def input_shape(name: str) -> tuple[int, int, int]:
    """Return the shape of an input of the model `name`."""
    return LARGE_INPUT_SHAPE if is_large(name) else INPUT_SHAPE


def is_large(name: str) -> bool:
    """Whether the model `name` takes large images, and a party more memory for a run than it offers by default."""
    return name == "resnet50"


def inputs(batch: int, seed: int = 0, shape: tuple[int, int, int] = INPUT_SHAPE) -> npt.NDArray[np.float64]:
    """Return `batch` random images (batch, *shape), normalized as images are: mean 0, deviation 1."""
    return np.random.default_rng([seed, batch]).normal(size=(batch, *shape))
