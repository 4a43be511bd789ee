"""Victims that take less time or memory while a patch is trained; measured is always the victim itself."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import optree
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fpatch.core.checks import nearest
from fpatch.core.resource import resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Stage
from fpatch.runtime.device import copy_network

PRECISIONS = ("float32", "bfloat16", "float16")


def reduce_precision(
    pipeline: Pipeline,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    channels_last: bool = False,
    recompute: bool = False,
) -> Pipeline:
    """The same pipeline with lighter victims; patch, images, answers and losses stay float32.

    Args:
        pipeline: Of one phase.
        precision: Of the victims' convolutions and matrix products, by `torch.autocast`. Gradients of float16
            may vanish, since nothing scales the loss.
        channels_last: Victims are given images, and hold weights, with the channel as the innermost axis.
        recompute: Of every block of a victim (an element of its outermost `Sequential` or `ModuleList`) only
            the input is kept, and the rest computed again in the backward: the same bits, less memory, about
            a third more time.

    Raises:
        ValueError: If the precision is unknown.

    References:
        Chen et al. (2016), Training deep nets with sublinear memory cost, section 4.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: there is no {precision!r}; {nearest(precision, PRECISIONS)}")
    if precision == "float32" and not channels_last and not recompute:
        return pipeline
    victims = {path: n for path, n in pipeline.items() if n.stage.definition.role == "victim"}
    made = {
        path: dataclasses.replace(n, stage=_lighten(n.stage, precision, channels_last, recompute))
        for path, n in victims.items()
    }
    return pipeline | made


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
    """A `forward` of which only the inputs are kept."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
