"""Total variation: neighboring pixels should be alike, because no camera sees single pixels of a print."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class TotalVariation:
    """No settings."""


def apply(config: TotalVariation, patch_params: Params, sample: Sample, values: Values) -> Values:
    rows = len(values["image_id"])
    terms = [mean_difference(patch).expand(rows) for patch in values["patch"].values()]
    return {"total_variation": torch.stack(terms).mean(0)}


def mean_difference(patch: Tensor) -> Tensor:
    """Mean absolute difference of neighbors along x and y; a number, or [b] for patches [b, c, h, w].

    References:
        Rudin, Osher and Fatemi (1992), in its anisotropic form, divided by the number of differences.
    """
    across = (patch[..., :, 1:] - patch[..., :, :-1]).abs().flatten(-3)
    down = (patch[..., 1:, :] - patch[..., :-1, :]).abs().flatten(-3)
    count = max(across.shape[-1] + down.shape[-1], 1)
    return (across.sum(-1) + down.sum(-1)) / count


total_variation = define(
    "total_variation",
    TotalVariation,
    deterministic,
    apply,
    reads=("patch", "image_id"),
    writes=("total_variation",),
    role="loss",
)
