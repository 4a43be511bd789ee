"""Strengthen or weaken the colors of an image at constant luma."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip, each_channel, mix_channels, saturation_matrix


@dataclass(frozen=True)
class Saturation:
    """Range of the factor; 1 changes nothing, 0 removes all color.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> out = compose.saturation().apply({}, {"factor": torch.tensor([0.0])}, {"image": red})
        >>> [round(x, 3) for x in out["image"].flatten().tolist()]
        [0.299, 0.299, 0.299]
    """

    factor: Range = Range(0.7, 1.3)

    def __post_init__(self) -> None:
        check_range("saturation(factor)", self.factor, low=0.0)


class SaturationSample(TypedDict):
    """Factor per row."""

    factor: Float[Tensor, " b"]


def sample(config: Saturation, keys: Tensor, batch: Batch) -> SaturationSample:
    return {"factor": random.uniform(keys, (), *config.factor)}


def apply(config: Saturation, patch_params: Params, sample: SaturationSample, values: Values) -> Values:
    mixed = mix_channels(values["image"], saturation_matrix(sample["factor"]))
    return {"image": each_channel(clip, mixed)}


saturation = define(
    "saturation", Saturation, sample, apply, reads=("image",), writes=("image",), pixelwise=True
)
