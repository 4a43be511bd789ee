"""The state of torch in the calling program, on which no result depends."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

_DEVICES = ("cpu", "cuda")


@contextmanager
def plain_torch(autocast: bool = False, grad: bool = False) -> Iterator[None]:
    """Compute as in a new process within a `with` block, or in a function that this decorates.

    Tensors are made in float32 on the CPU unless code says otherwise, whatever default type or device the
    calling program has set. A compiled function is left as it is.

    Args:
        autocast: Leave the program's `torch.autocast` on, such as for a victim; else it is off.
        grad: Record gradients, even within `torch.no_grad` or `torch.inference_mode`.

    Example:
        >>> import torch
        >>> from fpatch.core.plain import plain_torch
        >>> with torch.autocast("cpu", torch.bfloat16), plain_torch():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    if torch.compiler.is_compiling():
        yield
        return
    with ExitStack() as stack:
        if grad:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in () if autocast else _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_SINGLE)
        yield


class _Single:
    """The default type float32, until the last of all threads has left the block."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
                if self._before is not torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._before is not torch.float32:
                torch.set_default_dtype(self._before)


_SINGLE = _Single()
