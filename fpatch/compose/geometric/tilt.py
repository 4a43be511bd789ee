"""Turn the picture plane about its axes under a perspective camera, with quads and boxes."""

from dataclasses import dataclass
from math import cos, radians, tan
from typing import TypedDict

from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.geometry import LABELS, move_view, tilt_matrix
from fpatch.random import fold_in


@dataclass(frozen=True)
class Tilt:
    """How the plane is turned about its center, and the camera that then sees it.

    Attributes:
        about_x_deg: Positive tips its top away from the camera.
        about_y_deg: Positive turns its right side away from the camera.
        fov_deg: Field of view along the longer side of the frame: the wider, the stronger the perspective.
    """

    about_x_deg: Range = Range(-15.0, 15.0)
    about_y_deg: Range = Range(-15.0, 15.0)
    fov_deg: float = 60.0

    def __post_init__(self) -> None:
        check_range("tilt(about_x_deg)", self.about_x_deg, -85.0, 85.0)
        check_range("tilt(about_y_deg)", self.about_y_deg, -85.0, 85.0)
        check_number("tilt(fov_deg)", self.fov_deg, 1.0, 150.0)
        x, y = (radians(max(map(abs, angles))) for angles in (self.about_x_deg, self.about_y_deg))
        if (tan(x) / cos(y) + tan(y)) * tan(radians(self.fov_deg) / 2) >= 1.0:
            raise ValueError(
                f"tilt: at about_x_deg={tuple(self.about_x_deg)} and about_y_deg={tuple(self.about_y_deg)} "
                f"a camera with fov_deg={self.fov_deg:g} would see past the horizon of the plane; "
                "narrow the angles or the field of view"
            )


class TiltSample(TypedDict):
    """Per row."""

    about_x_deg: Float[Tensor, " b"]
    about_y_deg: Float[Tensor, " b"]


def sample(config: Tilt, keys: Tensor, batch: Batch) -> TiltSample:
    return {
        "about_x_deg": random.uniform(fold_in(keys, "about_x_deg"), (), *config.about_x_deg),
        "about_y_deg": random.uniform(fold_in(keys, "about_y_deg"), (), *config.about_y_deg),
    }


def apply(config: Tilt, patch_params: Params, sample: TiltSample, values: Values) -> Values:
    h, w = values["scene"].shape[-2:]
    focal_px = max(h, w) / 2 / tan(radians(config.fov_deg) / 2)
    matrix = tilt_matrix(sample["about_x_deg"], sample["about_y_deg"], focal_px, center=(w / 2, h / 2))
    return move_view(values, matrix)


tilt = define(
    "tilt",
    Tilt,
    sample,
    apply,
    reads=("scene",),
    optional=LABELS,
    writes=("scene", *LABELS),
    geometric=True,
)
