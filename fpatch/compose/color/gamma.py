"""Brighten or darken the middle tones by a power law; black and white do not change."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip

TOE = 1e-3
"""Up to here, a quarter of an 8-bit level, the curve is a line: a power has slope 0 or infinity at black."""


@dataclass(frozen=True)
class Gamma:
    """Range of the exponent; above 1 darkens, 1 changes nothing.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)
        >>> out = compose.gamma().apply({}, {"gamma": torch.tensor([2.0])}, {"image": image})
        >>> [round(x, 6) for x in out["image"][0, 0, 0].tolist()]
        [0.0, 0.25, 1.0]
    """

    gamma: Range = Range(0.7, 1.4)

    def __post_init__(self) -> None:
        check_range("gamma(gamma)", self.gamma, 0.1, 10.0)


class GammaSample(TypedDict):
    """Exponent per row."""

    gamma: Float[Tensor, " b"]


def sample(config: Gamma, keys: Tensor, batch: Batch) -> GammaSample:
    return {"gamma": random.uniform(keys, (), *config.gamma)}


def apply(config: Gamma, patch_params: Params, sample: GammaSample, values: Values) -> Values:
    """Raise values to the power (Gonzalez and Woods, 2018, Digital Image Processing, equation 3-5)."""
    image, gamma = values["image"], sample["gamma"][:, None, None, None]
    gain = ((gamma - 1) * image.clamp(min=TOE).log()).exp()  # a power changes bits with position
    return {"image": clip(image * gain)}


gamma = define("gamma", Gamma, sample, apply, reads=("image",), writes=("image",))
