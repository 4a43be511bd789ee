"""Where a study runs, by its setting, and what a record calls it."""

import copy
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fpatch.runtime.memory import CUBLAS_WORKSPACE


def check_device(field: str, name: str) -> None:
    """Refuse what no device is called.

    Raises:
        ValueError: With the field and the value.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f'{field} must be "auto", "cpu", "cuda" or one GPU such as "cuda:1", got {name!r}')


def find_device(name: str) -> torch.device:
    """The device that a setting names; "auto" is the current GPU if there is one, and else the CPU.

    Raises:
        ValueError: If it asks for a GPU that is not there.
    """
    check_device("device", name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    index = torch.device(name).index if name != "auto" else None
    if not count or (index or 0) >= count:
        there = f"there are {count}, counted from 0" if count else f"torch {torch.__version__} finds none"
        raise ValueError(
            f'device: {name!r} asks for a GPU, and {there}; set device = "auto" or "cpu" (of a run: in its '
            "config.json), or install a driver and a torch with CUDA"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def describe_device(device: torch.device) -> str:
    """What a record says of it: "cpu", or the name of the GPU; the CPU's name has no part in any bit."""
    return "cpu" if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"


_TOO_LATE = (
    "cuBLAS was called in this process before anything deterministic was asked for, or the environment asks "
    f"it for something else; set {'='.join(CUBLAS_WORKSPACE)} before the program starts, as fpatch's own "
    "commands do"
)


@contextmanager
def deterministic_algorithms(asked: bool) -> Iterator[None]:
    """Ask torch for operations that give the same bits every time, if that is asked, and put it back.

    On a GPU an operation that has no such form is refused by torch, with its name. Of cuBLAS torch asks
    CUBLAS_WORKSPACE_CONFIG=:4096:8 (or :16:8) in the environment, which it reads once, at the first product
    of matrices in a process. It is set here where it is not set; a program that uses the GPU before, sets it
    itself, or is refused by torch.

    Raises:
        RuntimeError: By torch, for what is not deterministic.
    """
    if not asked:
        yield
        return
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" in str(error):
            error.add_note(_TOO_LATE)
        raise
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def copy_to(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy on a device, around those tensors that are there already; the model itself, if all are."""
    if all(t.to(device) is t for t in (*model.parameters(), *model.buffers())):
        return model
    copied = copy_network(model, lambda t: t.to(device))
    return copied.to(device)  # some models move more than these tensors


def copy_network(model: torch.nn.Module, change: Callable[[Tensor], Tensor]) -> torch.nn.Module:
    """A copy of the modules around what becomes of every parameter and buffer; the same tensor is shared."""
    tensors: dict[int, Tensor] = {id(t): change(t.detach()) for t in (*model.parameters(), *model.buffers())}
    tensors |= {id(t): torch.nn.Parameter(tensors[id(t)], t.requires_grad) for t in model.parameters()}
    return copy.deepcopy(model, tensors)
