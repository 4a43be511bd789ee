"""The allocator, in processes of its own, because it cannot be undone."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from fpatch.runtime.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(2**23, np.float32)  # 32 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
done = keep_freed_memory()
faults()
print(int(done), plain, faults())
"""


def run(**environment: str) -> tuple[bool, int, int]:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    done, plain, kept = map(int, out.stdout.split())
    return bool(done), plain, kept


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_not_cleared_by_the_kernel_again() -> None:
    done, plain, kept = run()
    if not done:
        pytest.skip("another C library")
    assert kept < plain / 20


def test_an_allocator_chosen_by_the_environment_is_left_alone() -> None:
    done, _, _ = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not done
