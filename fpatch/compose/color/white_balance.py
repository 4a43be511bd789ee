"""Change the color temperature of the light, at a fixed white balance of the camera."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import LUMINANCE, blackbody, clip, linear_to_srgb, srgb_to_linear

BALANCED_KELVIN = 6500.0


@dataclass(frozen=True)
class WhiteBalance:
    """Range of the color temperature of the light in kelvin; the camera is balanced for 6500 K.

    Lower is warmer. Draws are uniform in reciprocal temperature, whose equal steps look equal (Judd, 1933).

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> white = torch.full((1, 3, 1, 1), 0.5)
        >>> out = compose.white_balance().apply({}, {"kelvin": torch.tensor([4000.0])}, {"image": white})
        >>> red, _, blue = out["image"].flatten().tolist()
        >>> red > blue
        True
    """

    kelvin: Range = Range(4000.0, 10000.0)

    def __post_init__(self) -> None:
        check_range("white_balance(kelvin)", self.kelvin, 2000.0, 25000.0)


class WhiteBalanceSample(TypedDict):
    """Color temperature per row."""

    kelvin: Float[Tensor, " b"]


def sample(config: WhiteBalance, keys: Tensor, batch: Batch) -> WhiteBalanceSample:
    low, high = config.kelvin
    return {"kelvin": 1.0 / random.uniform(keys, (), 1.0 / high, 1.0 / low)}


def apply(config: WhiteBalance, patch_params: Params, sample: WhiteBalanceSample, values: Values) -> Values:
    """Scale the channels in linear light (von Kries), at constant luminance of a neutral gray."""
    light = blackbody(sample["kelvin"]) / blackbody(torch.full_like(sample["kelvin"], BALANCED_KELVIN))
    gain = light / sum(weight * light[:, i : i + 1] for i, weight in enumerate(LUMINANCE))
    linear = srgb_to_linear(values["image"]) * gain[:, :, None, None]
    return {"image": linear_to_srgb(clip(linear))}


white_balance = define("white_balance", WhiteBalance, sample, apply, reads=("image",), writes=("image",))
