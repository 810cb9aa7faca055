"""Where the native engine computes: the processor, or a GPU (`device = "cuda"`).

Randomness is expanded, and bytes are read and written, on the processor: cryptographic streams, frames and shares are
the same wherever the tensors between them live. What a gate makes itself it makes on the device of its operands. Ring
products are exact on either (ring_products.py), so a party or a dealer with a GPU gives the very bits that one without
would give, and the others cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from finode.errors import ConfigError, FinodeError
from finode.smpc import ring_products

CPU: Final = torch.device("cpu")
NAMES: Final = ("cpu", "cuda")
_CHECKED_SIZE = 48
"""Rows and columns of the product that a device is tried with; its inner dimension has the longest exact sum twice."""


def open_device(name: str) -> torch.device:
    """Return the device `name`: "cpu", or "cuda", the first of CUDA_VISIBLE_DEVICES, after a trial of its products.

    Raises `ConfigError` that says what to do when there is no such device, or when it does not multiply exactly.
    """
    if name not in NAMES:
        raise ConfigError(f"[node] device = {name!r}: it is one of {', '.join(NAMES)}")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(
            f'[node] device = "cuda", but torch {torch.__version__} finds no GPU that it can use',
            hint="see that `nvidia-smi` lists one and that torch is built for it (python -c 'import torch; "
            'print(torch.version.cuda, torch.cuda.is_available())\'), or set device = "cpu"',
        )
    device = torch.device("cuda")
    check_products(device)
    return device


def check_products(device: torch.device) -> None:
    """Raise `ConfigError` unless products of the largest elements come out on `device` as they do on the processor.

    They are exact wherever float64 is that of IEEE 754. A library that computes float64 from narrower numbers, as some
    can be told to, would spoil every answer without a word.
    """
    inner = 2 * ring_products.LONGEST_SUM
    elements = torch.arange(_CHECKED_SIZE * inner) * -7046029254386353131 - (1 << 63)  # an odd factor: all differ
    a = elements.reshape(_CHECKED_SIZE, inner)
    a[0], a[1] = ring_products.LARGEST, -(1 << 63)
    b = a.flip(0).T.contiguous()
    if not torch.equal(ring_products.by_limbs(a.to(device), b.to(device)).cpu(), a @ b):
        raise ConfigError(
            f"the device {device} does not multiply float64 exactly, so it cannot compute on shares",
            hint='switch off what its libraries emulate float64 with, or set [node] device = "cpu"',
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to be told of an error of the device; `lost`: nothing that this process does on it will work again."""

    error: FinodeError
    lost: bool


def fault_of(error: BaseException) -> Fault | None:
    """Return what an exception says about the device; None for one that says nothing about it."""
    if isinstance(error, torch.OutOfMemoryError):
        told = FinodeError(
            "the GPU's memory is used up",
            hint="lower [party] session_memory_mb and pool_memory_mb, [node] capacity or workers: all share the GPU",
        )
        return Fault(told, lost=False)
    if isinstance(error, torch.AcceleratorError):
        told = FinodeError("the GPU failed; a new worker starts", hint="see the daemon's log, nvidia-smi and dmesg")
        return Fault(told, lost=True)
    return None
