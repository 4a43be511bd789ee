"""Blur by a disk, the circle of confusion of a lens out of focus."""

from dataclasses import dataclass
from math import ceil, hypot, sqrt
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
from fpatch.random import fold_in


@dataclass(frozen=True)
class Defocus:
    """Radius of the disk in pixels of the image; up to 0.5 changes nothing.

    Attributes:
        radius_px: Range of the radius; the cost of an image grows with its square.
        p: Probability that a row is blurred.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.zeros(1, 3, 9, 9)
        >>> image[..., 4, 4] = 1.0
        >>> sample = {"on": torch.tensor([True]), "radius_px": torch.tensor([2.0])}
        >>> out = compose.defocus().apply({}, sample, {"image": image})["image"][0, 0]
        >>> round(out.sum().item(), 4), [round(x, 2) for x in out[4].tolist()]
        (1.0, [0.0, 0.0, 0.04, 0.08, 0.08, 0.08, 0.04, 0.0, 0.0])
    """

    radius_px: Range = Range(0.5, 2.5)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("defocus(radius_px)", self.radius_px, 0.0, 16.0)
        check_number("defocus(p)", self.p, 0.0, 1.0)


class DefocusSample(TypedDict):
    """Values per row; `on` marks the blurred rows."""

    on: Bool[Tensor, " b"]
    radius_px: Float[Tensor, " b"]


def sample(config: Defocus, keys: Tensor, batch: Batch) -> DefocusSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "radius_px": random.uniform(fold_in(keys, "radius_px"), (), *config.radius_px),
    }


def apply(config: Defocus, patch_params: Params, sample: DefocusSample, values: Values) -> Values:
    """Average over a flat disk whose rim falls to 0 over one pixel; edges are repeated.

    References:
        Potmesil and Chakravarty (1981), A lens and aperture camera model, section 3.
    """
    check_sampled("defocus: radius_px", sample["radius_px"], config.radius_px.high)
    image, reach = values["image"], ceil(config.radius_px.high - 0.5)
    h, w = image.shape[-2:]
    padded = image
    for axis, size in ((-2, h), (-1, w)):
        index = torch.arange(-reach, size + reach, device=image.device).clamp(0, size - 1)
        padded = padded.index_select(axis, index)
    # sums of slices keep a row's bits in any batch; those at one distance share a weight
    rings: dict[int, list[Tensor]] = {}
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if hypot(dx, dy) < reach + 1:
                shifted = padded.narrow(-2, reach + dy, h).narrow(-1, reach + dx, w)
                rings.setdefault(dx * dx + dy * dy, []).append(shifted)
    radius = sample["radius_px"][:, None, None, None]
    total, weights = torch.zeros_like(image), torch.zeros_like(radius)
    for squared, ring in rings.items():
        weight = (radius + 0.5 - sqrt(squared)).clamp(0.0, 1.0)
        total, weights = total + weight * sum(ring), weights + len(ring) * weight
    on = sample["on"][:, None, None, None]
    return {"image": torch.where(on, clip(total / weights), image)}


defocus = define("defocus", Defocus, sample, apply, reads=("image",), writes=("image",))
