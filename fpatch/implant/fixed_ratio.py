"""Place each patch upright, sized as a fixed fraction of the box around its placement."""

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_choice, check_number, check_range
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
class FixedRatio:
    """Size and position in the box; the patch keeps its aspect ratio.

    Attributes:
        ratio: Size of the patch as a fraction of the box. It is a sampled value of each placement, so that a
            grid or an edit can set it, up to 4.
        by: The sides compared. "width": the patch's width with the box's; "height": the heights; "min": the
            patch's longer side with the box's shorter side.
        offset_x_frac: Range of the position in the room left beside the patch: 0 is left, 1 is right. A patch
            wider than the box has negative room; 0 and 1 still align its left and right sides.
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
        >>> quads = torch.tensor([[[[0.0, 0.0], [4.0, 0.0], [4.0, 1.0], [0.0, 1.0]]]])  # 4 x 1 px
        >>> batch = {
        ...     "scene": torch.zeros(1, 3, 1, 4),
        ...     "patch": {"hood": torch.ones(3, 1, 2)},
        ...     "quads": quads,
        ...     "quad_patch": torch.tensor([[0]]),
        ...     "quad_valid": torch.tensor([[True]]),
        ... }
        >>> sample = {
        ...     "opacity": torch.ones(1, 1),
        ...     "placement": torch.tensor([-1]),
        ...     "offset_frac": torch.tensor([[[1.0, 0.5]]]),  # right
        ...     "ratio": torch.tensor([[0.5]]),
        ... }
        >>> implant.fixed_ratio(by="width", names=("hood",)).apply({}, sample, batch)["image"][0, 0]
        tensor([[0., 0., 1., 1.]])
    """

    ratio: float = 0.5
    by: Literal["width", "height", "min"] = "min"
    offset_x_frac: Range = Range(0.5, 0.5)
    offset_y_frac: Range = Range(0.5, 0.5)
    boxes: Boxes = "all"
    antialias: bool = True
    match_brightness: bool = False
    names: tuple[str, ...] | None = None
    angle_deg: Range = Range(0.0, 0.0)

    def __post_init__(self) -> None:
        check_range("fixed_ratio(angle_deg)", self.angle_deg, -180.0, 180.0)
        check_number("fixed_ratio(ratio)", self.ratio, 1e-3, 4.0)
        if self.by not in ("width", "height", "min"):
            raise ValueError(f"fixed_ratio(by) must be 'width', 'height' or 'min', got {self.by!r}")
        check_range("fixed_ratio(offset_x_frac)", self.offset_x_frac, 0.0, 1.0)
        check_range("fixed_ratio(offset_y_frac)", self.offset_y_frac, 0.0, 1.0)
        check_choice("fixed_ratio(boxes)", self.boxes, get_args(Boxes))


class FixedRatioSample(TypedDict):
    """Opacity, offset and ratio per placement; `placement` is the index to fill per row, -1 for all."""

    opacity: Float[Tensor, "b k"]
    angle_deg: NotRequired[Float[Tensor, "b k"]]
    placement: Int64[Tensor, " b"]
    offset_frac: Float[Tensor, "b k 2"]
    ratio: Float[Tensor, "b k"]


def sample(config: FixedRatio, keys: Tensor, batch: Batch) -> FixedRatioSample:
    k = batch["quads"].shape[1]
    low, high = torch.tensor([config.offset_x_frac, config.offset_y_frac]).T
    return {  # type: ignore[return-value]
        "opacity": torch.ones(len(keys), k),
        "placement": draw_placement(config.boxes, fold_in(keys, "placement"), batch),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (k, 2), low, high),
        "ratio": torch.full((len(keys), k), config.ratio),
        **draw_angles(config.angle_deg, keys, k),
    }


def apply(config: FixedRatio, patch_params: Params, sample: FixedRatioSample, values: Values) -> Values:
    offset_frac = sample["offset_frac"]
    set_ratio = torch.full_like(offset_frac[..., 0], config.ratio)
    ratio = sample.get("ratio", set_ratio)  # tables of earlier versions do not hold it
    return implant(config, sample, values, turn(_place(config, ratio, offset_frac, values), sample))


def declare(config: FixedRatio) -> dict[str, Any]:
    """Declare the fields that the settings add to the sample."""
    return declare_fields(config, FixedRatioSample)


def check(config: FixedRatio, values: Values) -> dict[str, list[str]]:
    """Return placements that are too small."""
    corners = values["quads"][..., 0, :]
    ratio = torch.full_like(corners[..., 0], config.ratio)
    return find_small(values, _place(config, ratio, torch.zeros_like(corners), values))


def _place(config: FixedRatio, ratio: Tensor, offset_frac: Tensor, values: Values) -> Tensor:
    corner, room = placement_box(values)
    size = patch_size(config, values)
    zoom = {
        "width": room[..., 0] / size[..., 0],
        "height": room[..., 1] / size[..., 1],
        "min": room.amin(-1) / size.amax(-1),
    }[config.by]
    scaled = size * zoom[..., None] * ratio[..., None]
    corner = corner + (room - scaled) * offset_frac
    return box_corners(torch.cat([corner, corner + scaled], dim=-1))


fixed_ratio = define(
    "fixed_ratio",
    FixedRatio,
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
