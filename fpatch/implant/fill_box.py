"""Stretch each patch to the upright box around its placement."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.checks import check_choice, check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.implant._placement import (
    OPTIONAL,
    READS,
    Boxes,
    declare_fields,
    draw_angles,
    draw_placement,
    fill_names,
    find_small,
    implant,
    turn,
)
from fpatch.ops.geometry import box_corners, quad_bounds
from fpatch.random import fold_in


@dataclass(frozen=True)
class FillBox:
    """Which boxes are filled; the aspect ratio of the patch is not kept.

    Attributes:
        boxes: Fill "all" valid placements of an image, or "one" of them, drawn for each row.
        antialias: Average the pixels of the patch where it is minified; False interpolates there too.
        match_brightness: Scale each patch by a gain in 1/4..4 to the mean luma of the scene below it.
        names: Patches in the order that `quad_patch` counts; None takes those of the pipeline.
        angle_deg: Range of the rotation about the patch's center in degrees; positive is clockwise on the
            screen. Its corners may leave the box.

    Convention:
        Boxes are in pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel,
        whose center is (0.5, 0.5). The box is the smallest upright one around the quad, in any corner order.
        The patch stands upright, and the outer edges of its pixels are the sides of its rectangle.

    Example:
        >>> import torch
        >>> from fpatch import implant
        >>> quads = torch.tensor([[[[2.0, 0.0], [3.0, 1.0], [2.0, 2.0], [1.0, 1.0]]]])  # a diamond, 2 px wide
        >>> batch = {
        ...     "scene": torch.zeros(1, 3, 2, 4),
        ...     "patch": {"hood": torch.ones(3, 2, 2)},
        ...     "quads": quads,
        ...     "quad_patch": torch.tensor([[0]]),
        ...     "quad_valid": torch.tensor([[True]]),
        ... }
        >>> sample = {"opacity": torch.ones(1, 1), "placement": torch.tensor([-1])}
        >>> implant.fill_box(names=("hood",)).apply({}, sample, batch)["image"][0, 0]
        tensor([[0., 1., 1., 0.],
                [0., 1., 1., 0.]])
    """

    boxes: Boxes = "all"
    antialias: bool = True
    match_brightness: bool = False
    names: tuple[str, ...] | None = None
    angle_deg: Range = Range(0.0, 0.0)

    def __post_init__(self) -> None:
        check_range("fill_box(angle_deg)", self.angle_deg, -180.0, 180.0)
        check_choice("fill_box(boxes)", self.boxes, get_args(Boxes))


class FillBoxSample(TypedDict):
    """Opacity per placement, 0 to leave it out; `placement` is the index to fill per row, -1 for all."""

    opacity: Float[Tensor, "b k"]
    angle_deg: NotRequired[Float[Tensor, "b k"]]
    placement: Int64[Tensor, " b"]


def sample(config: FillBox, keys: Tensor, batch: Batch) -> FillBoxSample:
    return {  # type: ignore[return-value]
        "opacity": torch.ones(len(keys), batch["quads"].shape[1]),
        "placement": draw_placement(config.boxes, fold_in(keys, "placement"), batch),
        **draw_angles(config.angle_deg, keys, batch["quads"].shape[1]),
    }


def apply(config: FillBox, patch_params: Params, sample: FillBoxSample, values: Values) -> Values:
    return implant(config, sample, values, turn(box_corners(quad_bounds(values["quads"])), sample))


def declare(config: FillBox) -> dict[str, Any]:
    """Declare the fields that the settings add to the sample."""
    return declare_fields(config, FillBoxSample)


def check(config: FillBox, values: Values) -> dict[str, list[str]]:
    """Return boxes that are too small."""
    return find_small(values, box_corners(quad_bounds(values["quads"])))


fill_box = define(
    "fill_box",
    FillBox,
    sample,
    apply,
    reads=READS,
    optional=OPTIONAL,
    writes=("image",),
    fill=fill_names,
    declare=declare,
    eager=True,
    check=check,
)
