"""Cover a rectangle of the image with a uniform gray."""

from dataclasses import dataclass
from math import log
from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.random import fold_in


@dataclass(frozen=True)
class Erasing:
    """The size and brightness of the rectangle, which lies inside the image.

    Attributes:
        area_frac: Range of its area as a fraction of the image's.
        aspect: Range of its aspect ratio (width / height) in pixels, uniform in the logarithm.
        level: Range of its brightness in 0..1.
        p: Probability that a row is covered.

    Example:
        >>> import torch
        >>> from fpatch import Range, compose, random
        >>> image = torch.zeros(1, 3, 16, 16)
        >>> batch = {"image": image, "image_id": torch.tensor([0]), "draw": torch.tensor([0])}
        >>> one = Range(1.0, 1.0)
        >>> stage = compose.erasing(area_frac=Range(0.25, 0.25), aspect=one, level=one, p=1.0)
        >>> out, _ = stage({}, random.key(0), batch)
        >>> round(out["image"].mean().item(), 2)
        0.25
    """

    area_frac: Range = Range(0.02, 0.33)
    aspect: Range = Range(0.3, 3.3)
    level: Range = Range(0.0, 1.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("erasing(area_frac)", self.area_frac, 0.0, 1.0)
        check_range("erasing(aspect)", self.aspect, 0.01, 100.0)
        check_range("erasing(level)", self.level, 0.0, 1.0)
        check_number("erasing(p)", self.p, 0.0, 1.0)


class ErasingSample(TypedDict):
    """Values per row; the offset is a fraction of the room that the rectangle leaves along x and y."""

    on: Bool[Tensor, " b"]
    area_frac: Float[Tensor, " b"]
    aspect: Float[Tensor, " b"]
    offset_frac: Float[Tensor, "b 2"]
    level: Float[Tensor, " b"]


def sample(config: Erasing, keys: Tensor, batch: Batch) -> ErasingSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "area_frac": random.uniform(fold_in(keys, "area_frac"), (), *config.area_frac),
        "aspect": random.uniform(fold_in(keys, "aspect"), (), *map(log, config.aspect)).exp(),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (2,)),
        "level": random.uniform(fold_in(keys, "level"), (), *config.level),
    }


def apply(config: Erasing, patch_params: Params, sample: ErasingSample, values: Values) -> Values:
    """Cover pixels whose centers lie in the rectangle; a side longer than the image's is cut.

    References:
        Zhong, Zheng, Kang, Li, Yang (2020), Random erasing data augmentation, AAAI, algorithm 1.
    """
    image = values["image"]
    h, w = image.shape[-2:]
    area, inside = sample["area_frac"] * (h * w), sample["on"][:, None, None]
    sides = (area * sample["aspect"]).sqrt(), (area / sample["aspect"]).sqrt()
    for axis, (side, size) in enumerate(zip(sides, (w, h), strict=True)):
        low = ((size - side) * sample["offset_frac"][:, axis])[:, None]
        center = torch.arange(size, device=image.device) + 0.5
        covered = (center >= low) & (center < low + side[:, None])
        inside = inside & (covered[:, None, :] if axis == 0 else covered[:, :, None])
    return {"image": torch.where(inside[:, None], sample["level"][:, None, None, None], image)}


erasing = define("erasing", Erasing, sample, apply, reads=("image",), writes=("image",))
