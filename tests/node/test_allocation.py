from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from finode.node.allocation import MMAP_THRESHOLD_BYTES, worker_environment

# Faults of 10,000 pages in five arrays, made and freed ten times, after a first time.
_FAULTS = """
import resource
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds(count):
    for _ in range(count):
        [np.ones(1_024_000) for _ in range(5)]

rounds(1)
before = faults()
rounds(10)
print(faults() - before)
"""


def test_what_the_operator_set_stays() -> None:
    environment = worker_environment({"MALLOC_TRIM_THRESHOLD_": "0", "PATH": "/bin"})

    assert environment == {
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
        "PATH": "/bin",
    }


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc has no such settings")
def test_a_worker_takes_large_tensors_from_memory_that_it_has() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _FAULTS], env=worker_environment({}), capture_output=True, text=True, check=True
    )

    assert int(ran.stdout) < 10_000
