"""A person's input to a service's tensor: .npy, .json or an image, as the service's `InputSpec` states.

An image is turned upright (EXIF), resized to (height, width) with a bilinear filter, its channels put in order, its
bytes multiplied by `scale`, then (value - mean) / deviation per channel. Arrays of numbers are taken as tensors, ready
as they are; arrays of *bytes* (uint8) for an image service are images, in any of the usual layouts:

    (c, h, w)  (n, c, h, w)        exactly the service's shape, channels in the service's order
    (h, w)  (h, w, k)  (n, h, w, k)    any size, as image libraries give them: k = 1 gray, 3 RGB, 4 RGBA
    (n, h, w)                      gray services only
"""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finode.errors import InputError
from finode.wire.directory import Color, InputSpec

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SUFFIXES = (".npy", ".json", *IMAGE_SUFFIXES)
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")

MAX_FILE_BYTES = 256 << 20
"""Larger input files are refused before they are read: 4096 inputs of a 3 x 224 x 224 image do not fit a query."""

MAX_IMAGE_PIXELS = 50_000_000
"""Larger than a camera's pictures: a small file that claims more would unpack to gigabytes."""

_MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

Floats = npt.NDArray[np.float64]


def load_input(path: Path, spec: InputSpec) -> Floats:
    """Return the tensor (batch, *spec.shape), float64 and finite, of a file.

    Raises `InputError` that names the file, what was expected and what was found.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown kind of input {suffix!r}", hint=f"use one of {', '.join(SUFFIXES)}")
    _check_size(path)
    if suffix in IMAGE_SUFFIXES:
        return image_to_tensor(_open_image(path, spec), spec)[np.newaxis]
    array = _load_npy(path) if suffix == ".npy" else _load_json(path)
    return to_tensor(array, spec, str(path))


def to_tensor(array: npt.NDArray[Any], spec: InputSpec, label: str = "the input") -> Floats:
    """Return an array of numbers, or of image bytes, as the tensor (batch, *spec.shape).

    Raises `InputError` that names `label` for a wrong shape or type, NaN and infinities.
    """
    if array.dtype.kind not in "fiu":
        raise InputError(f"{label}: an array of type {array.dtype}; numbers are needed")
    if array.dtype == np.uint8 and spec.color is not Color.NONE:
        return _bytes_to_tensor(array, spec, label)
    if array.shape == spec.shape:
        array = array[np.newaxis]
    if array.shape[1:] != spec.shape or array.ndim != 1 + len(spec.shape) or len(array) == 0:
        raise _wrong_shape(label, array, spec)
    tensor: Floats = array.astype(np.float64)
    if not np.isfinite(tensor).all():
        raise InputError(f"{label} has NaN or infinite values", hint="a missing value must be filled in first")
    return tensor


def image_to_tensor(image: Image.Image, spec: InputSpec) -> Floats:
    """Return one image, of any size, as a tensor of the shape `spec.shape`."""
    from PIL import Image as Pillow

    _, height, width = spec.shape
    image = image.convert("L" if spec.color is Color.GRAY else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Pillow.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float64).reshape(height, width, -1).transpose(2, 0, 1)
    return _normalize(pixels[::-1] if spec.color is Color.BGR else pixels, spec)


def _normalize(pixels: Floats, spec: InputSpec) -> Floats:
    """Scale and normalize bytes (..., channels, height, width), whose channels are in the service's order."""
    tensor = pixels * spec.scale
    if spec.mean:
        tensor = tensor - np.reshape(spec.mean, (-1, 1, 1))
    if spec.deviation:
        tensor = tensor / np.reshape(spec.deviation, (-1, 1, 1))
    return np.ascontiguousarray(tensor, dtype=np.float64)


def _bytes_to_tensor(array: npt.NDArray[Any], spec: InputSpec, label: str) -> Floats:
    from PIL import Image as Pillow

    if 0 in array.shape:
        raise _wrong_shape(label, array, spec)
    if array.shape == spec.shape:
        return _normalize(array.astype(np.float64), spec)[np.newaxis]
    if array.shape[1:] == spec.shape:
        return _normalize(array.astype(np.float64), spec)
    has_channels = array.shape[-1] in (1, 3, 4)
    if array.ndim == 2 or (array.ndim == 3 and has_channels):
        pictures = [array]
    elif (array.ndim == 4 and has_channels) or (array.ndim == 3 and spec.color is Color.GRAY):
        pictures = list(array)
    else:
        raise _wrong_shape(label, array, spec)
    pictures = [picture[..., 0] if picture.shape[2:] == (1,) else picture for picture in pictures]
    return np.stack([image_to_tensor(Pillow.fromarray(np.ascontiguousarray(p)), spec) for p in pictures])


def _wrong_shape(label: str, array: npt.NDArray[Any], spec: InputSpec) -> InputError:
    shape = ", ".join(map(str, spec.shape))
    return InputError(f"{label} has the shape {array.shape}; expected ({shape}) or (batch, {shape})")


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path} is not a file")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path} has {size} bytes, over the limit of {MAX_FILE_BYTES}", hint="ask in smaller batches")


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        # Mapped, because the header alone may claim any size; the mapping checks it against the file's.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, struct.error) as error:
        raise InputError(f"{path} is not a valid .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of several arrays", hint="save one array with numpy.save")
    return np.array(array)


def _load_json(path: Path) -> npt.NDArray[Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, list):
        raise InputError(f"{path} holds {type(values).__name__}; nested lists of numbers are needed")
    try:
        return np.asarray(values)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: the nested lists are not of equal length") from None


def _open_image(path: Path, spec: InputSpec) -> Image.Image:
    from PIL import Image as Pillow
    from PIL import ImageOps

    if spec.color is Color.NONE:
        shape = ", ".join(map(str, spec.shape))
        raise InputError(
            f"{path} is an image, but this service takes arrays",
            hint=f"give a .npy or .json of the shape ({shape}) or (batch, {shape})",
        )
    try:
        with warnings.catch_warnings():
            # Our own limit is below Pillow's; what else it warns of is metadata that we do not use.
            warnings.simplefilter("ignore")
            image = Pillow.open(path, formats=_IMAGE_FORMATS)
            with image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise InputError(
                        f"{path} has {image.width} x {image.height} pixels, over the limit of {MAX_IMAGE_PIXELS}",
                        hint="make it smaller first; it is resized for the model anyway",
                    )
                if image.mode not in _MODES_8_BIT:
                    raise InputError(f"{path} has pixels of kind {image.mode}", hint="convert it to 8 bits per channel")
                image.load()
                return ImageOps.exif_transpose(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Pillow.DecompressionBombError,
    ) as error:
        raise InputError(f"{path} is not an image that can be read: {error}") from None
