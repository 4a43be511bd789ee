"""Resize to another resolution and back, which keeps the detail of a camera with fewer pixels."""

from dataclasses import dataclass
from math import ceil
from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.tree import check_sampled
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip
from fpatch.ops.products import multiply_rows
from fpatch.random import fold_in


@dataclass(frozen=True)
class Resample:
    """Range and probability of the intermediate resolution.

    Attributes:
        scale: Range of its sides relative to the image's; sides are rounded to whole pixels.
        p: Probability that a row is resized.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 3, 8, 8)
        >>> sample = {"on": torch.tensor([True]), "scale": torch.tensor([0.5])}
        >>> out = compose.resample().apply({}, sample, {"image": image})["image"]
        >>> tuple(out.shape), [round(x, 2) for x in out[0, 0, 4, 2:6].tolist()]
        ((1, 3, 8, 8), [0.48, 0.5, 0.5, 0.52])
    """

    scale: Range = Range(0.3, 1.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("resample(scale)", self.scale, 0.01, 4.0)
        check_number("resample(p)", self.p, 0.0, 1.0)


class ResampleSample(TypedDict):
    """Values per row; `on` marks the resized rows."""

    on: Bool[Tensor, " b"]
    scale: Float[Tensor, " b"]


def sample(config: Resample, keys: Tensor, batch: Batch) -> ResampleSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "scale": random.uniform(fold_in(keys, "scale"), (), *config.scale),
    }


def apply(config: Resample, patch_params: Params, sample: ResampleSample, values: Values) -> Values:
    """Resize bilinearly and antialiased both ways, with one matrix per axis and row."""
    check_sampled("resample: scale", sample["scale"], config.scale.high)
    image = values["image"]
    rows, columns = (_there_and_back(size, config.scale.high, sample["scale"]) for size in image.shape[-2:])
    resized = multiply_rows(rows[:, None], image, columns[:, None].transpose(-1, -2))
    on = sample["on"][:, None, None, None]
    return {"image": torch.where(on, clip(resized), image)}


def _there_and_back(size: int, highest: float, scale: Float[Tensor, " b"]) -> Float[Tensor, "b n n"]:
    """Return the matrix of a resize from `size` to `size * scale` pixels and back."""
    between = (size * scale.double()).round().clamp(min=1.0)[:, None, None]
    fine = torch.arange(size, dtype=torch.float64, device=scale.device) + 0.5
    coarse = torch.arange(ceil(size * highest), device=scale.device)[:, None] + 0.5
    ratio, exists = size / between, coarse < between
    down = _triangle((fine - coarse * ratio) / ratio.clamp(min=1.0)) * exists
    up = _triangle((fine / ratio - coarse) / (1 / ratio).clamp(min=1.0)) * exists
    down = down / down.sum(-1, keepdim=True).clamp(min=1e-9)
    up = up / up.sum(-2, keepdim=True)
    return multiply_rows(up.transpose(-1, -2), down).float()


def _triangle(distance: Tensor) -> Tensor:
    """The kernel of bilinear interpolation."""
    return (1 - distance.abs()).clamp(min=0.0)


resample = define("resample", Resample, sample, apply, reads=("image",), writes=("image",))
