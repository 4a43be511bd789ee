"""Helpers of the implanters: what they read, placements, the call of the kernel, and small patches."""

import dataclasses
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Range, Sample, Values
from fpatch.graph.drawable import ALL_PLACEMENTS
from fpatch.graph.mistakes import find_image
from fpatch.ops.geometry import quad_bounds
from fpatch.ops.patches import check_only
from fpatch.ops.region import implant_quads

READS = ("scene", "quads", "quad_patch", "quad_valid", "patch")
"""The values that every implanter reads."""

OPTIONAL = ("masks", "image_id")
"""The values that every implanter reads where they exist."""

Boxes = Literal["all", "one"]
"""Fill all placements of an image, or one of them."""

_SMALLEST_PX = 4.0
"""`fpatch doctor` reports a patch with a shorter side: a victim sees next to nothing of it."""


def draw_placement(boxes: Boxes, keys: Tensor, batch: Batch) -> Int64[Tensor, " b"]:
    """Draw the index [b] of one valid placement per row, all equally likely.

    The index is -1 where all placements are filled, and 0 in a row without a valid one.
    """
    valid = batch["quad_valid"].long()
    if boxes == "all":
        return torch.full((len(keys),), ALL_PLACEMENTS)
    rank = random.randint(keys, (), 0, valid.sum(-1).clamp(min=1))
    return (valid.cumsum(-1) <= rank[:, None]).sum(-1) % valid.shape[-1]


def patch_names(config: Any, values: Values) -> tuple[str, ...]:
    """Return the names of the patches in the order that `quad_patch` counts.

    Raises:
        ValueError: If the setting `names` is None, which no parameterization filled, or names no patch.
    """
    field = f"{type(config).__module__.rpartition('.')[2]}(names)"
    if config.names is None:
        raise ValueError(
            f"{field} must list the patches that quad_patch counts, got None; give names=(...), or put a "
            "parameterization into the pipeline"
        )
    check_only(field, config.names, tuple(values["patch"]))
    return config.names


def patch_size(config: Any, values: Values) -> Float[Tensor, "b k 2"]:
    """Return width and height of the patch that each placement shows, in pixels of the patch."""
    patches, quads = values["patch"], values["quads"]
    sizes = [[patches[name].shape[-1], patches[name].shape[-2]] for name in patch_names(config, values)]
    return constant(sizes, quads)[values["quad_patch"]]


def draw_angles(angle_deg: Range, keys: Tensor, num_placements: int) -> dict[str, Tensor]:
    """Draw the angle [b, k] of each placement as the field `angle_deg`; no field for the range (0, 0)."""
    if not any(angle_deg):
        return {}
    return {"angle_deg": random.uniform(random.fold_in(keys, "angle_deg"), (num_placements,), *angle_deg)}


def declare_fields(config: Any, sample: Any, *names: str) -> dict[str, Any]:
    """Declare the fields that settings add to those that a sample always has."""
    angle = ("angle_deg",) if any(config.angle_deg) else ()
    added = (*names, *angle)
    return (
        {"fields": (*(n for n in sample.__annotations__ if n in sample.__required_keys__), *added)}
        if added
        else {}
    )


def turn(quads: Float[Tensor, "b k 4 2"], sample: Sample) -> Float[Tensor, "b k 4 2"]:
    """Turn quads about the mean of their corners by the sampled angles, clockwise on the screen."""
    if "angle_deg" not in sample:
        return quads
    # double: the last bits of float32 sin and cos differ between the vectorized part of a tensor and its tail
    angle = torch.deg2rad(sample["angle_deg"].double())[..., None]
    cos, sin = angle.cos().to(quads), angle.sin().to(quads)
    center = quads.mean(-2, keepdim=True)
    x, y = (quads - center).unbind(-1)
    return center + torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def placement_box(values: Values) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k 2"]]:
    """Return the upright box around each placement: its top-left corner, and its width and height."""
    bounds = quad_bounds(values["quads"])
    return bounds[..., :2], bounds[..., 2:] - bounds[..., :2]


def implant(config: Any, sample: Sample, values: Values, quads: Tensor) -> Values:
    """Return the image with the sampled placements filled, drawn into `quads` by the region kernel.

    Raises:
        ValueError: If the scene is not float32, or `patch_names` or the kernel refuses the values.
    """
    if found := find_image(values["scene"]):
        raise ValueError(f"scene must be float32 [b, 3, h, w] in 0..1, got {found}")
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
    """Return the valid placements whose quad has a mean width or height below `_SMALLEST_PX`, by rule."""
    sides = (quads.roll(-1, -2) - quads).square().sum(-1).sqrt()
    size = torch.stack([sides[..., 0::2].mean(-1), sides[..., 1::2].mean(-1)], dim=-1)
    small = (size.amin(-1) < _SMALLEST_PX) & values["quad_valid"]
    image_id = values.get("image_id", torch.arange(len(quads)))
    places = [
        "image {}, placement {}: {:.1f} x {:.1f} px".format(int(image_id[i]), j, *size[i, j].tolist())
        for i, j in small.nonzero().tolist()
    ]
    rule = f"a patch may be less than {_SMALLEST_PX:g} px wide or high, too small for a victim to see"
    return {f"{rule}; enlarge it, or leave the placement out": places} if places else {}


def fill_names(config: Any, names: tuple[str, ...]) -> Any:
    """Fill the setting `names` with those of the pipeline where it is None."""
    return config if config.names is not None else dataclasses.replace(config, names=names)
