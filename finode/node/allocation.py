"""How a worker's C library hands out memory: large tensors from memory that the process keeps, not from fresh pages.

glibc takes a block above a threshold from the system for itself, and gives it back when it is freed; so every tensor of
a few megabytes that a round makes begins with a page fault for each 4 KiB of it. For a batch of 32 of five LeNets that
was a third of all computing. A worker therefore keeps what it freed, up to a limit, and takes its tensors from there.

Set by environment variables [mallopt(3)], which glibc reads at a process's start and other C libraries ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from finode.wire.message import MIB

MMAP_THRESHOLD_BYTES: Final = 32 * MIB
"""The most that every version of glibc takes. What is larger (a bundle's corrections, a large model's weights) goes
back to the system as soon as it is freed."""
TRIM_THRESHOLD_BYTES: Final = 256 * MIB
"""Freed memory that a worker keeps: a round's tensors and a run's material come out of it."""

_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
    }
)


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: the daemon's own, whose settings for malloc come before ours."""
    return {**_SETTINGS, **environment}
