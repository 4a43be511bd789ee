"""The non-printability score: the distance of every pixel to the nearest printable color."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.inputs import read_text
from fpatch.core.resource import Resource, define_loader, resolve
from fpatch.core.text import read_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches
from fpatch.ops.patches import check_color
from fpatch.ops.stable import root

Colors = tuple[tuple[float, float, float], ...]

_LEVELS = (0.06, 0.35, 0.64, 0.93)
PRINTABLE: Colors = tuple((r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS)
"""A generic grid of 64 sRGB colors: no ink is darker than 6 %, no paper lighter than 93 %.

For a study with real prints, measure the printer and give its colors."""

_CHUNK = 4096
"""Pixels compared with all colors at once."""


@dataclass(frozen=True)
class NonPrintability:
    """Settings of `losses.non_printability`: the printable colors, and the patches that count.

    The stage writes `non_printability` [b].

    Attributes:
        colors: Printable colors, sRGB in 0..1, or a `losses.color_list`.
        only: Names of the patches that count; None for all.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> stage = losses.non_printability(colors=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
        >>> patches = {"sticker": torch.tensor([1.0, 0.5, 1.0])[:, None, None].expand(3, 2, 2)}
        >>> stage.apply({}, {}, {"patch": patches, "image_id": torch.tensor([0])})["non_printability"]
        tensor([0.5000])

    References:
        Sharif, Bhagavatula, Bauer and Reiter (2016), Accessorize to a Crime, equation 5.
    """

    colors: Resource | Colors = PRINTABLE
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        colors = resolve(self.colors)
        if not colors or not all(len(c) == 3 and all(0 <= level <= 1 for level in c) for c in colors):
            raise ValueError(
                "non_printability(colors) must be (red, green, blue) triples within 0..1; divide levels by "
                "255"
            )


def apply(config: NonPrintability, patch_params: Params, sample: Sample, values: Values) -> Values:
    colors = torch.tensor(resolve(config.colors))

    def score(name: str, patch: Tensor) -> Tensor:
        check_color("non_printability", name, patch)
        return _distance_to_colors(patch, colors)

    return {"non_printability": mean_over_patches("non_printability(only)", config.only, values, score)}


def _distance_to_colors(patch: Tensor, colors: Float[Tensor, "n 3"]) -> Tensor:
    """Return the mean distance of the pixels to their nearest color.

    The paper's score is a product over colors, which vanishes near any of them. Like most later work we take
    the distance to the nearest color: it has the same zeros and usable gradients. The choice of that color
    needs no gradient, so memory does not grow with the number of colors.

    Args:
        patch: [3, h, w] or [b, 3, h, w].
        colors: Printable colors, sRGB in 0..1.

    Returns:
        A number, or [b].

    References:
        Sharif, Bhagavatula, Bauer and Reiter (2016), Accessorize to a Crime, equation 5.
    """
    colors = colors.to(patch, non_blocking=True)
    pixels = patch.flatten(-2).transpose(-1, -2)
    parts = pixels.detach().reshape(-1, 3).split(_CHUNK)
    index = torch.cat([_nearest_color(part, colors) for part in parts]).reshape(pixels.shape[:-1])
    return root((pixels - colors[index]).square().sum(-1)).mean(-1)


def _nearest_color(pixels: Float[Tensor, "m 3"], colors: Float[Tensor, "n 3"]) -> Int64[Tensor, " m"]:
    """Return the index of the nearest color, the first of equals."""
    red, green, blue = ((p[:, None] - c).square() for p, c in zip(pixels.T, colors.T, strict=True))
    return (red + green + blue).argmin(-1)


def _read_colors(path: str | Path) -> Colors:
    r"""Read colors from a text file: red, green and blue in 0..1 on each line.

    Commas or blanks separate the numbers. Empty lines and lines that start with # are skipped.

    Args:
        path: The file.

    Raises:
        ValueError: With the line and its text, if it is no color within 0..1; if the file holds no color.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch import losses
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "printer.csv")
        ...     _ = file.write_text("# measured\n0.1, 0.2, 0.3\n")
        ...     losses.color_list(file).value
        ((0.1, 0.2, 0.3),)
    """
    colors = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            red, green, blue = (read_number("a level", t) for t in line.replace(",", " ").split())
        except ValueError:
            found = "expected red, green and blue, such as 0.1, 0.2, 0.3; start other lines with #"
            raise ValueError(f"line {number}: {line.strip()!r}: {found}") from None
        if not all(0 <= level <= 1 for level in (red, green, blue)):
            raise ValueError(
                f"line {number}: {line.strip()!r}: colors must be within 0..1; divide levels by 255"
            )
        colors.append((red, green, blue))
    if not colors:
        raise ValueError(
            "the file must hold one color at least, and holds none; add a line such as 0.1, 0.2, 0.3"
        )
    return tuple(colors)


color_list = define_loader("color_list", _read_colors)
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
