"""Place each patch upright, at a random size and position within the box around its placement."""

import dataclasses
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.checks import check_range
from fpatch.geometry import box_corners, quad_bounds
from fpatch.random import fold_in
from fpatch.region import implant_quads
from fpatch.stage import define
from fpatch.types import Batch, Params, Range, Values


@dataclass(frozen=True)
class Rectangle:
    """Size and position in the box.

    Attributes:
        scale: Size of the patch relative to the largest that fits the box with its aspect ratio kept.
        offset_frac: Position in the room that is left, along x and y: 0 left or top, 1 right or bottom.
        names: Patches in the order that `quad_patch` counts; None: those of the pipeline.
    """

    scale: Range = Range(0.5, 1.0)
    offset_frac: Range = Range(0.0, 1.0)
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_range("rectangle(scale)", self.scale, low=1e-3, high=1.0)
        check_range("rectangle(offset_frac)", self.offset_frac, 0.0, 1.0)


class RectangleSample(TypedDict):
    """Per placement: opacity 0 takes it out."""

    opacity: Float[Tensor, "b k"]
    scale: Float[Tensor, "b k"]
    offset_frac: Float[Tensor, "b k 2"]


def sample(config: Rectangle, keys: Tensor, batch: Batch) -> RectangleSample:
    k = batch["quads"].shape[1]
    return {
        "opacity": torch.ones(len(keys), k),
        "scale": random.uniform(fold_in(keys, "scale"), (k,), *config.scale),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (k, 2), *config.offset_frac),
    }


def apply(config: Rectangle, patch_params: Params, sample: RectangleSample, values: Values) -> Values:
    if config.names is None:
        raise ValueError("rectangle(names) must say what quad_patch counts, where no parameterization does")
    bounds, patches = quad_bounds(values["quads"]), values["patch"]
    low, room = bounds[..., :2], bounds[..., 2:] - bounds[..., :2]
    sizes = room.new_tensor([[patches[n].shape[-1], patches[n].shape[-2]] for n in config.names])
    size = sizes[values["quad_patch"]]
    fitted = size * (room / size).amin(-1, keepdim=True) * sample["scale"][..., None]
    corner = low + (room - fitted) * sample["offset_frac"]
    image = implant_quads(
        values["scene"],
        patches,
        config.names,
        box_corners(torch.cat([corner, corner + fitted], dim=-1)),
        values["quad_patch"],
        sample["opacity"] * values["quad_valid"],
        values.get("masks"),
    )
    return {"image": image}


def fill(config: Rectangle, names: tuple[str, ...]) -> Rectangle:
    return config if config.names is not None else dataclasses.replace(config, names=names)


rectangle = define(
    "rectangle",
    Rectangle,
    sample,
    apply,
    reads=("scene", "quads", "quad_patch", "quad_valid", "patch"),
    optional=("masks",),
    writes=("image",),
    fill=fill,
)
