"""Remove the color of an image and keep its luma."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.types import Batch, Params, Values
from fpatch.graph.stage import define
from fpatch.ops.color import luma


@dataclass(frozen=True)
class Grayscale:
    """Probability that a row loses its color.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> colors = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).reshape(2, 3, 1, 1)
        >>> out = compose.grayscale().apply({}, {"on": torch.tensor([True, False])}, {"image": colors})
        >>> [[round(x, 3) for x in row] for row in out["image"].flatten(1).tolist()]
        [[0.299, 0.299, 0.299], [0.0, 1.0, 0.0]]
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        check_number("grayscale(p)", self.p, 0.0, 1.0)


class GrayscaleSample(TypedDict):
    """The rows that are changed."""

    on: Bool[Tensor, " b"]


def sample(config: Grayscale, keys: Tensor, batch: Batch) -> GrayscaleSample:
    return {"on": random.bernoulli(keys, config.p)}


def apply(config: Grayscale, patch_params: Params, sample: GrayscaleSample, values: Values) -> Values:
    changed = luma(values["image"]).expand_as(values["image"])
    return {"image": torch.where(sample["on"][:, None, None, None], changed, values["image"])}


grayscale = define("grayscale", Grayscale, sample, apply, reads=("image",), writes=("image",))
