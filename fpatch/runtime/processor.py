"""The processor of this machine, and the settings of the libraries that compute on it."""

import os
import platform
import re
from functools import cache
from pathlib import Path

import torch

_INSTRUCTIONS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512", "amx", "neon", "asimd", "sve")
"""Instruction sets that math libraries choose their kernels by, in the names of /proc/cpuinfo."""


@cache
def vendor() -> str:
    """Return the maker of the processor, such as "GenuineIntel"; "" if the system does not tell."""
    return _read_cpuinfo().get("vendor_id", _read_cpuinfo().get("CPU implementer", ""))


@cache
def model() -> str:
    """Return the processor's name with its family, model and stepping; "" if the system does not tell."""
    facts = _read_cpuinfo()
    name = facts.get("model name", platform.processor())
    numbers = [facts[field] for field in ("cpu family", "model", "stepping") if field in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


@cache
def instructions() -> str:
    """Return the processor's instruction sets, separated by blanks; "" if the system does not tell.

    Example:
        >>> from fpatch.runtime import processor
        >>> processor.instructions() == " ".join(processor.instructions().split())
        True
    """
    facts = _read_cpuinfo()
    flags = facts.get("flags", facts.get("Features", "")).split()
    return " ".join(sorted(flag for flag in flags if flag.startswith(_INSTRUCTIONS)))


@cache
def _read_cpuinfo() -> dict[str, str]:
    """Read the first processor of /proc/cpuinfo; {} on systems without that file."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def mkl() -> str:
    """Return the version of MKL in torch, and the environment's settings of it."""
    found = re.search(r"Math Kernel Library Version (\S+)", torch.__config__.show())
    return _with_settings(found[1] if found else "none", "MKL_")


def onednn() -> str:
    """Return the version of oneDNN in torch and its settings, or "off"; NNPACK counts as a part of it."""
    if not torch.backends.mkldnn.is_available() or not torch._C._get_mkldnn_enabled():
        return "off" if not _nnpack_is_on() else "off, NNPACK on"
    found = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    return _with_settings(found[1] if found else "unknown", "ONEDNN_", "DNNL_")


def _nnpack_is_on() -> bool:
    return torch.backends.nnpack.is_available() and torch._C._get_nnpack_enabled()


def _with_settings(version: str, *prefixes: str) -> str:
    given = sorted(f"{n}={v}" for n, v in os.environ.items() if n.startswith(prefixes))
    return ", ".join([version, *given])
