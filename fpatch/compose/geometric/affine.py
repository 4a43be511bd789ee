"""Rotate, shear, scale and shift the clean scene, and its quads and boxes with it.

It acts before the implant, where the background needs no gradient and the patch is resampled once.
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
    """Ranges, about the center of the frame.

    Attributes:
        angle_deg: Rotation, clockwise on the screen.
        shear_deg: Shear along x.
        scale: Zoom.
        shift_frac: Shift along x and y, as a fraction of the frame's side.
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
    """Per row."""

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
