"""Raise or lower the contrast of an image about middle gray."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip, each_channel


@dataclass(frozen=True)
class Contrast:
    """Range of the factor; 1 changes nothing, 0 gives middle gray.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.tensor([0.25, 0.75]).expand(1, 3, 1, 2)
        >>> out = compose.contrast().apply({}, {"factor": torch.tensor([0.5])}, {"image": image})
        >>> [round(x, 6) for x in out["image"][0, 0, 0].tolist()]
        [0.375, 0.625]
    """

    factor: Range = Range(0.8, 1.25)

    def __post_init__(self) -> None:
        check_range("contrast(factor)", self.factor, low=0.0)


class ContrastSample(TypedDict):
    """Factor per row."""

    factor: Float[Tensor, " b"]


def sample(config: Contrast, keys: Tensor, batch: Batch) -> ContrastSample:
    return {"factor": random.uniform(keys, (), *config.factor)}


def apply(config: Contrast, patch_params: Params, sample: ContrastSample, values: Values) -> Values:
    factor = sample["factor"][:, None, None, None]
    return {"image": each_channel(lambda x: clip(0.5 + (x - 0.5) * factor), values["image"])}


contrast = define("contrast", Contrast, sample, apply, reads=("image",), writes=("image",), pixelwise=True)
