"""Brighten or darken an image by photographic stops."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import LN2, clip, each_channel


@dataclass(frozen=True)
class Exposure:
    """Range of the exposure in stops; +1 doubles the values of an image, as displayed.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.full((1, 3, 2, 2), 0.25)
        >>> out = compose.exposure().apply({}, {"stops": torch.tensor([1.0])}, {"image": image})
        >>> round(out["image"].max().item(), 6)
        0.5
    """

    stops: Range = Range(-1.0, 1.0)

    def __post_init__(self) -> None:
        check_range("exposure(stops)", self.stops, -10.0, 10.0)


class ExposureSample(TypedDict):
    """Stops per row."""

    stops: Float[Tensor, " b"]


def sample(config: Exposure, keys: Tensor, batch: Batch) -> ExposureSample:
    return {"stops": random.uniform(keys, (), *config.stops)}


def apply(config: Exposure, patch_params: Params, sample: ExposureSample, values: Values) -> Values:
    gain = (sample["stops"] * LN2).exp()[:, None, None, None]  # exp2 changes bits with position
    return {"image": each_channel(lambda x: clip(x * gain), values["image"])}


def show(config: Exposure, values: Values, control_values: Values) -> Values:
    """The share of pixels that the exposure clipped to white."""
    return {
        f"clipped_frac/{name}": (shown["image"] >= 1.0).float().mean()
        for name, shown in (("patch", values), ("none", control_values))
    }


exposure = define(
    "exposure", Exposure, sample, apply, reads=("image",), writes=("image",), pixelwise=True, show=show
)
