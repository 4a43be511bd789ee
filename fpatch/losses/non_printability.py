"""Non-printability score: how far every pixel is from the nearest color that a printer can print."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values

_LEVELS = (0.06, 0.35, 0.64, 0.93)
PRINTABLE = tuple((r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS)
"""A generic grid of 64 sRGB colors inside the range of a print: no ink is darker than 6 %, no paper lighter
than
93 %. Measure your own printer, and give its colors, when it matters."""


@dataclass(frozen=True)
class NonPrintability:
    """Printable colors, sRGB in 0..1."""

    colors: tuple[tuple[float, float, float], ...] = PRINTABLE

    def __post_init__(self) -> None:
        if not self.colors or not all(len(c) == 3 and 0 <= min(c) <= max(c) <= 1 for c in self.colors):
            raise ValueError("non_printability(colors) must be (red, green, blue) triples within 0..1")


def apply(config: NonPrintability, patch_params: Params, sample: Sample, values: Values) -> Values:
    rows = len(values["image_id"])
    colors = torch.tensor(config.colors, device=values["image_id"].device)
    terms = [distance_to_colors(patch, colors).expand(rows) for patch in values["patch"].values()]
    return {"non_printability": torch.stack(terms).mean(0)}


def distance_to_colors(patch: Tensor, colors: Float[Tensor, "n 3"]) -> Tensor:
    """Mean over the pixels of the distance to the nearest color.

    The score of the paper is a product over colors, which vanishes near any of them; like most later work we
    take the distance to the nearest color, which has the same zeros and usable gradients.

    Args:
        patch: [3, h, w] or [b, 3, h, w].
        colors: Printable colors.

    References:
        Sharif, Bhagavatula, Bauer and Reiter (2016), Accessorize to a Crime, equation 5.
    """
    pixels = patch.flatten(-2).transpose(-1, -2)
    squared = (pixels[..., :, None, :] - colors.to(pixels)).square().sum(-1)
    return squared.amin(-1).clamp(min=1e-12).sqrt().mean(-1)


non_printability = define(
    "non_printability",
    NonPrintability,
    deterministic,
    apply,
    reads=("patch", "image_id"),
    writes=("non_printability",),
    role="loss",
)
