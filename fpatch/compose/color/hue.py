"""Rotate the colors of an image about the gray axis at constant luma."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip, each_channel, hue_rotation, mix_channels


@dataclass(frozen=True)
class Hue:
    """Range of the angle in degrees.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> gray = torch.full((1, 3, 1, 1), 0.5)
        >>> out = compose.hue().apply({}, {"angle_deg": torch.tensor([90.0])}, {"image": gray})
        >>> [round(x, 3) for x in out["image"].flatten().tolist()]
        [0.5, 0.5, 0.5]
    """

    angle_deg: Range = Range(-15.0, 15.0)

    def __post_init__(self) -> None:
        check_range("hue(angle_deg)", self.angle_deg, -180.0, 180.0)


class HueSample(TypedDict):
    """Angle per row."""

    angle_deg: Float[Tensor, " b"]


def sample(config: Hue, keys: Tensor, batch: Batch) -> HueSample:
    return {"angle_deg": random.uniform(keys, (), *config.angle_deg)}


def apply(config: Hue, patch_params: Params, sample: HueSample, values: Values) -> Values:
    mixed = mix_channels(values["image"], hue_rotation(sample["angle_deg"]))
    return {"image": each_channel(clip, mixed)}


hue = define("hue", Hue, sample, apply, reads=("image",), writes=("image",), pixelwise=True)
