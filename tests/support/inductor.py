"""Where torch's inductor can compile for the CPU."""

import pytest
import torch

with_inductor = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch 2.14's inductor writes at::vec without its header where no vector instructions are used",
)
