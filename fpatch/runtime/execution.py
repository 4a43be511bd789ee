"""How something was run: what its last bits depend on, recorded, compared and recreated."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import PIL
import torch

from fpatch.core.version import __version__


class Execution(NamedTuple):
    """What images and results depend on beside their sample, in the last bits.

    Attributes:
        block: Rows that run together.
        threads: Threads of the math library.
        cpu: Instruction set that it chose.
        device: Where it ran: "cpu", or the name of a GPU.
        torch: Version.
        torchvision: Version.
        numpy: Version.
        pillow: Version.
        python: Version.
        fpatch: Version.
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
        """This process's."""
        import torchvision  # takes a second, and most victims do without

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
        """What is not the same, a sentence each."""
        pairs = zip(self._asdict().items(), other, strict=True)
        return [
            f"{name}: {mine} was recorded, {theirs} is here"
            for (name, mine), theirs in pairs
            if mine != theirs
        ]

    @contextmanager
    def recreated(self, device: str = "cpu") -> Iterator[list[str]]:
        """Run as recorded, as far as this process can; yields what is not the same, a sentence each.

        Args:
            device: Where it will run.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield self.differences(Execution.current(self.block, device))
        finally:
            torch.set_num_threads(threads)
