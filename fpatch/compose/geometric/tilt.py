"""Tilt the scene as a plane under a perspective camera, with quads and boxes."""

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
    """Rotation of the plane about its center, and the field of view of the camera.

    Attributes:
        about_x_deg: Range of the rotation about x in degrees; positive tips the top away from the camera.
        about_y_deg: Range of the rotation about y in degrees; positive turns the right side away.
        fov_deg: Field of view in degrees along the longer side of the image; wider is stronger perspective.

    Convention:
        Pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel, whose center
        is (0.5, 0.5). Corners keep their order: top-left, top-right, bottom-right, bottom-left of the upright
        patch. The plane turns about x first, then about y. Its center (w / 2, h / 2) lies on the optical axis
        and stays. Pixels repeat the nearest edge outside the scene.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> quads = torch.tensor([[[[0.0, 0.0], [8.0, 0.0], [8.0, 8.0], [0.0, 8.0]]]])
        >>> sample = {"about_x_deg": torch.tensor([30.0]), "about_y_deg": torch.tensor([0.0])}
        >>> out = compose.tilt().apply({}, sample, {"scene": torch.zeros(1, 3, 8, 8), "quads": quads})
        >>> out["quads"].round(decimals=1)  # the top is far, and narrow
        tensor([[[[ 0.9000,  1.3000],
                  [ 7.1000,  1.3000],
                  [ 9.6000,  8.9000],
                  [-1.6000,  8.9000]]]])

    References:
        Hartley and Zisserman (2004), Multiple View Geometry, section 8.1.1: H = K [r1 r2 t].
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
    """Angles per row."""

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
