"""The execution, on which the last bits of results depend: recorded, compared and recreated."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import PIL
import torch

from fpatch.core.version import __version__


class Execution(NamedTuple):
    """The facts of a process on which the last bits of images and results depend.

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

    @staticmethod
    def current(block: int, device: str = "cpu") -> "Execution":
        """Return the execution of this process."""
        import torchvision  # a late import: it takes a second, and most victims do not need it

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
        )

    def differences(self, other: "Execution") -> list[str]:
        """Compare a recorded execution with another; return a sentence for each difference."""
        pairs = zip(self._asdict().items(), other, strict=True)
        return [
            f"{name}: {mine} was recorded, {theirs} is here"
            for (name, mine), theirs in pairs
            if mine != theirs
        ]

    @contextmanager
    def recreated(self, device: str = "cpu") -> Iterator[list[str]]:
        """Recreate the recorded number of threads within a `with` block; yield the remaining differences.

        Args:
            device: The device in this process.

        Yields:
            A sentence for each difference.
        """
        with with_threads(self.threads):
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
