"""Masks: the outline of a patch that is not a rectangle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpatch.resource import Resource, define_loader, live
from fpatch.stage import define, deterministic
from fpatch.tree import is_concrete
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class Mask:
    """Opacity by patch name, each [height, width] in 0..1 of any size, or a `mask_image`; else opaque."""

    masks: Mapping[str, Resource | Tensor]


def apply(config: Mask, patch_params: Params, sample: Sample, values: Values) -> Values:
    like = next(iter(values["patch"].values()))
    return {"masks": {name: _as_mask(name, live(m)).to(like) for name, m in config.masks.items()}}


def _as_mask(name: str, mask: Tensor) -> Tensor:
    if mask.ndim != 2 or (is_concrete(mask) and not 0 <= float(mask.min()) <= float(mask.max()) <= 1):
        raise ValueError(f"mask({name!r}) must be [height, width] within 0..1, got shape {list(mask.shape)}")
    return mask[None]


def load_mask(path: str | Path) -> Tensor:
    """The alpha channel of an image file, or its brightness if it has none, [h, w] in 0..1."""
    with Image.open(path) as image:
        band = image.convert("RGBA").getchannel("A") if image.has_transparency_data else image.convert("L")
        return torch.from_numpy(np.array(band)).float() / 255


mask_image = define_loader("mask_image", load_mask)
mask = define("mask", Mask, deterministic, apply, reads=("patch",), writes=("masks",))
