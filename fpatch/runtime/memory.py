"""Memory settings of a process, made before its first step.

A step allocates about a hundred tensors of the size of a batch. By default glibc maps memory for each tensor
and unmaps it when the tensor is freed. The kernel clears every page at its first touch. On a CPU that can
take longer than the arithmetic.
"""

import ctypes
import os
import sys

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""The workspace of cuBLAS for deterministic results; cuBLAS reads the environment at its first call in a
process. See `fpatch.runtime.device.deterministic_algorithms`."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for its next allocations.

    Results do not change. The process keeps its largest size. The command line calls this function; another
    program calls it once, before its first step. An allocator that the environment configures
    (`MALLOC_MMAP_THRESHOLD_=131072 fpatch train ...`) is left unchanged.

    Returns:
        Whether the setting was made: with glibc, unless the environment configures the allocator.

    Example:
        >>> import fpatch
        >>> kept = fpatch.keep_freed_memory()
        >>> isinstance(kept, bool)
        True

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
