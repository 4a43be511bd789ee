"""Stretch each patch to the upright box around its placement."""

from dataclasses import dataclass
from typing import TypedDict, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.checks import check_choice
from fpatch.core.types import Batch, Params, Values
from fpatch.graph.stage import define
from fpatch.implant._placement import Boxes, draw_placement, fill_names, find_small, implant
from fpatch.ops.geometry import box_corners, quad_bounds
from fpatch.random import fold_in


@dataclass(frozen=True)
class FillBox:
    """Which boxes, and how.

    Attributes:
        boxes: Fill "all" placements of an image, or "one" of the valid ones, drawn for each row.
        antialias: Average where a patch is minified; otherwise interpolate there too.
        match_brightness: Scale each patch, by 1/4 to 4, to the mean luma of the scene below it.
        names: Patches in the order that `quad_patch` counts; None: those of the pipeline.
    """

    boxes: Boxes = "all"
    antialias: bool = True
    match_brightness: bool = False
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("fill_box(boxes)", self.boxes, get_args(Boxes))


class FillBoxSample(TypedDict):
    """Per placement: opacity 0 takes it out. `placement` is the index of the one to fill, -1 for all."""

    opacity: Float[Tensor, "b k"]
    placement: Int64[Tensor, " b"]


def sample(config: FillBox, keys: Tensor, batch: Batch) -> FillBoxSample:
    return {
        "opacity": torch.ones(len(keys), batch["quads"].shape[1]),
        "placement": draw_placement(config.boxes, fold_in(keys, "placement"), batch),
    }


def apply(config: FillBox, patch_params: Params, sample: FillBoxSample, values: Values) -> Values:
    return implant(config, sample, values, box_corners(quad_bounds(values["quads"])))


def check(config: FillBox, values: Values) -> dict[str, list[str]]:
    """Boxes that are too small."""
    return find_small(values, box_corners(quad_bounds(values["quads"])))


fill_box = define(
    "fill_box",
    FillBox,
    sample,
    apply,
    reads=("scene", "quads", "quad_patch", "quad_valid", "patch"),
    optional=("masks", "image_id"),
    writes=("image",),
    fill=fill_names,
    eager=True,
    check=check,
)
