"""The small files beside a model: the service's labels, how its images become tensors, and the training counts.

Labels: one class name per line, or a JSON list of strings; in the order of the model's outputs.

Preprocessing, TOML, every key optional:

    size = [28, 28]              # height, width; must be the model's
    color = "gray"               # gray, rgb, bgr, or none for inputs that are no images
    scale = 0.00392156862745098  # what bytes are multiplied with: 1/255
    mean = [0.5]                 # one per channel, or one number for all
    deviation = [0.5]

Counts, of one model: a JSON list of whole numbers in the order of the model's outputs, or an object by class name,
where a class that is missing counts 0.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finode.errors import InputError, WireError
from finode.wire.directory import Color, InputSpec

MAX_FILE_BYTES = 1 << 20
_KEYS = ("size", "color", "scale", "mean", "deviation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """What a preprocessing file states. None and () where it says nothing; one `mean` goes for all channels."""

    source: str
    size: tuple[int, int] | None = None
    color: Color | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def spec(self, shape: tuple[int, ...]) -> InputSpec:
        """Return the `InputSpec` of a model whose samples have `shape`; raise `InputError` where the two disagree."""
        channels = shape[0] if len(shape) == 3 else 0
        if self.size is not None and shape[1:] != self.size:
            raise InputError(f"{self.source}: size is {list(self.size)}, but the model takes inputs of {shape}")
        color = self.color
        if color is None:
            # Whoever writes such a file means images; which order three channels have is theirs to say.
            color = {1: Color.GRAY, 3: Color.RGB}.get(channels, Color.NONE)
        try:
            return InputSpec(
                shape=shape,
                color=color,
                scale=1 / 255 if self.scale is None else self.scale,
                mean=self.mean * channels if len(self.mean) == 1 else self.mean,
                deviation=self.deviation * channels if len(self.deviation) == 1 else self.deviation,
            )
        except WireError as error:
            raise InputError(f"{self.source} does not fit a model with inputs of {shape}: {error.message}") from None


def load_preprocess(path: Path) -> Preprocess:
    """Return the settings of a preprocessing file; raise `InputError` that names the file and the key."""
    try:
        values = tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    unknown = sorted(set(values) - set(_KEYS))
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]!r}", hint=f"the keys are {', '.join(_KEYS)}")
    scale = _numbers(path, values, "scale")
    if len(scale) > 1:
        raise InputError(f"{path}: scale is one number")
    return Preprocess(
        source=str(path),
        size=_size(path, values),
        color=_color(path, values),
        scale=scale[0] if scale else None,
        mean=_numbers(path, values, "mean"),
        deviation=_numbers(path, values, "deviation"),
    )


def load_labels(path: Path) -> tuple[str, ...]:
    """Return the class names of a labels file; raise `InputError` that names the file."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        try:
            labels = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
        if not all(isinstance(label, str) for label in labels):
            raise InputError(f"{path}: a JSON list of labels holds strings only")
    else:
        # A blank line in between would shift every class after it, so it is an error below, not skipped.
        labels = text.rstrip().splitlines()
    labels = [label.strip() for label in labels]
    if len(labels) < 2 or not all(labels):
        raise InputError(f"{path}: a service has 2 or more classes, each with a name", hint="one class name per line")
    twice = sorted(label for label in set(labels) if labels.count(label) > 1)
    if twice:
        raise InputError(f"{path}: the class {twice[0]!r} stands there twice")
    return tuple(labels)


def load_counts(path: Path, classes: Sequence[str]) -> tuple[int, ...]:
    """Read how many training samples of each class a model has seen; raise `InputError` if the file says nothing of it.

    What the numbers may be is for `smpc.counts.with_counts` to say.
    """
    try:
        found = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint="write a list of numbers, one per class") from None
    if isinstance(found, dict):
        if unknown := sorted(found.keys() - set(classes)):
            raise InputError(f"{path} counts {unknown[0]!r}, which is no class of the service")
        return tuple(found.get(name, 0) for name in classes)
    if isinstance(found, list):
        return tuple(found)
    raise InputError(f"{path} is neither a list of counts nor an object by class name")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path} has over {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(path: Path, values: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = values.get(key, [])
    numbers = value if isinstance(value, list) else [value]
    if not all(_is_number(number) for number in numbers):
        raise InputError(f"{path}: {key} is {value!r}; it must be a number, or a list of numbers")
    return tuple(float(number) for number in numbers)


def _size(path: Path, values: Mapping[str, Any]) -> tuple[int, int] | None:
    value = values.get("size")
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise InputError(f"{path}: size is {value!r}; it must be [height, width]")
    return sides[0], sides[1]


def _color(path: Path, values: Mapping[str, Any]) -> Color | None:
    value = values.get("color")
    if value is None:
        return None
    if value not in [color.value for color in Color]:
        raise InputError(f"{path}: color is {value!r}; it must be one of {', '.join(color.value for color in Color)}")
    return Color(value)
