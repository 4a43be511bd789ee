"""Saliency: the colorfulness of the patch, which catches the eye."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches
from fpatch.ops.patches import check_color
from fpatch.ops.stable import root


@dataclass(frozen=True)
class Saliency:
    """Settings of `losses.saliency`: the patches that count.

    The stage writes `saliency` [b].

    Attributes:
        only: Names of the patches that count; None for all.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> patches = {"gray": torch.full((3, 2, 2), 0.5), "red": torch.zeros(3, 2, 2)}
        >>> patches["red"][0] = 1.0
        >>> values = {"patch": patches, "image_id": torch.tensor([0])}
        >>> losses.saliency(only=("gray",)).apply({}, {}, values)["saliency"]
        tensor([0.])
        >>> print(f"{float(losses.saliency(only=('red',)).apply({}, {}, values)['saliency']):.4f}")
        0.3354

    References:
        Hasler and Suesstrunk (2003), Measuring colorfulness in natural images, section 7, metric 3.
    """

    only: tuple[str, ...] | None = None


def apply(config: Saliency, patch_params: Params, sample: Sample, values: Values) -> Values:
    def score(name: str, patch: Tensor) -> Tensor:
        check_color("saliency", name, patch)
        return colorfulness(patch)

    return {"saliency": mean_over_patches("saliency(only)", config.only, values, score)}


def colorfulness(patch: Tensor) -> Tensor:
    """Return the spread plus 0.3 times the mean of two opponent colors.

    The opponent colors are rg = R - G and yb = (R + G) / 2 - B. With means and standard deviations over all
    pixels: sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2). The paper takes levels of 0..255, so
    its values are 255 times as large. A gray patch scores 0, with gradient 0.

    Args:
        patch: sRGB in 0..1, [3, h, w] or [b, 3, h, w].

    Returns:
        A number, or [b].

    References:
        Hasler and Suesstrunk (2003), Measuring colorfulness in natural images, section 7, metric 3.
    """
    red, green, blue = patch.flatten(-2).unbind(-2)
    spread = mean = 0.0
    for opponent in (red - green, (red + green) / 2 - blue):
        center = opponent.mean(-1, keepdim=True)
        spread = spread + (opponent - center).square().mean(-1)
        mean = mean + center.square().squeeze(-1)
    return root(spread) + 0.3 * root(mean)


saliency = define(
    "saliency",
    Saliency,
    deterministic,
    apply,
    reads=("patch", "image_id"),
    writes=("saliency",),
    role="loss",
    of_patch=True,
)
