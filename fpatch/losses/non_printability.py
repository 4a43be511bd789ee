"""Non-printability score: how far every pixel is from the nearest color that a printer can print."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.resource import Resource, define_loader, resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches
from fpatch.ops.patches import check_color
from fpatch.ops.stable import root

Colors = tuple[tuple[float, float, float], ...]

_LEVELS = (0.06, 0.35, 0.64, 0.93)
PRINTABLE: Colors = tuple((r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS)
"""A generic grid of 64 sRGB colors inside the range of a print: no ink is darker than 6 %, no paper lighter
than 93 %. Measure your own printer, and give its colors, when it matters."""

_CHUNK = 4096
"""Pixels compared with all colors at a time."""


@dataclass(frozen=True)
class NonPrintability:
    """What counts as printable.

    Attributes:
        colors: Printable colors, sRGB in 0..1, or a `color_list`.
        only: Patches that count; None for all.
    """

    colors: Resource | Colors = PRINTABLE
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        colors = resolve(self.colors)
        if not colors or not all(len(c) == 3 and all(0 <= level <= 1 for level in c) for c in colors):
            raise ValueError("non_printability(colors) must be (red, green, blue) triples within 0..1")


def apply(config: NonPrintability, patch_params: Params, sample: Sample, values: Values) -> Values:
    colors = torch.tensor(resolve(config.colors))

    def score(name: str, patch: Tensor) -> Tensor:
        check_color("non_printability", name, patch)
        return distance_to_colors(patch, colors)

    return {"non_printability": mean_over_patches("non_printability(only)", config.only, values, score)}


def distance_to_colors(patch: Tensor, colors: Float[Tensor, "n 3"]) -> Tensor:
    """Mean over the pixels of the distance to the nearest color; a number, or [b] for patches [b, 3, h, w].

    The score of the paper is a product over colors, which vanishes near any of them; like most later work we
    take the distance to the nearest color, which has the same zeros and usable gradients. Which color that is
    needs no gradient, so that memory is a few times that of the patch, however many the colors.

    Args:
        patch: [3, h, w] or [b, 3, h, w].
        colors: Printable colors.

    References:
        Sharif, Bhagavatula, Bauer and Reiter (2016), Accessorize to a Crime, equation 5.
    """
    colors = colors.to(patch, non_blocking=True)
    pixels = patch.flatten(-2).transpose(-1, -2)
    parts = pixels.detach().reshape(-1, 3).split(_CHUNK)
    index = torch.cat([nearest_color(part, colors) for part in parts]).reshape(pixels.shape[:-1])
    return root((pixels - colors[index]).square().sum(-1)).mean(-1)


def nearest_color(pixels: Float[Tensor, "m 3"], colors: Float[Tensor, "n 3"]) -> Int64[Tensor, " m"]:
    """Index of the nearest color, the first of equals."""
    red, green, blue = ((p[:, None] - c).square() for p, c in zip(pixels.T, colors.T, strict=True))
    return (red + green + blue).argmin(-1)


def read_colors(path: str | Path) -> Colors:
    """Colors from a text file: red, green and blue in 0..1 on each line, separated by commas or blanks.

    Empty lines and those that start with # are skipped.

    Raises:
        ValueError: With the line and what it holds.
    """
    colors = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            red, green, blue = map(float, line.replace(",", " ").split())
        except ValueError:
            found = "expected red, green and blue, such as 0.1, 0.2, 0.3; start other lines with #"
            raise ValueError(f"line {number}: {line.strip()!r}: {found}") from None
        if not all(0 <= level <= 1 for level in (red, green, blue)):
            raise ValueError(
                f"line {number}: {line.strip()!r}: colors must be within 0..1; divide levels by 255"
            )
        colors.append((red, green, blue))
    if not colors:
        raise ValueError("it holds no color")
    return tuple(colors)


color_list = define_loader("color_list", read_colors)
non_printability = define(
    "non_printability",
    NonPrintability,
    deterministic,
    apply,
    reads=("patch", "image_id"),
    writes=("non_printability",),
    role="loss",
    of_patch=True,
)
