"""Invert values at or above a threshold."""

from dataclasses import dataclass
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
class Solarize:
    """Threshold and probability of the inversion.

    Attributes:
        threshold: Range of the threshold; a channel at or above it is inverted.
        p: Probability that a row is solarized.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.tensor([0.25, 0.75]).expand(1, 3, 1, 2)
        >>> sample = {"on": torch.tensor([True]), "threshold": torch.tensor([0.5])}
        >>> compose.solarize().apply({}, sample, {"image": image})["image"][0, 0, 0].tolist()
        [0.25, 0.25]
    """

    threshold: Range = Range(0.4, 0.6)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("solarize(threshold)", self.threshold, 0.0, 1.0)
        check_number("solarize(p)", self.p, 0.0, 1.0)


class SolarizeSample(TypedDict):
    """Values per row; `on` marks the solarized rows."""

    on: Bool[Tensor, " b"]
    threshold: Float[Tensor, " b"]


def sample(config: Solarize, keys: Tensor, batch: Batch) -> SolarizeSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "threshold": random.uniform(fold_in(keys, "threshold"), (), *config.threshold),
    }


def apply(config: Solarize, patch_params: Params, sample: SolarizeSample, values: Values) -> Values:
    """Invert bright values (Cubuk, Zoph, Shlens, Le, 2020, RandAugment, CVPR workshops, section 3)."""
    image, on, threshold = values["image"], sample["on"], sample["threshold"]
    bright = on[:, None, None, None] & (image >= threshold[:, None, None, None])
    return {"image": torch.where(bright, 1 - image, image)}


solarize = define("solarize", Solarize, sample, apply, reads=("image",), writes=("image",))
