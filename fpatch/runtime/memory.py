"""Memory, as a process is told to use it before its first step.

A step allocates some hundred tensors of the size of a batch. By default glibc maps each of them anew and
unmaps it when it is freed, and the kernel clears every page at its first touch: on a CPU that can take longer
than the arithmetic.
"""

import ctypes
import os
import sys

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""The memory that cuBLAS works in, for the same bits every time; it reads the environment once, at its first
call in a process. See `fpatch.runtime.device.deterministic_algorithms`."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it allocates next.

    No result changes. The process stays as large as it once was. The command line does this by itself; a
    program of one's own calls it once, before its first step. An allocator that was chosen by the
    environment (`MALLOC_MMAP_THRESHOLD_=131072 fpatch train ...`) is left as it is.

    Returns:
        Whether it was done: with glibc, and unless the environment says otherwise.

    References:
        The GNU C Library manual, section 3.2.3.7, Malloc Tunable Parameters.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
