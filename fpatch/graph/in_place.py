"""Stages that write into what they read: their own numbers would be right, and those of all others wrong.

A victim that normalizes its input in place leaves a normalized image to the next victim, to the losses, and
to the digest in the table. Every tensor of torch counts the writes into its memory.
"""

from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.tree import is_traced


def count_writes(tree: Any) -> dict[str, int]:
    """Return how often each tensor was written to, by path; those that torch traces are left out.

    Args:
        tree: A sequence of trees of tensors; their paths lack the place in the sequence.

    Example:
        >>> import torch
        >>> from fpatch.graph.in_place import count_writes
        >>> image = torch.zeros(1)
        >>> before = count_writes([{"image": image}])
        >>> _ = image[:].add_(1.0)
        >>> before, count_writes([{"image": image}])
        ({'image': 0}, {'image': 1})
    """
    if torch.compiler.is_compiling():
        return {}
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    return {
        "/".join(map(str, path[1:])): leaf._version
        for path, leaf in zip(paths, leaves, strict=True)
        if isinstance(leaf, Tensor) and not is_traced(leaf) and not leaf.is_inference()
    }


def refuse_writes(path: str, before: dict[str, int], tree: Any) -> None:
    """Check that a node wrote into nothing that it was given.

    Args:
        path: The path of the node.
        before: The count of `count_writes` before the node ran.
        tree: What it was given.

    Raises:
        ValueError: Naming the node, the value and the way out.
    """
    after = count_writes(tree)
    if changed := [name for name, count in before.items() if after.get(name, count) != count]:
        raise ValueError(
            f"node {path!r} writes into {changed[0]!r}, which is not its own: other nodes would read other "
            "numbers; let it work on a copy, as value.clone() makes, and avoid operators such as mul_"
        )
