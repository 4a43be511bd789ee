"""Devices: the setting, its name in records, deterministic algorithms and copies of networks."""

import copy
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fpatch.runtime.memory import CUBLAS_WORKSPACE


def check_device(field: str, name: str) -> None:
    """Check the name of a device.

    Raises:
        ValueError: If it is none; the message names the field and the value.

    Example:
        >>> from fpatch.runtime.device import check_device
        >>> check_device("train.device", "gpu")
        Traceback (most recent call last):
        ValueError: train.device must be "auto", "cpu", "cuda" or one GPU such as "cuda:1", got 'gpu'
    """
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise ValueError(f'{field} must be "auto", "cpu", "cuda" or one GPU such as "cuda:1", got {name!r}')


def find_device(name: str) -> torch.device:
    """Return the device of a setting; "auto" is the current GPU if there is one, else the CPU.

    Raises:
        ValueError: If the name is none of a device, or the GPU does not exist.

    Example:
        >>> from fpatch.runtime.device import find_device
        >>> find_device("cpu")
        device(type='cpu')
    """
    check_device("device", name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    index = torch.device(name).index if name != "auto" else None
    if not count or (index or 0) >= count:
        there = f"there are {count}, counted from 0" if count else f"torch {torch.__version__} finds none"
        raise ValueError(
            f'device: {name!r} asks for a GPU, and {there}; set device = "auto" or "cpu" (every command '
            "takes --device cpu), or install a driver and a torch with CUDA"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def describe_device(device: torch.device) -> str:
    """Return the name of a device for records: "cpu", or the GPU's model.

    Example:
        >>> import torch
        >>> from fpatch.runtime.device import describe_device
        >>> describe_device(torch.device("cpu"))
        'cpu'
    """
    return "cpu" if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"


_TOO_LATE = (
    "cuBLAS was called in this process before deterministic algorithms were switched on, or the environment "
    f"sets another workspace; set {'='.join(CUBLAS_WORKSPACE)} before the program starts, as fpatch's own "
    "commands do"
)


@contextmanager
def deterministic_algorithms(asked: bool) -> Iterator[None]:
    """Switch torch's deterministic algorithms on within a `with` block, and restore the setting after it.

    On a GPU torch refuses an operation that has no deterministic form. For cuBLAS it requires
    CUBLAS_WORKSPACE_CONFIG=:4096:8 (or :16:8) in the environment, which cuBLAS reads at the first matrix
    product of a process. The variable is set here if it is absent. A program that uses the GPU earlier must
    set it before.

    Args:
        asked: Whether to switch them on; False changes nothing.

    Raises:
        RuntimeError: By torch, for an operation that is not deterministic.

    Example:
        >>> import torch
        >>> from fpatch.runtime.device import deterministic_algorithms
        >>> with deterministic_algorithms(True):
        ...     torch.are_deterministic_algorithms_enabled()
        True
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
    """Copy a model to a device, without copies of the tensors on it; return the model itself if all are.

    Example:
        >>> import torch
        >>> from fpatch.runtime.device import copy_to
        >>> model = torch.nn.Linear(2, 3)
        >>> copy_to(model, torch.device("cpu")) is model
        True
    """
    if all(t.to(device) is t for t in (*model.parameters(), *model.buffers())):
        return model
    copied = copy_network(model, lambda t: t.to(device))
    return copied.to(device)  # some models move more than these tensors


def copy_network(model: torch.nn.Module, change: Callable[[Tensor], Tensor]) -> torch.nn.Module:
    """Copy a model with every parameter and buffer mapped; shared tensors stay shared.

    Args:
        model: The model; it is left as it is.
        change: Maps a detached parameter or buffer to that of the copy.

    Example:
        >>> import torch
        >>> from fpatch.runtime.device import copy_network
        >>> copy_network(torch.nn.Linear(2, 3), lambda x: x.double()).weight.dtype
        torch.float64
    """
    tensors: dict[int, Tensor] = {id(t): change(t.detach()) for t in (*model.parameters(), *model.buffers())}
    tensors |= {id(t): torch.nn.Parameter(tensors[id(t)], t.requires_grad) for t in model.parameters()}
    return copy.deepcopy(model, tensors)
