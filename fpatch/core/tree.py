"""Looking at tensors and at trees of them."""

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor has no values to read, at whatever cost.

    True while compiling or exporting, inside a `torch.func` transform that wraps the tensor, and for a
    subclass such as a fake tensor.
    """
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or torch.func.debug_unwrap(tensor) is not tensor
    )


def is_concrete(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read on the host, now and at no cost: not traced, on the CPU."""
    return not is_traced(tensor) and tensor.device.type == "cpu"


def device_of(tree: Any) -> torch.device:
    """Where the first tensor of a tree is; the CPU if there is none."""
    return next((leaf.device for leaf in optree.tree_leaves(tree)), torch.device("cpu"))


def to_device(tree: Any, device: torch.device | str) -> Any:
    """The same tree with every tensor on a device; those that are there already are not copied.

    A copy to a GPU does not wait for what the GPU is doing; one to the CPU does, so that it can be read.
    """
    on_host = torch.device(device).type == "cpu"
    return optree.tree_map(lambda x: x.to(device, non_blocking=not on_host), tree)


def constant(values: Any, like: Tensor) -> Tensor:
    """Numbers as a tensor of the type and on the device of another.

    `like.new_tensor(values)` does the same, and waits until a GPU has done all that it was given.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def flatten_rows(
    function: Callable[..., Any], num_members: int, in_dims: tuple[int | None, ...], *inputs: Tensor
) -> Any:
    """A rule for vmap over a function of rows: a population of p members with b rows each is p * b rows.

    Args:
        function: From tensors [n, ...] to a tensor, or a tree of tensors, [n, ...], row by row.
        num_members: p.
        in_dims: Where each input has its axis of members; None for one that all members share.
        *inputs: Tensors [b, ...] with the axis of members inserted.

    Returns:
        What the function returns, as [p, b, ...].
    """
    rows = [
        x.expand(num_members, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(inputs, in_dims, strict=True)
    ]
    outputs = function(*(x.flatten(0, 1) for x in rows))
    return optree.tree_map(lambda x: x.unflatten(0, (num_members, -1)), outputs)


def check_sampled(field: str, sampled: Tensor, largest: float) -> None:
    """Refuse a sample, an edited one say, that is larger than what the stage was configured for.

    Raises:
        ValueError: With the field and the value, where values can be read.
    """
    if is_concrete(sampled) and bool((sampled > largest).any()):
        found = float(sampled.max())
        raise ValueError(f"{field} must be at most {largest:g}, as configured, got {found:g}")


def take_rows(tree: Any, rows: Any) -> Any:
    """The rows of every tensor in a batch or a sample."""
    return optree.tree_map(lambda x: x[rows], tree)
