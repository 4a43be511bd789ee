"""Place each patch upright, at a random size and position within the box around its placement."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
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
    patch_size,
    placement_box,
    turn,
)
from fpatch.ops.geometry import box_corners
from fpatch.random import fold_in


@dataclass(frozen=True)
class Rectangle:
    """Size and position in the box; the patch keeps its aspect ratio.

    Attributes:
        scale: Range of the size relative to the largest patch of the same aspect ratio that fits the box.
        offset_x_frac: Range of the position in the room left beside the patch: 0 is left, 1 is right.
        offset_y_frac: The same along y: 0 is top, 1 is bottom.
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
        >>> quads = torch.tensor([[[[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]]]])  # 4 x 2 px
        >>> batch = {
        ...     "scene": torch.zeros(1, 3, 2, 4),
        ...     "patch": {"hood": torch.ones(3, 1, 2)},
        ...     "quads": quads,
        ...     "quad_patch": torch.tensor([[0]]),
        ...     "quad_valid": torch.tensor([[True]]),
        ... }
        >>> sample = {
        ...     "opacity": torch.ones(1, 1),
        ...     "placement": torch.tensor([-1]),
        ...     "scale": torch.tensor([[0.5]]),  # 2 x 1 px
        ...     "offset_frac": torch.tensor([[[0.0, 1.0]]]),  # bottom left
        ... }
        >>> implant.rectangle(names=("hood",)).apply({}, sample, batch)["image"][0, 0]
        tensor([[0., 0., 0., 0.],
                [1., 1., 0., 0.]])
    """

    scale: Range = Range(0.5, 1.0)
    offset_x_frac: Range = Range(0.0, 1.0)
    offset_y_frac: Range = Range(0.0, 1.0)
    boxes: Boxes = "all"
    antialias: bool = True
    match_brightness: bool = False
    names: tuple[str, ...] | None = None
    angle_deg: Range = Range(0.0, 0.0)

    def __post_init__(self) -> None:
        check_range("rectangle(angle_deg)", self.angle_deg, -180.0, 180.0)
        check_range("rectangle(scale)", self.scale, low=1e-3, high=1.0)
        check_range("rectangle(offset_x_frac)", self.offset_x_frac, 0.0, 1.0)
        check_range("rectangle(offset_y_frac)", self.offset_y_frac, 0.0, 1.0)
        check_choice("rectangle(boxes)", self.boxes, get_args(Boxes))


class RectangleSample(TypedDict):
    """Opacity, scale and offset per placement; `placement` is the index to fill per row, -1 for all."""

    opacity: Float[Tensor, "b k"]
    angle_deg: NotRequired[Float[Tensor, "b k"]]
    placement: Int64[Tensor, " b"]
    scale: Float[Tensor, "b k"]
    offset_frac: Float[Tensor, "b k 2"]


def sample(config: Rectangle, keys: Tensor, batch: Batch) -> RectangleSample:
    k = batch["quads"].shape[1]
    low, high = torch.tensor([config.offset_x_frac, config.offset_y_frac]).T
    return {  # type: ignore[return-value]
        "opacity": torch.ones(len(keys), k),
        "placement": draw_placement(config.boxes, fold_in(keys, "placement"), batch),
        "scale": random.uniform(fold_in(keys, "scale"), (k,), *config.scale),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (k, 2), low, high),
        **draw_angles(config.angle_deg, keys, k),
    }


def apply(config: Rectangle, patch_params: Params, sample: RectangleSample, values: Values) -> Values:
    quads = _place(config, sample["scale"], sample["offset_frac"], values)
    return implant(config, sample, values, turn(quads, sample))


def declare(config: Rectangle) -> dict[str, Any]:
    """Declare the fields that the settings add to the sample."""
    return declare_fields(config, RectangleSample)


def check(config: Rectangle, values: Values) -> dict[str, list[str]]:
    """Return placements that are too small at the smallest scale."""
    corners = values["quads"][..., 0, :]
    scale = torch.full_like(corners[..., 0], config.scale.low)
    return find_small(values, _place(config, scale, torch.zeros_like(corners), values))


def _place(config: Rectangle, scale: Tensor, offset_frac: Tensor, values: Values) -> Tensor:
    corner, room = placement_box(values)
    size = patch_size(config, values)
    fitted = size * (room / size).amin(-1, keepdim=True) * scale[..., None]
    corner = corner + (room - fitted) * offset_frac
    return box_corners(torch.cat([corner, corner + fitted], dim=-1))


rectangle = define(
    "rectangle",
    Rectangle,
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
