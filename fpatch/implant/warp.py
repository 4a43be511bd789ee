"""Warp each patch onto the four corners of its placement by a homography."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, get_args

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
    turn,
)
from fpatch.random import fold_in


@dataclass(frozen=True)
class Warp:
    """Size and misplacement of the patch in its quad.

    Attributes:
        scale: Range of the size relative to the quad; the mean of the corners stays.
        jitter_frac: Largest displacement of a corner along x and y, as a fraction of the quad's mean side.
        antialias: Average the pixels of the patch where it is minified; False interpolates there too.
        match_brightness: Scale each patch by a gain in 1/4..4 to the mean luma of the scene below it.
        names: Patches in the order that `quad_patch` counts; None takes those of the pipeline.
        angle_deg: Range of the rotation about the mean of the corners in degrees; positive is clockwise on
            the screen. The scale comes before it, the jitter after it.
        boxes: Fill "all" valid placements of an image, or "one" of them, drawn for each row.

    Convention:
        Quads are in pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel,
        whose center is (0.5, 0.5). Corners are those of the upright patch: top-left, top-right, bottom-right,
        bottom-left. Listed counter-clockwise on the screen, they show the patch mirrored. The outer corners
        of the patch's corner pixels lie on them. Positive jitter moves a corner right or down.

    Example:
        >>> import torch
        >>> from fpatch import implant
        >>> quad = torch.tensor([[[[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]]]])  # 2 x 1 px
        >>> batch = {
        ...     "scene": torch.zeros(1, 3, 1, 4),
        ...     "patch": {"hood": torch.ones(3, 2, 4)},
        ...     "quads": quad,
        ...     "quad_patch": torch.tensor([[0]]),
        ...     "quad_valid": torch.tensor([[True]]),
        ... }
        >>> sample = {
        ...     "opacity": torch.ones(1, 1),
        ...     "scale": torch.ones(1, 1),
        ...     "jitter": torch.zeros(1, 1, 4, 2),
        ... }
        >>> implant.warp(names=("hood",)).apply({}, sample, batch)["image"][0, 0]
        tensor([[0., 1., 1., 0.]])

    References:
        Heckbert (1989), Fundamentals of Texture Mapping and Image Warping, section 2.2.3: from corners to the
        homography.
    """

    scale: Range = Range(1.0, 1.0)
    jitter_frac: float = 0.0
    antialias: bool = True
    match_brightness: bool = False
    names: tuple[str, ...] | None = None
    angle_deg: Range = Range(0.0, 0.0)
    boxes: Boxes = "all"

    def __post_init__(self) -> None:
        check_range("warp(angle_deg)", self.angle_deg, -180.0, 180.0)
        check_choice("warp(boxes)", self.boxes, get_args(Boxes))
        check_range("warp(scale)", self.scale, low=1e-3, high=4.0)
        check_number("warp(jitter_frac)", self.jitter_frac, 0.0, 0.5)


class WarpSample(TypedDict):
    """Per placement: opacity, 0 to leave it out; scale; jitter of each corner along x and y."""

    opacity: Float[Tensor, "b k"]
    angle_deg: NotRequired[Float[Tensor, "b k"]]
    placement: NotRequired[Int64[Tensor, " b"]]
    scale: Float[Tensor, "b k"]
    jitter: Float[Tensor, "b k 4 2"]


def sample(config: Warp, keys: Tensor, batch: Batch) -> WarpSample:
    k = batch["quads"].shape[1]
    j = config.jitter_frac
    return {  # type: ignore[return-value]
        "opacity": torch.ones(len(keys), k),
        "scale": random.uniform(fold_in(keys, "scale"), (k,), *config.scale),
        "jitter": random.uniform(fold_in(keys, "jitter"), (k, 4, 2), -j, j),
        **draw_angles(config.angle_deg, keys, k),
        **_draw_one(config, keys, batch),
    }


def _draw_one(config: Warp, keys: Tensor, batch: Batch) -> dict[str, Tensor]:
    if config.boxes == "all":
        return {}
    return {"placement": draw_placement(config.boxes, fold_in(keys, "placement"), batch)}


def apply(config: Warp, patch_params: Params, sample: WarpSample, values: Values) -> Values:
    quads = values["quads"]
    side = (quads.roll(-1, -2) - quads).square().sum(-1).sqrt().mean(-1)[..., None, None]
    moved = turn(_scale(quads, sample["scale"][..., None, None]), sample) + sample["jitter"] * side
    return implant(config, sample, values, moved)


def declare(config: Warp) -> dict[str, Any]:
    """Declare the fields that the settings add to the sample."""
    return declare_fields(config, WarpSample, *(("placement",) if config.boxes == "one" else ()))


def check(config: Warp, values: Values) -> dict[str, list[str]]:
    """Return placements that are too small at the smallest scale, without jitter."""
    return find_small(values, _scale(values["quads"], config.scale.low))


def _scale(quads: Tensor, scale: Tensor | float) -> Tensor:
    center = quads.mean(-2, keepdim=True)
    return center + (quads - center) * scale


def show(config: Warp, values: Values, control_values: Values) -> Values:
    """Show the first image with and without the patch, and the share of pixels that the patch changes."""
    changed = (values["image"] != control_values["image"]).any(1)
    return {
        "patch": values["image"][0],
        "none": control_values["image"][0],
        "covered_frac": changed.float().mean(),
    }


warp = define(
    "warp",
    Warp,
    sample,
    apply,
    reads=READS,
    optional=OPTIONAL,
    writes=("image",),
    fill=fill_names,
    declare=declare,
    eager=True,
    check=check,
    show=show,
)
