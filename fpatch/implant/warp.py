"""Warp each patch onto the four corners of its placement."""

import dataclasses
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.checks import check_number, check_range
from fpatch.random import fold_in
from fpatch.region import implant_quads
from fpatch.stage import define
from fpatch.types import Batch, Params, Range, Values


@dataclass(frozen=True)
class Warp:
    """Size and misplacement of the patch in its quad.

    Attributes:
        scale: Size relative to the quad, about the mean of its corners.
        jitter_frac: Largest displacement of a corner along x and y, as a fraction of the quad's mean side.
        names: Patches in the order that `quad_patch` counts; None: those of the pipeline.
    """

    scale: Range = Range(1.0, 1.0)
    jitter_frac: float = 0.0
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_range("warp(scale)", self.scale, low=1e-3, high=4.0)
        check_number("warp(jitter_frac)", self.jitter_frac, 0.0, 0.5)


class WarpSample(TypedDict):
    """Per placement: opacity 0 takes it out; `jitter` is a displacement per corner."""

    opacity: Float[Tensor, "b k"]
    scale: Float[Tensor, "b k"]
    jitter: Float[Tensor, "b k 4 2"]


def sample(config: Warp, keys: Tensor, batch: Batch) -> WarpSample:
    k = batch["quads"].shape[1]
    j = config.jitter_frac
    return {
        "opacity": torch.ones(len(keys), k),
        "scale": random.uniform(fold_in(keys, "scale"), (k,), *config.scale),
        "jitter": random.uniform(fold_in(keys, "jitter"), (k, 4, 2), -j, j),
    }


def apply(config: Warp, patch_params: Params, sample: WarpSample, values: Values) -> Values:
    quads = values["quads"]
    if config.names is None:
        raise ValueError("warp(names) must say what quad_patch counts, where no parameterization does")
    center = quads.mean(-2, keepdim=True)
    side = (quads.roll(-1, -2) - quads).square().sum(-1).sqrt().mean(-1)[..., None, None]
    moved = center + (quads - center) * sample["scale"][..., None, None] + sample["jitter"] * side
    image = implant_quads(
        values["scene"],
        values["patch"],
        config.names,
        moved,
        values["quad_patch"],
        sample["opacity"] * values["quad_valid"],
        values.get("masks"),
    )
    return {"image": image}


def show(config: Warp, values: Values, control_values: Values) -> Values:
    """The first photograph with and without, and the share of pixels that the patch covers."""
    changed = (values["image"] != control_values["image"]).any(1)
    return {
        "patch": values["image"][0],
        "none": control_values["image"][0],
        "covered_frac": changed.float().mean(),
    }


def fill(config: Warp, names: tuple[str, ...]) -> Warp:
    return config if config.names is not None else dataclasses.replace(config, names=names)


warp = define(
    "warp",
    Warp,
    sample,
    apply,
    reads=("scene", "quads", "quad_patch", "quad_valid", "patch"),
    optional=("masks",),
    writes=("image",),
    fill=fill,
    show=show,
)
