"""Total variation: the difference of neighboring pixels, finer than a camera sees in a print."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches


@dataclass(frozen=True)
class TotalVariation:
    """Settings of `losses.total_variation`: the patches that count.

    The stage writes `total_variation` [b].

    Attributes:
        only: Names of the patches that count; None for all.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> patches = {"stripes": torch.tensor([0.0, 1.0]).expand(3, 2, 2)}
        >>> values = {"patch": patches, "image_id": torch.tensor([0, 1])}
        >>> losses.total_variation().apply({}, {}, values)["total_variation"]  # half of the pairs differ by 1
        tensor([0.5000, 0.5000])

    References:
        Rudin, Osher and Fatemi (1992), in its anisotropic form, divided by the number of differences.
    """

    only: tuple[str, ...] | None = None


def apply(config: TotalVariation, patch_params: Params, sample: Sample, values: Values) -> Values:
    def score(name: str, patch: Tensor) -> Tensor:
        return _mean_difference(patch)

    return {"total_variation": mean_over_patches("total_variation(only)", config.only, values, score)}


def _mean_difference(patch: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbors along x and y: a number, or [b].

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
