"""Change brightness, contrast, saturation and hue, in this order."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip, each_channel, hue_rotation, mix_channels, saturation_matrix
from fpatch.random import fold_in


@dataclass(frozen=True)
class ColorJitter:
    """Ranges of the stages `exposure`, `contrast`, `saturation` and `hue`, which act one after another.

    Attributes:
        brightness: Range of the factor on every value.
        contrast: Range of the factor on the distance from middle gray.
        saturation: Range of the factor on the distance from luma.
        hue_deg: Range of the rotation of chroma in degrees, at constant luma.
        p: Probability that a row is changed.

    Example:
        >>> import torch
        >>> from fpatch import compose, random
        >>> image = torch.full((1, 3, 2, 2), 0.5)
        >>> batch = {"image": image, "image_id": torch.tensor([7]), "draw": torch.tensor([0])}
        >>> out, sample = compose.color_jitter(p=0.0)({}, random.key(0), batch)
        >>> sample["on"].item(), torch.equal(out["image"], image)
        (False, True)
    """

    brightness: Range = Range(0.8, 1.25)
    contrast: Range = Range(0.8, 1.25)
    saturation: Range = Range(0.7, 1.3)
    hue_deg: Range = Range(-15.0, 15.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            check_range(f"color_jitter({name})", getattr(self, name), low=0.0)
        check_range("color_jitter(hue_deg)", self.hue_deg, -180.0, 180.0)
        check_number("color_jitter(p)", self.p, 0.0, 1.0)


class ColorJitterSample(TypedDict):
    """Values per row; `on` marks the changed rows."""

    on: Bool[Tensor, " b"]
    brightness: Float[Tensor, " b"]
    contrast: Float[Tensor, " b"]
    saturation: Float[Tensor, " b"]
    hue_deg: Float[Tensor, " b"]


def sample(config: ColorJitter, keys: Tensor, batch: Batch) -> ColorJitterSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "brightness": random.uniform(fold_in(keys, "brightness"), (), *config.brightness),
        "contrast": random.uniform(fold_in(keys, "contrast"), (), *config.contrast),
        "saturation": random.uniform(fold_in(keys, "saturation"), (), *config.saturation),
        "hue_deg": random.uniform(fold_in(keys, "hue_deg"), (), *config.hue_deg),
    }


def apply(config: ColorJitter, patch_params: Params, sample: ColorJitterSample, values: Values) -> Values:
    on, brightness, contrast = (
        sample[name][:, None, None, None] for name in ("on", "brightness", "contrast")
    )
    image = each_channel(lambda x: clip(0.5 + (clip(x * brightness) - 0.5) * contrast), values["image"])
    image = each_channel(clip, mix_channels(image, saturation_matrix(sample["saturation"])))
    image = each_channel(clip, mix_channels(image, hue_rotation(sample["hue_deg"])))
    return {"image": each_channel(lambda x, before: torch.where(on, x, before), image, values["image"])}


color_jitter = define(
    "color_jitter", ColorJitter, sample, apply, reads=("image",), writes=("image",), pixelwise=True
)
