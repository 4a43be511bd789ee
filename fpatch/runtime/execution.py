"""The execution, on which the last bits of results depend: recorded, compared and recreated."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import PIL
import torch

from fpatch.core.version import __version__
from fpatch.runtime import processor
from fpatch.runtime.portable import ENVIRONMENT, portable_kernels, started_portable

_OF_PROCESSOR = ("vendor", "model", "instructions")
"""Facts on which no bit of a portable execution depends."""


class Execution(NamedTuple):
    """The facts of a process on which the last bits of images and results depend.

    Records of earlier versions lack the fields from `vendor` on; these are "".

    Attributes:
        block: Rows that run together.
        threads: Threads of the math library.
        cpu: Instruction set of the math library.
        device: "cpu", or the name of a GPU.
        torch: Version.
        torchvision: Version.
        numpy: Version.
        pillow: Version.
        python: Version.
        fpatch: Version.
        vendor: Maker of the processor.
        model: Name, family, model and stepping of the processor.
        instructions: Instruction sets of the processor.
        mkl: Version and settings of MKL.
        onednn: Version and settings of oneDNN, or "off".
        kornia: Version.

    Example:
        >>> from fpatch.runtime.execution import Execution
        >>> recorded = Execution(16, 1, "AVX2", "cpu", *["1.0"] * 6)
        >>> recorded.differences(recorded._replace(threads=2))
        ['threads: 1 was recorded, 2 is here']
    """

    block: int
    threads: int
    cpu: str
    device: str
    torch: str
    torchvision: str
    numpy: str
    pillow: str
    python: str
    fpatch: str
    vendor: str = ""
    model: str = ""
    instructions: str = ""
    mkl: str = ""
    onednn: str = ""
    kornia: str = ""

    @staticmethod
    def current(block: int, device: str = "cpu") -> "Execution":
        """Return the execution of this process."""
        import kornia  # late imports: they take a second, and most victims do not need them
        import torchvision

        return Execution(
            block=block,
            threads=torch.get_num_threads(),
            cpu=torch.backends.cpu.get_cpu_capability(),
            device=device,
            torch=torch.__version__,
            torchvision=torchvision.__version__,
            numpy=np.__version__,
            pillow=PIL.__version__,
            python=platform.python_version(),
            fpatch=__version__,
            vendor=processor.vendor(),
            model=processor.model(),
            instructions=processor.instructions(),
            mkl=processor.mkl(),
            onednn=processor.onednn(),
            kornia=kornia.__version__,
        )

    @property
    def portable(self) -> bool:
        """True if every x86-64 processor gives the same bits; see `fpatch.runtime.portable`."""
        setting = f"MKL_CBWR={ENVIRONMENT['MKL_CBWR']}"
        plain = self.cpu == "DEFAULT" and self.device == "cpu" and self.onednn == "off"
        return plain and setting in self.mkl.split(", ")

    def differences(self, other: "Execution") -> list[str]:
        """Compare a recorded execution with another; return a sentence for each difference.

        A fact that was not recorded is no difference.
        """
        free = _OF_PROCESSOR if self.portable and other.portable else ()
        pairs = zip(self._asdict().items(), other, strict=True)
        return [
            f"{name}: {mine} was recorded, {theirs} is here"
            for (name, mine), theirs in pairs
            if mine not in ("", theirs) and name not in free
        ]

    @contextmanager
    def recreated(self, device: str = "cpu") -> Iterator[list[str]]:
        """Recreate the recorded threads and kernels within a `with` block; yield the remaining differences.

        Args:
            device: The device in this process.

        Yields:
            A sentence for each difference.
        """
        portable = self.portable and started_portable() and device == "cpu"
        with with_threads(self.threads), portable_kernels(portable, device):
            yield self.differences(Execution.current(self.block, device))


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Give torch this number of threads within a `with` block.

    Sums over several threads depend on their number. On a busy machine, small tensors are far faster with one
    thread, since threads that wait for each other keep the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
