"""Soft proofs: prints simulated from ICC profiles, with littlecms (through Pillow) as the color engine.

A color goes from sRGB to the inks of the profile by one of the four rendering intents, and back to sRGB as
the measured color of those inks. "absolute" shows the color of the paper; the other three show it as white.

References:
    ICC.1:2022, Image technology color management, section 6.2 (rendering intents).
"""

import io
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms
from torch import Tensor

from fpatch.core.inputs import check_file
from fpatch.core.resource import define_loader
from fpatch.ops.color import clip

Intent = Literal["perceptual", "relative", "saturation", "absolute"]
INTENTS = {
    "perceptual": ImageCms.Intent.PERCEPTUAL,
    "relative": ImageCms.Intent.RELATIVE_COLORIMETRIC,
    "saturation": ImageCms.Intent.SATURATION,
    "absolute": ImageCms.Intent.ABSOLUTE_COLORIMETRIC,
}
TABLE_STEP = 3
"""8-bit levels between the nodes of a table: 86 per axis, on levels that the engine need not round."""


def load_profile(path: str | Path | None = None) -> UInt8[Tensor, " n"]:
    """Read the bytes of a printer's ICC profile; without a path, of the default profile.

    The default profile is of offset printing on coated paper, from the data of ANSI CGATS/GRACoL TR 006-2007;
    see `profiles/LICENSE.txt`.

    Raises:
        ValueError: If the file is no ICC profile, or not that of a printer.

    Example:
        >>> from fpatch import create
        >>> profile = create.icc_profile()  # or icc_profile("printer.icc")
        >>> profile.value.dtype, bytes(profile.value[36:40].tolist())  # the signature of ICC profiles
        (torch.uint8, b'acsp')
    """
    file = files("fpatch.create") / "profiles/coated_tr006.icc" if path is None else Path(path)
    data = (check_file(file) if isinstance(file, Path) else file).read_bytes()
    try:
        profile: Any = ImageCms.ImageCmsProfile(io.BytesIO(data)).profile
    except (OSError, ImageCms.PyCMSError) as error:
        raise ValueError("it is no ICC profile") from error
    if profile.device_class != "prtr":
        raise ValueError(f"it is a profile of class {profile.device_class!r}; give a printer's, 'prtr'")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def check_intent(field: str, intent: str) -> None:
    """Check that a rendering intent is one of the four.

    Raises:
        ValueError: Naming the field and the four intents.
    """
    if intent not in INTENTS:
        raise ValueError(f"{field} must be one of {', '.join(INTENTS)}, got {intent!r}")


@torch.library.custom_op("fpatch::soft_proof", mutates_args=())
def proof(image: Tensor, profile: Tensor, intent: str) -> Tensor:
    """Return the print of an image [..., 3, h, w] in 0..1, as the engine computes it on 256 levels."""
    levels = (image.detach().nan_to_num().clamp(0.0, 1.0) * 255).round().to("cpu", torch.uint8)
    pixels = levels.movedim(-3, -1).reshape(-1, image.shape[-1], 3).numpy()
    transform = _make_transform(profile.cpu().numpy().tobytes(), intent)
    printed = np.array(ImageCms.applyTransform(Image.fromarray(pixels), transform))
    colors = torch.from_numpy(printed).reshape(*image.shape[:-3], *image.shape[-2:], 3).movedim(-1, -3)
    return (colors.to(image) / 255).contiguous()


@proof.register_fake
def _(image: Tensor, profile: Tensor, intent: str) -> Tensor:
    return torch.empty_like(image, memory_format=torch.contiguous_format)


@lru_cache(maxsize=8)
def bake_table(profile: bytes, intent: str) -> Float[Tensor, "n n n 3"]:
    """Tabulate the engine: entry [r, g, b] is the print of the color (r, g, b) / (n - 1)."""
    levels = torch.arange(0, 256, TABLE_STEP) / 255
    grid = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij"))
    data = torch.frombuffer(bytearray(profile), dtype=torch.uint8)
    return proof(grid.flatten(1, 2), data, intent).unflatten(1, (len(levels), -1)).movedim(0, -1)


def look_up(image: Float[Tensor, "*batch 3 h w"], table: Float[Tensor, "n n n 3"]) -> Tensor:
    """Interpolate trilinearly in a table of colors; differentiable, constant outside 0..1."""
    n = table.shape[0]
    place = clip(image) * (n - 1)
    node = place.detach().nan_to_num().floor().clamp(0, n - 2)
    (r, g, b), weights = node.long().unbind(-3), (place - node).unbind(-3)
    colors = table.to(image, non_blocking=True).flatten(0, 2)
    total = torch.zeros_like(image)
    for corner in range(8):
        dr, dg, db = corner >> 2, corner >> 1 & 1, corner & 1
        share = torch.ones_like(weights[0])
        for step, weight in zip((dr, dg, db), weights, strict=True):
            share = share * (weight if step else 1 - weight)
        index = ((r + dr) * n + g + dg) * n + b + db
        total = total + share.unsqueeze(-3) * colors[index].movedim(-1, -3)
    return total


@lru_cache(maxsize=8)
def _make_transform(profile: bytes, intent: str) -> ImageCms.ImageCmsTransform:
    screen = ImageCms.createProfile("sRGB")
    back = "absolute" if intent == "absolute" else "relative"
    # without the engine's own table of 33 nodes, which it would interpolate in
    exact = ImageCms.Flags.SOFTPROOFING | ImageCms.Flags.NOOPTIMIZE
    paper = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildProofTransform(
        screen, screen, paper, "RGB", "RGB", INTENTS[intent], INTENTS[back], exact
    )


icc_profile = define_loader("icc_profile", load_profile)
