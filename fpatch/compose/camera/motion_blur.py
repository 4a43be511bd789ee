"""Blur along a line, from motion of the camera or the object during the exposure."""

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
from fpatch.ops.geometry import scale_matrix, warp_image
from fpatch.random import fold_in


@dataclass(frozen=True)
class MotionBlur:
    """The path of the motion: straight, at constant speed.

    Attributes:
        length_px: Range of its length in pixels of the image; 0 changes nothing.
        angle_deg: Range of its direction in degrees, clockwise on the screen from the x axis.
        p: Probability that a row is blurred.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.zeros(1, 3, 5, 5)
        >>> image[..., 2, 2] = 1.0
        >>> length, angle = torch.tensor([3.0]), torch.tensor([0.0])
        >>> sample = {"on": torch.tensor([True]), "length_px": length, "angle_deg": angle}
        >>> out = compose.motion_blur().apply({}, sample, {"image": image})["image"][0, 0]
        >>> [round(x, 2) for x in out[2].tolist()], [round(x, 2) for x in out[:, 2].tolist()]
        ([0.04, 0.29, 0.34, 0.29, 0.04], [0.0, 0.0, 0.34, 0.0, 0.0])
    """

    length_px: Range = Range(0.0, 6.0)
    angle_deg: Range = Range(-90.0, 90.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("motion_blur(length_px)", self.length_px, 0.0, 64.0)
        check_range("motion_blur(angle_deg)", self.angle_deg, -360.0, 360.0)
        check_number("motion_blur(p)", self.p, 0.0, 1.0)


class MotionBlurSample(TypedDict):
    """Values per row; `on` marks the blurred rows."""

    on: Bool[Tensor, " b"]
    length_px: Float[Tensor, " b"]
    angle_deg: Float[Tensor, " b"]


def sample(config: MotionBlur, keys: Tensor, batch: Batch) -> MotionBlurSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "length_px": random.uniform(fold_in(keys, "length_px"), (), *config.length_px),
        "angle_deg": random.uniform(fold_in(keys, "angle_deg"), (), *config.angle_deg),
    }


def apply(config: MotionBlur, patch_params: Params, sample: MotionBlurSample, values: Values) -> Values:
    """Average over the path by the midpoint rule, at least twice per pixel.

    References:
        Gonzalez and Woods (2018), Digital Image Processing, equation 5-74.
    """
    check_sampled("motion_blur: length_px", sample["length_px"], config.length_px.high)
    image = values["image"]
    # double: float32 sin and cos have other last bits in the vectorized part of a tensor than in its tail
    angle = torch.deg2rad(sample["angle_deg"].double())
    path = torch.stack([angle.cos(), angle.sin()], dim=-1).float() * sample["length_px"][:, None]
    num_steps = 2 * ceil(config.length_px.high) + 1
    still, total = torch.zeros_like(path), torch.zeros_like(image)
    for i in range(num_steps):
        shift = ((i + 0.5) / num_steps - 0.5) * path
        total = total + warp_image(image, scale_matrix(torch.ones_like(path), still, shift))
    blurred = clip(total / num_steps)
    on = sample["on"] & (sample["length_px"] > 0)
    return {"image": torch.where(on[:, None, None, None], blurred, image)}


motion_blur = define("motion_blur", MotionBlur, sample, apply, reads=("image",), writes=("image",))
