"""Place each patch upright, sized as a fixed fraction of the box around its placement."""

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_choice, check_number, check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.implant._placement import (
    Boxes,
    draw_placement,
    fill_names,
    find_small,
    implant,
    patch_size,
    placement_box,
)
from fpatch.ops.geometry import box_corners
from fpatch.random import fold_in


@dataclass(frozen=True)
class FixedRatio:
    """Size and position in the box; the patch keeps its aspect ratio.

    Attributes:
        ratio: Fraction of the box.
        by: "width": the width of the patch is that fraction of the box's width; "height" likewise; "min": the
            longer side of the patch is that fraction of the box's shorter side.
        offset_x_frac: Position in the room that is left: 0 is left, 1 is right, also where it is negative.
        offset_y_frac: 0 is top, 1 is bottom.
        boxes: Fill "all" placements of an image, or "one" of the valid ones, drawn for each row.
        antialias: Average where a patch is minified; otherwise interpolate there too.
        match_brightness: Scale each patch, by 1/4 to 4, to the mean luma of the scene below it.
        names: Patches in the order that `quad_patch` counts; None: those of the pipeline.
    """

    ratio: float = 0.5
    by: Literal["width", "height", "min"] = "min"
    offset_x_frac: Range = Range(0.5, 0.5)
    offset_y_frac: Range = Range(0.5, 0.5)
    boxes: Boxes = "all"
    antialias: bool = True
    match_brightness: bool = False
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_number("fixed_ratio(ratio)", self.ratio, 1e-3, 4.0)
        if self.by not in ("width", "height", "min"):
            raise ValueError(f"fixed_ratio(by) must be 'width', 'height' or 'min', got {self.by!r}")
        check_range("fixed_ratio(offset_x_frac)", self.offset_x_frac, 0.0, 1.0)
        check_range("fixed_ratio(offset_y_frac)", self.offset_y_frac, 0.0, 1.0)
        check_choice("fixed_ratio(boxes)", self.boxes, get_args(Boxes))


class FixedRatioSample(TypedDict):
    """Per placement: opacity 0 takes it out. `placement` is the index of the one to fill, -1 for all."""

    opacity: Float[Tensor, "b k"]
    placement: Int64[Tensor, " b"]
    offset_frac: Float[Tensor, "b k 2"]


def sample(config: FixedRatio, keys: Tensor, batch: Batch) -> FixedRatioSample:
    k = batch["quads"].shape[1]
    low, high = torch.tensor([config.offset_x_frac, config.offset_y_frac]).T
    return {
        "opacity": torch.ones(len(keys), k),
        "placement": draw_placement(config.boxes, fold_in(keys, "placement"), batch),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (k, 2), low, high),
    }


def apply(config: FixedRatio, patch_params: Params, sample: FixedRatioSample, values: Values) -> Values:
    return implant(config, sample, values, _place(config, sample["offset_frac"], values))


def check(config: FixedRatio, values: Values) -> dict[str, list[str]]:
    """Placements that are too small."""
    return find_small(values, _place(config, torch.zeros_like(values["quads"][..., 0, :]), values))


def _place(config: FixedRatio, offset_frac: Tensor, values: Values) -> Tensor:
    corner, room = placement_box(values)
    size = patch_size(config, values)
    zoom = {
        "width": room[..., 0] / size[..., 0],
        "height": room[..., 1] / size[..., 1],
        "min": room.amin(-1) / size.amax(-1),
    }[config.by]
    scaled = size * zoom[..., None] * config.ratio
    corner = corner + (room - scaled) * offset_frac
    return box_corners(torch.cat([corner, corner + scaled], dim=-1))


fixed_ratio = define(
    "fixed_ratio",
    FixedRatio,
    sample,
    apply,
    reads=("scene", "quads", "quad_patch", "quad_valid", "patch"),
    optional=("masks", "image_id"),
    writes=("image",),
    fill=fill_names,
    eager=True,
    check=check,
)
