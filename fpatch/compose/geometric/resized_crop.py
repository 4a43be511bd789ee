"""Crop a window of the scene and enlarge it to the size of the image, with quads and boxes."""

from dataclasses import dataclass
from math import log
from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.geometry import LABELS, move_view, scale_matrix
from fpatch.random import fold_in


@dataclass(frozen=True)
class ResizedCrop:
    """The window; its sides are cut to those of the image, and pixels are interpolated bilinearly.

    Attributes:
        area_frac: Range of the window's area as a fraction of the image's.
        aspect: Range of the aspect ratio (width / height) relative to the image's, uniform in the logarithm.
        p: Probability that a row is cropped.

    Convention:
        Pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel, whose center
        is (0.5, 0.5). Corners keep their order: top-left, top-right, bottom-right, bottom-left of the upright
        patch. The offset (0, 0) puts the window to the top left, (1, 1) to the bottom right. The outer edges
        of the window become those of the image.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> batch = {"scene": torch.zeros(1, 3, 4, 4), "boxes": torch.tensor([[[3.0, 3.0, 4.0, 4.0]]])}
        >>> sample = {"on": torch.tensor([True]), "area_frac": torch.tensor([0.25]), "aspect": torch.ones(1)}
        >>> sample |= {"offset_frac": torch.ones(1, 2)}  # the quarter at the bottom right
        >>> compose.resized_crop().apply({}, sample, batch)["boxes"]
        tensor([[[2., 2., 4., 4.]]])

    References:
        Szegedy et al. (2015), Going deeper with convolutions, CVPR, section 6.
    """

    area_frac: Range = Range(0.5, 1.0)
    aspect: Range = Range(3 / 4, 4 / 3)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("resized_crop(area_frac)", self.area_frac, 0.01, 1.0)
        check_range("resized_crop(aspect)", self.aspect, 0.1, 10.0)
        check_number("resized_crop(p)", self.p, 0.0, 1.0)


class ResizedCropSample(TypedDict):
    """Per row; the offset is a fraction of the room that the window leaves along x and along y."""

    on: Bool[Tensor, " b"]
    area_frac: Float[Tensor, " b"]
    aspect: Float[Tensor, " b"]
    offset_frac: Float[Tensor, "b 2"]


def sample(config: ResizedCrop, keys: Tensor, batch: Batch) -> ResizedCropSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "area_frac": random.uniform(fold_in(keys, "area_frac"), (), *config.area_frac),
        "aspect": random.uniform(fold_in(keys, "aspect"), (), *map(log, config.aspect)).exp(),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (2,)),
    }


def apply(config: ResizedCrop, patch_params: Params, sample: ResizedCropSample, values: Values) -> Values:
    h, w = values["scene"].shape[-2:]
    area, aspect = sample["area_frac"], sample["aspect"]
    side_frac = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=-1).clamp(max=1.0)
    corner = (1 - side_frac) * sample["offset_frac"] * constant([w, h], values["scene"])
    matrix = scale_matrix(1 / side_frac, corner, torch.zeros_like(corner))
    return move_view(values, matrix, sample["on"])


resized_crop = define(
    "resized_crop",
    ResizedCrop,
    sample,
    apply,
    reads=("scene",),
    optional=LABELS,
    writes=("scene", *LABELS),
    geometric=True,
)
