"""Rotate, shear, scale and shift the clean scene, and its quads and boxes with it.

The stage acts before the implant, where the scene needs no gradient and the patch is resampled only once.
"""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.geometry import LABELS, affine_matrix, move_view
from fpatch.random import fold_in


@dataclass(frozen=True)
class Affine:
    """Ranges of an affine map about the center of the image; the edge is repeated outside the scene.

    Attributes:
        angle_deg: Range of the rotation in degrees; positive is clockwise on the screen.
        shear_deg: Range of the shear along x in degrees; positive moves the lower half to the right.
        scale: Range of the zoom; above 1 enlarges.
        shift_frac: Range of the shift along x and along y, as a fraction of the image's width and height.

    Convention:
        Pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel, whose center
        is (0.5, 0.5). Corners keep their order: top-left, top-right, bottom-right, bottom-left of the upright
        patch. The map scales, shears, then rotates about the center (w / 2, h / 2), and shifts last. At 90
        degrees the top left of a square image moves to the top right. Positive shifts go right and down.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> batch = {"scene": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2) / 4}
        >>> sample = {"angle_deg": torch.tensor([90.0]), "shear_deg": torch.zeros(1), "scale": torch.ones(1)}
        >>> sample |= {"shift_frac": torch.zeros(1, 2)}
        >>> 4 * compose.affine().apply({}, sample, batch)["scene"][0, 0].round(decimals=2)
        tensor([[3., 1.],
                [4., 2.]])
    """

    angle_deg: Range = Range(-5.0, 5.0)
    shear_deg: Range = Range(-5.0, 5.0)
    scale: Range = Range(0.9, 1.1)
    shift_frac: Range = Range(-0.05, 0.05)

    def __post_init__(self) -> None:
        check_range("affine(angle_deg)", self.angle_deg, -180.0, 180.0)
        check_range("affine(shear_deg)", self.shear_deg, -60.0, 60.0)
        check_range("affine(scale)", self.scale, 0.05, 20.0)
        check_range("affine(shift_frac)", self.shift_frac, -1.0, 1.0)


class AffineSample(TypedDict):
    """Angle, shear, scale and shift along x and y, per row."""

    angle_deg: Float[Tensor, " b"]
    shear_deg: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    shift_frac: Float[Tensor, "b 2"]


def sample(config: Affine, keys: Tensor, batch: Batch) -> AffineSample:
    return {
        "angle_deg": random.uniform(fold_in(keys, "angle_deg"), (), *config.angle_deg),
        "shear_deg": random.uniform(fold_in(keys, "shear_deg"), (), *config.shear_deg),
        "scale": random.uniform(fold_in(keys, "scale"), (), *config.scale),
        "shift_frac": random.uniform(fold_in(keys, "shift_frac"), (2,), *config.shift_frac),
    }


def apply(config: Affine, patch_params: Params, sample: AffineSample, values: Values) -> Values:
    h, w = values["scene"].shape[-2:]
    shift = sample["shift_frac"] * constant([w, h], values["scene"])
    matrix = affine_matrix(
        sample["angle_deg"], sample["shear_deg"], sample["scale"], shift, center=(w / 2, h / 2)
    )
    return move_view(values, matrix)


affine = define(
    "affine",
    Affine,
    sample,
    apply,
    reads=("scene",),
    optional=LABELS,
    writes=("scene", *LABELS),
    geometric=True,
)
