"""A portable execution: the same bits on x86-64 processors of all makers and generations.

Math libraries choose their kernels by the instructions of the processor, and each kernel rounds in its own
order. The portable execution takes the one choice that every processor has: MKL's compatible branch, torch's
kernels without special instructions, and neither oneDNN nor NNPACK. The first two are settings of the
environment that must be made before Python starts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ENVIRONMENT = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"}
"""Variables that a portable process is started with.

References:
    Intel oneMKL Developer Guide, "Obtaining Numerically Reproducible Results": conditional numerical
    reproducibility (CNR), branch COMPATIBLE.
"""


def started_portable() -> bool:
    """Return whether this process was started with the environment of the portable execution.

    Example:
        >>> from fpatch.runtime.portable import started_portable
        >>> started_portable()
        False
    """
    given = os.environ.get("MKL_CBWR") == ENVIRONMENT["MKL_CBWR"]
    return given and torch.backends.cpu.get_cpu_capability() == "DEFAULT"


@contextmanager
def portable_kernels(asked: bool, device: str = "cpu") -> Iterator[None]:
    """Compute by portable kernels within a `with` block.

    Args:
        asked: Whether to; False changes nothing.
        device: The device of the networks.

    Raises:
        ValueError: If the process was not started for it, or the device is a GPU.

    Example:
        >>> from fpatch.runtime.portable import portable_kernels
        >>> with portable_kernels(True):
        ...     pass
        Traceback (most recent call last):
        ValueError: evaluate.portable: this process uses the instructions of its own processor; ...
    """
    if not asked:
        yield
        return
    if device != "cpu":
        raise ValueError(f'evaluate.portable needs a CPU, got {device}; set device = "cpu"')
    if not started_portable():
        settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        raise ValueError(
            "evaluate.portable: this process uses the instructions of its own processor; start Python with "
            f"{settings}, or use the command `fpatch evaluate`"
        )
    before = torch._C._get_mkldnn_enabled(), torch._C._get_nnpack_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_nnpack_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_nnpack_enabled(before[1])
