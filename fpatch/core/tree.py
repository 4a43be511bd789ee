"""Helpers for tensors and trees of tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import optree
import torch
from safetensors.torch import save
from torch import Tensor

from fpatch.core.checks import check_label


def is_traced(tensor: Tensor) -> bool:
    """Return whether a tensor is symbolic: it has no values that could be read.

    True while compiling or exporting, inside a `torch.func.vmap` over the tensor, and for a subclass such as
    a fake tensor. `torch.func.grad` leaves the values readable, as plain autograd does.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import is_traced
        >>> seen = []
        >>> _ = torch.func.vmap(lambda x: seen.append(is_traced(x)) or x)(torch.zeros(3))
        >>> seen, is_traced(torch.zeros(3))
        ([True], False)
    """
    if torch.compiler.is_compiling():
        return True
    while torch._C._functorch.is_gradtrackingtensor(tensor):  # type: ignore[attr-defined]
        tensor = torch.func.debug_unwrap(tensor, recurse=False)
    return type(tensor) not in (Tensor, torch.nn.Parameter) or torch.func.debug_unwrap(tensor) is not tensor


def is_concrete(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be read without waiting: not traced, and on the CPU.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import is_concrete
        >>> is_concrete(torch.zeros(3)), is_concrete(torch.zeros(3, device="meta"))
        (True, False)
    """
    return not is_traced(tensor) and tensor.device.type == "cpu"


def device_of(tree: Any) -> torch.device:
    """Return the device of the first tensor of a tree; the CPU for an empty tree.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import device_of
        >>> device_of({"hood": torch.zeros(3, device="meta")})
        device(type='meta')
    """
    return next((leaf.device for leaf in optree.tree_leaves(tree)), torch.device("cpu"))


def to_device(tree: Any, device: torch.device | str) -> Any:
    """Copy the tensors of a tree to a device; tensors on that device are shared.

    A copy to a GPU is asynchronous. A copy to the CPU waits until its values can be read.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import to_device
        >>> patch = {"hood": torch.zeros(3)}
        >>> to_device(patch, "cpu")["hood"] is patch["hood"]
        True
    """
    on_host = torch.device(device).type == "cpu"
    return optree.tree_map(lambda x: x.to(device, non_blocking=not on_host), tree)


def constant(values: Any, like: Tensor) -> Tensor:
    """Make a tensor of numbers, of the dtype and on the device of another tensor.

    `like.new_tensor(values)` gives the same tensor, but synchronizes with a GPU.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import constant
        >>> constant([0.25, 0.5], like=torch.zeros(3, dtype=torch.float64))
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def flatten_rows(
    function: Callable[..., Any], num_members: int, in_dims: tuple[int | None, ...], *inputs: Tensor
) -> Any:
    """Apply a function of rows to a population: p members with b rows each become p * b rows.

    Args:
        function: Maps tensors [n, ...] to a tensor, or a tree of tensors, [n, ...]; rows are independent.
        num_members: p.
        in_dims: The axis of members of each input; None for an input that all members share.
        *inputs: Tensors [b, ...] with the axis of members inserted.

    Returns:
        The outputs of the function, as [p, b, ...].

    Example:
        >>> import torch
        >>> from fpatch.core.tree import flatten_rows
        >>> image, gain = torch.ones(4, 3), torch.ones(4, 2, 3)
        >>> flatten_rows(torch.mul, 2, (None, 1), image, gain).shape
        torch.Size([2, 4, 3])
    """
    rows = [
        x.expand(num_members, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(inputs, in_dims, strict=True)
    ]
    outputs = function(*(x.flatten(0, 1) for x in rows))
    return optree.tree_map(lambda x: x.unflatten(0, (num_members, -1)), outputs)


def check_sampled(field: str, sampled: Tensor, largest: float) -> None:
    """Check that an edited sample does not exceed the largest value in the config of its stage.

    Values that cannot be read, while compiling or on a GPU, are not checked.

    Raises:
        ValueError: If it does; the message names the field and the value.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import check_sampled
        >>> check_sampled("blur/sigma_px", torch.tensor([1.0, 9.0]), largest=4.0)
        Traceback (most recent call last):
        ValueError: blur/sigma_px must be at most 4, as configured, got 9
    """
    if is_concrete(sampled) and bool((sampled > largest).any()):
        found = float(sampled.max())
        raise ValueError(f"{field} must be at most {largest:g}, as configured, got {found:g}")


def check_labels(field: str, labels: Tensor, num_classes: int) -> None:
    """Apply `check_label` to each label, outside of tracing and on the CPU.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import check_labels
        >>> check_labels("class_hit: a target", torch.tensor([0, 5]), num_classes=5)
        Traceback (most recent call last):
        ValueError: class_hit: a target is 5, but the victim has 5 classes, 0 to 4; labels are the victim's...
    """
    if is_concrete(labels):
        for label in labels.unique().tolist():
            check_label(field, label, num_classes)


def widen(tree: Any) -> Any:
    """Convert tensors of floats below float32 to float32; others, float64 included, stay as they are.

    Args:
        tree: A tensor, or mappings, lists and tuples of tensors; what else it holds stays.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import widen
        >>> widen({"scores": torch.ones(2, dtype=torch.float16)})
        {'scores': tensor([1., 1.])}
    """
    if isinstance(tree, Tensor):
        if not tree.is_floating_point():
            return tree
        return tree.to(torch.promote_types(tree.dtype, torch.float32))
    if isinstance(tree, Mapping):
        return {name: widen(part) for name, part in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(widen(part) for part in tree)
    return tree


def take_rows(tree: Any, rows: Any) -> Any:
    """Index the first axis of every tensor of a batch or a sample.

    Args:
        tree: Tensors [b, ...].
        rows: A slice, a tensor of indices or a mask.

    Example:
        >>> import torch
        >>> from fpatch.core.tree import take_rows
        >>> take_rows({"image_id": torch.tensor([5, 6, 7])}, slice(1, None))
        {'image_id': tensor([6, 7])}
    """
    return optree.tree_map(lambda x: x[rows], tree)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode tensors as a safetensors file; `metadata` becomes its header."""
    # the format forbids tensors that share memory
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return save(copies) if metadata is None else save(copies, dict(metadata))
