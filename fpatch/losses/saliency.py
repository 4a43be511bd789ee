"""Saliency: a colorful patch catches the eye, so its colorfulness is pushed down."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches
from fpatch.ops.patches import check_color
from fpatch.ops.stable import root


@dataclass(frozen=True)
class Saliency:
    """Patches that count, by name; None for all."""

    only: tuple[str, ...] | None = None


def apply(config: Saliency, patch_params: Params, sample: Sample, values: Values) -> Values:
    def score(name: str, patch: Tensor) -> Tensor:
        check_color("saliency", name, patch)
        return colorfulness(patch)

    return {"saliency": mean_over_patches("saliency(only)", config.only, values, score)}


def colorfulness(patch: Tensor) -> Tensor:
    """Spread plus 0.3 times the mean of two opponent colors; a number, or [b] for patches [b, 3, h, w].

    With rg = R - G and yb = (R + G) / 2 - B, of which the standard deviations (over all pixels) and means are
    taken: sqrt(std_rg^2 + std_yb^2) + 0.3 sqrt(mean_rg^2 + mean_yb^2). Of sRGB in 0..1; the paper's values,
    of 0..255, are 255 times as large. A gray patch scores 0, with gradient 0.

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
