"""A device that is not there: tensors on it compute on the processor, under a GPU's rules.

torch keeps a kind of device for backends written in Python (PrivateUse1). A tensor "on" it here wraps one of the
processor, and every operation passes through `Accelerated.__torch_dispatch__`, which enforces what CUDA would:

- operands are all on the device, or numbers; mixing in a tensor of the processor fails;
- there are no products of integer matrices;
- numpy sees nothing of it: `.cpu()` comes first (torch itself refuses the rest).

So a program that runs on it, bit for bit as on the processor, keeps its tensors together as it must on a GPU. What it
cannot show is whether CUDA has a kernel for each operation, and how fast it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND = "privateuseone"
_PRODUCTS = ("aten.mm.", "aten.bmm.", "aten.mv.", "aten.dot.", "aten.addmm.", "aten.baddbmm.", "aten.convolution.")


class Accelerated(Tensor):
    """A tensor on the device; `held` is what it wraps."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Accelerated:
        made: Accelerated = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(KIND, 0),
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override] # torch asks for contents of which there are none here
        return f"Accelerated({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch calls it as a class method, whatever its stub says
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's __init_subclass__
    """Catches what takes no tensor of the device but makes one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        target = given.get("device")
        on_device = any(isinstance(leaf, Accelerated) for leaf in tree_flatten((args, given))[0])
        if not on_device and (target is None or torch.device(target).type != KIND):
            return func(*args, **given)
        with _disable_current_modes():
            return _run(func, args, given)


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    operands = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    target = kwargs.get("device")
    if not str(func).startswith("aten._to_copy."):
        for operand in operands:
            if not isinstance(operand, Accelerated) and operand.dim():
                raise RuntimeError(f"{func}: a tensor of the processor, {tuple(operand.shape)}, among a device's")
    if str(func).startswith(_PRODUCTS) and not all(operand.is_floating_point() for operand in operands):
        raise RuntimeError(f'"{func}" not implemented for integers')
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if target is not None and torch.device(target).type == "cpu":
        return out
    return tree_map(lambda leaf: Accelerated(leaf) if isinstance(leaf, Tensor) else leaf, out)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Accelerated) else leaf


@cache
def _register() -> None:
    """Tell torch once in this process that there is such a backend."""
    _setup_privateuseone_for_python_backend()


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """Give the device for as long as the body lasts."""
    _register()
    with _Mode():  # type: ignore[no-untyped-call]
        yield torch.device(KIND, 0)
