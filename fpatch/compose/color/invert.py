"""Replace an image by its negative."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.types import Batch, Params, Values
from fpatch.graph.stage import define


@dataclass(frozen=True)
class Invert:
    """Probability that a row is inverted.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.full((2, 3, 1, 1), 0.25)
        >>> out = compose.invert().apply({}, {"on": torch.tensor([True, False])}, {"image": image})
        >>> out["image"].flatten(1).tolist()
        [[0.75, 0.75, 0.75], [0.25, 0.25, 0.25]]
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        check_number("invert(p)", self.p, 0.0, 1.0)


class InvertSample(TypedDict):
    """The rows that are changed."""

    on: Bool[Tensor, " b"]


def sample(config: Invert, keys: Tensor, batch: Batch) -> InvertSample:
    return {"on": random.bernoulli(keys, config.p)}


def apply(config: Invert, patch_params: Params, sample: InvertSample, values: Values) -> Values:
    changed = 1 - values["image"]
    return {"image": torch.where(sample["on"][:, None, None, None], changed, values["image"])}


invert = define("invert", Invert, sample, apply, reads=("image",), writes=("image",))
