"""Victims of less time or memory for training; evaluations always run the original victim."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

import optree
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fpatch.core.checks import nearest
from fpatch.core.resource import resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.node import Node
from fpatch.graph.stage import Stage
from fpatch.runtime.device import copy_network

PRECISIONS = ("float32", "bfloat16", "float16")


_Nodes = TypeVar("_Nodes", bound=Mapping[str, Node])


def reduce_precision(
    pipeline: _Nodes,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    channels_last: bool = False,
    recompute: bool = False,
) -> _Nodes:
    """Reduce the precision or memory of the victims; patch, images, detections and losses stay float32.

    Args:
        pipeline: The pipeline of one phase.
        precision: The type of the victims' convolutions and matrix products, by `torch.autocast`. Gradients
            in float16 may vanish, because the loss is not scaled.
        channels_last: Images and weights of victims have the channel as their innermost axis.
        recompute: Keep only the input of every block of a victim, and compute the rest again in the backward.
            A block is an element of the outermost `Sequential` or `ModuleList`. The bits are the same, with
            less memory and about a third more time. A victim that is trained keeps all.

    Raises:
        ValueError: If the precision is unknown.

    References:
        Chen et al. (2016), Training deep nets with sublinear memory cost, section 4.

    Example:
        >>> import torch, fpatch
        >>> from fpatch.graph.precision import reduce_precision
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
        >>> p = fpatch.pipeline({"victim": fpatch.infer.classifier(model)})
        >>> light = reduce_precision(p, "bfloat16")
        >>> light.apply({}, {}, {"image": torch.ones(1, 3, 4, 4)})["logits"].dtype
        torch.float32
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {PRECISIONS}, got {precision!r}; {nearest(precision, PRECISIONS)}"
        )
    if precision == "float32" and not channels_last and not recompute:
        return pipeline
    victims = {path: n for path, n in pipeline.items() if n.stage.definition.role == "victim"}
    made = {
        path: dataclasses.replace(
            n, stage=_lighten(n.stage, precision, channels_last, recompute and not n.stage.definition.weights)
        )
        for path, n in victims.items()
    }
    return pipeline | made  # type: ignore[operator]


def _lighten(stage: Stage, precision: str, channels_last: bool, recompute: bool) -> Stage:
    inner = stage.definition.apply
    model = copy_network(resolve(stage.config.model), _to_channels_last if channels_last else lambda t: t)
    for block in _blocks(model) if recompute else ():
        block.forward = _Recomputed(block.forward)

    def apply(config: Any, patch_params: Params, sample: Sample, values: Values) -> Values:
        image = values["image"]
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, getattr(torch, precision), enabled=precision != "float32"):
            answers = inner(config, patch_params, sample, {**values, "image": image})
        return optree.tree_map(lambda x: x.float() if x.is_floating_point() else x, answers)  # type: ignore[return-value]

    definition = dataclasses.replace(stage.definition, apply=apply)
    return Stage(definition, dataclasses.replace(stage.config, model=model))


def _to_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost sequences of modules."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from child.children()
        else:
            yield from _blocks(child)


class _Recomputed:
    """A `forward` that keeps only its inputs for the backward."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
