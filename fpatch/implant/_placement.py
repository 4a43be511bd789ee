"""What the implanters share: which placements they fill, how they call the kernel, and what is too small."""

import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Sample, Values
from fpatch.ops.geometry import quad_bounds
from fpatch.ops.patches import check_only
from fpatch.ops.region import implant_quads

Boxes = Literal["all", "one"]
ALL_PLACEMENTS = -1
SMALLEST_PX = 4.0
"""A patch with a shorter side is reported: a victim sees next to nothing of it."""


def draw_placement(boxes: Boxes, keys: Tensor, batch: Batch) -> Int64[Tensor, " b"]:
    """The index of one valid placement per row, each as likely; -1 for all, 0 in a row that has none."""
    valid = batch["quad_valid"].long()
    if boxes == "all":
        return torch.full((len(keys),), ALL_PLACEMENTS)
    rank = random.randint(keys, (), 0, valid.sum(-1).clamp(min=1))
    return (valid.cumsum(-1) <= rank[:, None]).sum(-1) % valid.shape[-1]


def patch_names(config: Any, values: Values) -> tuple[str, ...]:
    """What `quad_patch` counts.

    Raises:
        ValueError: If neither the setting nor a parameterization says it, or one of them is no patch.
    """
    field = f"{type(config).__module__.rpartition('.')[2]}(names)"
    if config.names is None:
        raise ValueError(f"{field} must say what quad_patch counts, where no parameterization does")
    check_only(field, config.names, tuple(values["patch"]))
    return config.names


def patch_size(config: Any, values: Values) -> Float[Tensor, "b k 2"]:
    """Width and height of the patch that each placement shows, in its own pixels."""
    patches, quads = values["patch"], values["quads"]
    sizes = [[patches[name].shape[-1], patches[name].shape[-2]] for name in patch_names(config, values)]
    return constant(sizes, quads)[values["quad_patch"]]


def placement_box(values: Values) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k 2"]]:
    """The box around each placement: its top-left corner, and its width and height."""
    bounds = quad_bounds(values["quads"])
    return bounds[..., :2], bounds[..., 2:] - bounds[..., :2]


def implant(config: Any, sample: Sample, values: Values, quads: Tensor) -> Values:
    """The image with the sampled placements filled: patches in `quads`, through the region kernel."""
    if not values["scene"].is_floating_point():
        raise ValueError(f"scene must be floats in 0..1, got {values['scene'].dtype}; divide levels by 255")
    opacity = sample["opacity"] * values["quad_valid"]
    if "placement" in sample:
        chosen = sample["placement"][:, None]
        index = torch.arange(opacity.shape[1], device=chosen.device)
        opacity = opacity * ((chosen == ALL_PLACEMENTS) | (chosen == index))
    image = implant_quads(
        values["scene"],
        values["patch"],
        patch_names(config, values),
        quads,
        values["quad_patch"],
        opacity,
        values.get("masks"),
        config.antialias,
        config.match_brightness,
    )
    return {"image": image}


def find_small(values: Values, quads: Tensor) -> dict[str, list[str]]:
    """The valid placements where the mean width or height of the quad is too small."""
    sides = (quads.roll(-1, -2) - quads).square().sum(-1).sqrt()
    size = torch.stack([sides[..., 0::2].mean(-1), sides[..., 1::2].mean(-1)], dim=-1)
    small = (size.amin(-1) < SMALLEST_PX) & values["quad_valid"]
    image_id = values.get("image_id", torch.arange(len(quads)))
    places = [
        "image {}, placement {}: {:.1f} x {:.1f} px".format(int(image_id[i]), j, *size[i, j].tolist())
        for i, j in small.nonzero().tolist()
    ]
    rule = f"a patch may be less than {SMALLEST_PX:g} px wide or high, of which a victim sees next to nothing"
    return {f"{rule}; enlarge it, or leave the placement out": places} if places else {}


def fill_names(config: Any, names: tuple[str, ...]) -> Any:
    """The setting `names` from the pipeline, where it is None."""
    return config if config.names is not None else dataclasses.replace(config, names=names)
