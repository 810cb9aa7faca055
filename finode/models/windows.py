"""The windows of Conv and the pools: ONNX's attributes to the plan's kernel, strides, pads and dilations.

Pads are (top, left, bottom, right), as in the plan. `auto_pad` is resolved against the input's size, and `ceil_mode`
becomes explicit pads at the end where that is the same thing: for a maximum, and for an average that leaves pads out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finode.models.graph import Graph
from finode.models.nodes import Node

_AXES = 2


@dataclass(frozen=True, slots=True)
class Windows:
    """Where windows lie: every pair is (height, width)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    def counts(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return how many whole windows fit into an input of `size` along each axis."""
        return tuple(
            (size[i] + self.pads[i] + self.pads[i + _AXES] - self.dilations[i] * (self.kernel[i] - 1) - 1)
            // self.strides[i]
            + 1
            for i in range(_AXES)
        )


def read_windows(graph: Graph, node: Node, kernel: Sequence[int] | None = None) -> Windows:
    """Return the windows of a Conv (whose `kernel` is that of its weights) or of a pool; raise `ModelError`."""
    sample = graph.shapes[node.inputs[0]]
    if len(sample) != 3:
        raise graph.fail(
            f"{node} works on samples of {len(sample)} dimensions",
            "only images are supported: (channels, height, width) after the batch",
        )
    size = sample[1:]
    given = _integers(graph, node, "kernel_shape", kernel)
    if kernel is not None and given != tuple(kernel):
        raise graph.fail(f"{node} has the kernel {given}, its weights {tuple(kernel)}")
    windows = Windows(
        kernel=given,
        strides=_integers(graph, node, "strides", (1, 1)),
        pads=_integers(graph, node, "pads", (0, 0, 0, 0), least=0),
        dilations=_integers(graph, node, "dilations", (1, 1)),
    )
    windows = replace(windows, pads=_resolve_auto_pad(graph, node, windows, size))
    expected = graph.shapes[node.outputs[0]][1:]
    if node.attributes.get("ceil_mode", 0) and windows.counts(size) != expected:
        windows = _pad_to(graph, node, windows, size, expected)
    if windows.counts(size) != expected:
        raise graph.fail(f"{node} gives {expected} windows, but {windows.counts(size)} fit")
    if node.op != "Conv" and any(pad >= windows.kernel[i % _AXES] for i, pad in enumerate(windows.pads)):
        raise graph.fail(f"{node} pads {windows.pads} as far as its kernel {windows.kernel}: a window would be empty")
    return windows


def _integers(graph: Graph, node: Node, name: str, default: Sequence[int] | None, *, least: int = 1) -> tuple[int, ...]:
    value: Any = node.attributes.get(name, default)
    length = 2 * _AXES if name == "pads" else _AXES
    if value is None or len(value) != length or min(value) < least:
        found = "nothing" if value is None else list(value)
        raise graph.fail(f"{node} has {name} = {found}; it must be {length} numbers of at least {least}")
    return tuple(int(entry) for entry in value)


def _resolve_auto_pad(graph: Graph, node: Node, windows: Windows, size: Sequence[int]) -> tuple[int, ...]:
    mode = node.attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if mode == "NOTSET":
        return windows.pads
    if mode == "VALID":
        return (0,) * (2 * _AXES)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise graph.fail(f"{node} has auto_pad = {mode!r}")
    begin, end = [], []
    for i in range(_AXES):
        windows_here = -(-size[i] // windows.strides[i])
        reach = (windows_here - 1) * windows.strides[i] + windows.dilations[i] * (windows.kernel[i] - 1) + 1
        total = max(0, reach - size[i])
        # An odd pad lies at the end for SAME_UPPER, at the beginning for SAME_LOWER.
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return (*begin, *end)


def _pad_to(graph: Graph, node: Node, windows: Windows, size: Sequence[int], expected: Sequence[int]) -> Windows:
    """Widen the pads at the end until `expected` windows fit, where that leaves every window's value as it is."""
    refusal = graph.fail(
        f"{node} has ceil_mode = 1 and a last window that reaches over the edge, which a plan cannot express here",
        "set ceil_mode to 0, or pad the input explicitly",
    )
    if node.op == "AveragePool" and node.attributes.get("count_include_pad", 0):
        raise refusal
    pads = list(windows.pads)
    for i in range(_AXES):
        start = (expected[i] - 1) * windows.strides[i]
        reach = start + windows.dilations[i] * (windows.kernel[i] - 1) + 1
        missing = reach - (size[i] + windows.pads[i] + windows.pads[i + _AXES])
        if start >= size[i] + windows.pads[i]:
            raise refusal
        pads[i + _AXES] += max(0, missing)
    return replace(windows, pads=tuple(pads))
