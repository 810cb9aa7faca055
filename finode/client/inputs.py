"""A person's input as the API's compact tensor.

Takes a numpy array, nested lists of numbers, or a torch tensor (anything with `.detach().cpu().numpy()` or
`.numpy()`: torch itself is never imported here), checks what can be checked without the daemon, and keeps small
types small: uint8 and float32 travel as they are.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from finode.errors import InputError

_KEPT: Final = ("float32", "float16", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def compact(x: object) -> dict[str, Any]:
    """Return `shape`, `dtype` and `data` of an input; raise `InputError` if it is no array of finite numbers."""
    array = as_array(x)
    dtype = array.dtype.newbyteorder("<") if array.dtype.name in _KEPT else np.dtype("<f8")
    data = np.ascontiguousarray(array, dtype)
    return {"shape": list(data.shape), "dtype": dtype.str, "data": base64.b64encode(data.tobytes()).decode("ascii")}


def as_array(x: object) -> npt.NDArray[Any]:
    """Return an input as a numpy array of finite numbers."""
    for step in ("detach", "cpu", "numpy"):
        method = getattr(x, step, None)
        if callable(method) and not isinstance(x, np.ndarray):
            x = method()
    try:
        array = np.asarray(x)
    except (ValueError, TypeError):
        raise InputError("the input is not rectangular: its rows differ in length") from None
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise InputError(f"the input is not made of numbers but of {array.dtype.name}")
    if array.size == 0 or array.ndim == 0:
        raise InputError(f"the input is empty or a single number: its shape is {array.shape}")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"the input is not finite: NaN or infinity at {where}")
    return array
