"""Gaussian sensor noise, independent in each pixel and channel."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip, each_channel
from fpatch.random import fold_in


@dataclass(frozen=True)
class ReadNoise:
    """Range of the standard deviation, as a fraction of full scale.

    Example:
        >>> import torch
        >>> from fpatch import compose, random
        >>> image = torch.full((2, 3, 4, 4), 0.5)
        >>> batch = {"image": image, "image_id": torch.tensor([0, 1]), "draw": torch.tensor([0, 0])}
        >>> out, sample = compose.read_noise()({}, random.key(0), batch)
        >>> again = compose.read_noise().apply({}, sample, batch)
        >>> torch.equal(out["image"], again["image"]), torch.equal(out["image"][0], out["image"][1])
        (True, False)
    """

    std_frac: Range = Range(0.0, 0.03)

    def __post_init__(self) -> None:
        check_range("read_noise(std_frac)", self.std_frac, 0.0, 1.0)


class ReadNoiseSample(TypedDict):
    """Standard deviation per row, and the key of the noise field."""

    std_frac: Float[Tensor, " b"]
    key: Int64[Tensor, "b 2"]


def sample(config: ReadNoise, keys: Tensor, batch: Batch) -> ReadNoiseSample:
    return {
        "std_frac": random.uniform(fold_in(keys, "std_frac"), (), *config.std_frac),
        "key": fold_in(keys, "field"),
    }


def apply(config: ReadNoise, patch_params: Params, sample: ReadNoiseSample, values: Values) -> Values:
    image = values["image"]
    std = sample["std_frac"][:, None, None, None]
    field = random.gaussian_field(sample["key"], (3, *image[0].shape[-2:]))
    return {"image": each_channel(lambda x, noise: clip(x + noise * std), image, field)}


read_noise = define(
    "read_noise", ReadNoise, sample, apply, reads=("image",), writes=("image",), pixelwise=True
)
