"""Weight files: a model's weights as raw float64, written so that a crash leaves a whole file or none.

    magic "FINODEW1" | u32 header length | header | data                 little-endian

The header is the canonical encoding of the names and shapes in the plan's order; the data follow in that order,
little-endian float64, C order. The file's digest is kept elsewhere (the registry) and checked when it is read.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finode.errors import ModelError, StorageFull
from finode.smpc.plan import WeightSpec
from finode.wire import canonical

Weights = dict[str, npt.NDArray[np.float64]]
TEMPORARY_SUFFIX = ".partial"
_MAGIC = b"FINODEW1"
_LENGTH = struct.Struct("<I")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def encode_weights(specs: Sequence[WeightSpec], weights: Mapping[str, npt.NDArray[np.float64]]) -> bytes:
    """Return the bytes of a weight file; raise `ModelError` if the weights are not those that `specs` state."""
    if set(weights) != {spec.name for spec in specs}:
        raise ModelError(f"the weights {sorted(weights)} are not those of the plan")
    header = _header(specs)
    parts = [_MAGIC, _LENGTH.pack(len(header)), header]
    for spec in specs:
        array = weights[spec.name]
        if array.shape != spec.shape:
            raise ModelError(f"weight {spec.name!r} has the shape {array.shape}, the plan says {spec.shape}")
        parts.append(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return b"".join(parts)


def decode_weights(data: bytes, specs: Sequence[WeightSpec], path: Path) -> Weights:
    """Return the weights in a file's bytes; raise `ModelError` that names `path` if they are not those of `specs`."""
    header = _header(specs)
    start = len(_MAGIC) + _LENGTH.size + len(header)
    size = 8 * sum(spec.numel for spec in specs)
    if len(data) != start + size or data[:start] != _MAGIC + _LENGTH.pack(len(header)) + header:
        raise ModelError(f"{path} does not hold the weights of its plan", hint="remove the model and add it again")
    weights: Weights = {}
    for spec in specs:
        values = np.frombuffer(data, dtype="<f8", count=spec.numel, offset=start)
        weights[spec.name] = values.astype(np.float64).reshape(spec.shape)
        start += 8 * math.prod(spec.shape)
    return weights


def _header(specs: Sequence[WeightSpec]) -> bytes:
    return canonical.encode([[spec.name, list(spec.shape)] for spec in specs])


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` with mode 0600: a temporary file beside it, fsync, rename, fsync of the folder.

    Raises `StorageFull` when the disk is full, `ModelError` for another failure; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise storage_error(error, path) from None


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path) -> StorageFull | ModelError:
    """Return the error that tells a person what the system said of `path`."""
    if error.errno in _FULL:
        return StorageFull(f"no space left for {path}", hint="free some disk space; nothing was changed")
    return ModelError(f"cannot write {path}: {error.strerror or error}", hint="check the home's owner and permissions")
