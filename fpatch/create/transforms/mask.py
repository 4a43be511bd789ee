"""Masks: outlines of patches that are not rectangular."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpatch.core.inputs import check_file
from fpatch.core.resource import Resource, define_loader, resolve
from fpatch.core.tree import is_concrete
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Mask:
    """Opacity by patch name, in 0..1; a patch without a mask is opaque.

    Attributes:
        masks: A number, a tensor [height, width] or [1, height, width], or a `mask_image`. The implant
            resizes it to its patch.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> place = torch.linspace(-1, 1, 5)
        >>> disk = (place.square() + place.square()[:, None] <= 1).float()
        >>> values = {"patch": {"hood": torch.full((3, 20, 20), 0.5)}}
        >>> create.mask({"hood": disk}).apply({}, {}, values)["masks"]["hood"].int()
        tensor([[[0, 0, 1, 0, 0],
                 [0, 1, 1, 1, 0],
                 [1, 1, 1, 1, 1],
                 [0, 1, 1, 1, 0],
                 [0, 0, 1, 0, 0]]], dtype=torch.int32)
    """

    masks: Mapping[str, float | Resource | Tensor]


def apply(config: Mask, patch_params: Params, sample: Sample, values: Values) -> Values:
    like = next(iter(values["patch"].values()))
    return {"masks": {name: _as_mask(name, resolve(m), like) for name, m in config.masks.items()}}


def _as_mask(name: str, given: float | Tensor, like: Tensor) -> Tensor:
    mask = torch.as_tensor(given, dtype=like.dtype).to(like.device, non_blocking=True)
    if mask.ndim < 3:
        mask = mask.expand(1, *mask.shape) if mask.ndim else mask.expand(1, 1, 1)
    in_range = not is_concrete(mask) or bool(((mask >= 0) & (mask <= 1)).all())
    if mask.ndim != 3 or len(mask) != 1 or not mask.numel() or not in_range:
        what = f"shape {list(given.shape)}" if isinstance(given, Tensor) else given
        way = "give one channel, such as mask[:1], for all colors" if mask.ndim == 3 and len(mask) > 1 else ""
        way = "divide levels by 255" if not way and not in_range and mask.max() > 2 else way
        raise ValueError(
            f"mask({name!r}) must be a number, [height, width] or [1, height, width], within 0..1, got {what}"
            f"{'; ' if way else ''}{way}"
        )
    return mask


def load_mask(path: str | Path) -> Tensor:
    """Read the alpha channel of an image file, or its brightness if it has none, [h, w] in 0..1.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from fpatch import create
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (3, 2), 255).save(file.name)
        ...     create.mask_image(file.name).value.tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    try:
        with Image.open(check_file(path)) as image:
            if image.mode == "F" or image.mode.startswith("I"):
                raise ValueError(f"pixels of mode {image.mode} have no fixed range")
            is_clear = image.has_transparency_data
            band = image.convert("RGBA").getchannel("A") if is_clear else image.convert("L")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        what = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"not a readable image ({what}); save it again as 8-bit PNG") from error
    mask = torch.from_numpy(np.array(band)).float() / 255
    if not bool(mask.any()):
        raise ValueError("the mask hides the whole patch: all of it is black, or transparent; draw it white")
    return mask


mask_image = define_loader("mask_image", load_mask)
mask = define("mask", Mask, deterministic, apply, reads=("patch",), writes=("masks",))
