"""Gaussian blur: a lens slightly out of focus."""

from dataclasses import dataclass
from math import ceil
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.tree import check_sampled
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define


@dataclass(frozen=True)
class Blur:
    """Range of the standard deviation in pixels of the image; 0 changes nothing.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.zeros(1, 3, 5, 5)
        >>> image[..., 2, 2] = 1.0
        >>> out = compose.blur().apply({}, {"sigma_px": torch.tensor([0.7])}, {"image": image})["image"]
        >>> round(out[0, 0].sum().item(), 4), bool(out[0, 0, 2, 2] < 1.0)
        (0.9998, True)
    """

    sigma_px: Range = Range(0.0, 1.0)

    def __post_init__(self) -> None:
        check_range("blur(sigma_px)", self.sigma_px, 0.0, 32.0)


class BlurSample(TypedDict):
    """Standard deviation per row."""

    sigma_px: Float[Tensor, " b"]


def sample(config: Blur, keys: Tensor, batch: Batch) -> BlurSample:
    return {"sigma_px": random.uniform(keys, (), *config.sigma_px)}


def apply(config: Blur, patch_params: Params, sample: BlurSample, values: Values) -> Values:
    sigma_px, largest = sample["sigma_px"], config.sigma_px[1]
    check_sampled("blur: sigma_px", sigma_px, largest)
    radius = ceil(3 * largest)
    offset = torch.arange(radius + 1, device=values["image"].device)
    sigma = sigma_px[:, None].clamp(min=1e-3)
    weight = (-0.5 * (offset / sigma).square()).exp()
    weight = weight / (weight[:, :1] + 2 * sum(weight[:, i : i + 1] for i in range(1, radius + 1)))
    blurred = values["image"]
    for axis in (-1, -2):
        blurred = _convolve(blurred, weight[..., None, None, None].unbind(1), axis)
    return {"image": blurred}


def _convolve(image: Tensor, weights: tuple[Tensor, ...], axis: int) -> Tensor:
    """Filter along an axis, with repeated edges; sums of slices keep a row's bits in any batch."""
    radius, size = len(weights) - 1, image.shape[axis]
    first, last = image.narrow(axis, 0, 1), image.narrow(axis, size - 1, 1)
    padded = torch.cat([first] * radius + [image] + [last] * radius, dim=axis)
    total = image * weights[0]
    for i, weight in enumerate(weights[1:], start=1):
        sides = padded.narrow(axis, radius - i, size) + padded.narrow(axis, radius + i, size)
        total = total + sides * weight
    return total


blur = define("blur", Blur, sample, apply, reads=("image",), writes=("image",))
