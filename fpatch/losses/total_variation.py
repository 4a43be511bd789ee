"""Total variation: neighboring pixels should be alike, because no camera sees single pixels of a print."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches


@dataclass(frozen=True)
class TotalVariation:
    """Patches that count, by name; None for all."""

    only: tuple[str, ...] | None = None


def apply(config: TotalVariation, patch_params: Params, sample: Sample, values: Values) -> Values:
    def score(name: str, patch: Tensor) -> Tensor:
        return mean_difference(patch)

    return {"total_variation": mean_over_patches("total_variation(only)", config.only, values, score)}


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
    of_patch=True,
)
