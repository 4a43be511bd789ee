"""A segmentation over the image: classes in colors and hatches, with a legend of their areas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from fpatch.core.checks import check_count, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.data.classes import name_class
from fpatch.graph.stage import define, deterministic
from fpatch.viz import style
from fpatch.viz._canvas import (
    FONT_PX,
    GAP_PX,
    LINE_PX,
    fit_image,
    fit_names,
    make_canvas,
    unit_of,
    write,
)
from fpatch.viz._pictures import PICTURE, stack_pictures, view_pictures
from fpatch.viz.unpacking import unpack

_COLORS = np.array([style.rgb(color) for color in style.COLORS], dtype=np.uint8)
_STEP_PX, _STRIPE_FRAC, _SWATCH_PX = 8, 0.625, 14
_DIRECTIONS = ((1, 1), (1, -1), (0, 1), (1, 0), (2, 1), (1, 2))
"""The stripes of the second, the third and further classes of one color, as steps along x and y."""


@dataclass(frozen=True)
class MaskOverlay:
    """Settings of `viz.mask_overlay`: the classes that are colored.

    A class has the same color and hatch in every picture, so that colors that return stay distinct. The
    legend lists the largest areas of the picture with their shares of all pixels. `true_segments` is drawn
    beside the answer. The stage writes `picture` [b, 3, h, w], uint8, of one size for all rows; see
    `viz.drawing`.

    Segments are numbers of classes [b, h, w], logits [b, c, h, w], of which the highest counts, or a mask
    [b, h, w], bool. Their size may differ from that of the image.

    Attributes:
        class_names: Names by number; classes without a name are shown as numbers.
        hidden: Classes without color, such as the background, and 255 for pixels without a label. Negative
            numbers are never colored.
        opacity: The opacity of the colors, 0 to 1.
        num_classes: The most classes in the legend.
        width_px: The width of each image in the picture.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> segments = torch.tensor([[[0, 0, 1], [0, 2, 2]]])
        >>> stage = viz.mask_overlay(class_names=("road", "car", "sky"))
        >>> stage.apply({}, {}, {"image": torch.rand(1, 3, 24, 48), "segments": segments})["picture"].shape
        torch.Size([1, 3, 240, 320])

    Raises:
        ValueError: If a setting is outside its range, or the segments have another type or other axes.
    """

    class_names: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (255,)
    opacity: float = 0.55
    num_classes: int = 6
    width_px: int = 320

    def __post_init__(self) -> None:
        check_number("mask_overlay(opacity)", self.opacity, 0.0, 1.0)
        check_count("mask_overlay(num_classes)", self.num_classes, high=100)
        check_count("mask_overlay(width_px)", self.width_px, low=64, high=8192)


def apply(config: MaskOverlay, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Draw the segments of every image."""
    names = [name for name in ("segments", "true_segments") if name in values]
    read = values | {name: _number(name, values[name]) for name in names}
    rows = unpack(read, by_name={"image": "pil"})
    return {PICTURE: stack_pictures("mask_overlay", [_draw(config, row, names) for row in rows])}


def _number(name: str, segments: Tensor) -> Int64[Tensor, "b h w"]:
    """Return the number of the class of each pixel."""
    if segments.ndim == 4 and segments.is_floating_point():
        if not bool(segments.isfinite().all()):
            raise ValueError(
                f"mask_overlay: the logits {name!r} must be finite, got NaN or infinity; correct the stage "
                "that wrote them"
            )
        return segments.argmax(1)
    if segments.ndim != 3 or segments.is_floating_point():
        kind = str(segments.dtype).removeprefix("torch.")
        way = "convert numbers with .long()" if segments.ndim == 3 else "give numbers of classes, or logits"
        raise ValueError(
            f"mask_overlay: {name!r} must be numbers or bool [b, h, w], or logits [b, c, h, w], got {kind} "
            f"{list(segments.shape)}; {way}"
        )
    return segments.long()


def _draw(config: MaskOverlay, row: dict[str, Any], names: Sequence[str]) -> Image.Image:
    """Draw the overlays of one image beside each other, and the legend below."""
    width, unit = config.width_px, unit_of(config.width_px)
    line, gap = round(LINE_PX * unit), round(GAP_PX * unit)
    shown, font = fit_image(row["image"].convert("RGB"), width), style.pillow_font(round(FONT_PX * unit))
    above = line if len(names) > 1 else 0
    total, across = len(names) * width + (len(names) - 1) * gap, 2 * len(names)
    lines = -(-(config.num_classes + 1) // across)
    picture, pen = make_canvas(total, above + shown.height + gap + lines * line + 2)
    for i, name in enumerate(names):
        left = i * (width + gap) + (width - shown.width) // 2
        picture.paste(_color(config, shown, row[name], unit), (left, above))
        if above:
            write(pen, i * (width + gap) + 4, above / 2, "truth" if i else "answer", font)
    _draw_legend(config, picture, [row[name] for name in names], above + shown.height + gap, across)
    return picture


def _color(config: MaskOverlay, image: Image.Image, segments: NDArray[np.int64], unit: float) -> Image.Image:
    """Color an image by the classes of its pixels, with a line around every area."""
    place = np.arange(image.height) * segments.shape[0] // image.height
    large = segments[place][:, np.arange(image.width) * segments.shape[1] // image.width]
    pixels = np.asarray(image).astype(np.float32)
    for number in np.unique(large).tolist():
        if _is_colored(config, number):
            inside = (large == number) & hatch(number, image.height, image.width, unit)
            pixels[inside] += config.opacity * (_COLORS[number % len(_COLORS)] - pixels[inside])
    edge = np.zeros(large.shape, dtype=bool)
    edge[1:] |= large[1:] != large[:-1]
    edge[:, 1:] |= large[:, 1:] != large[:, :-1]
    pixels[edge] += config.opacity * (255.0 - pixels[edge])
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def hatch(number: int, height: int, width: int, unit: float) -> Bool[np.ndarray, "height width"]:
    """Return the pixels that a class colors: all for the first of a color, stripes for those that follow.

    Example:
        >>> from fpatch.viz.mask_overlay import hatch
        >>> hatch(0, 4, 4, 1.0).all(), hatch(7, 8, 8, 1.0).mean()
        (np.True_, np.float64(0.625))
    """
    again = number // len(_COLORS)
    if again == 0:
        return np.ones((height, width), dtype=bool)
    step_x, step_y = _DIRECTIONS[(again - 1) % len(_DIRECTIONS)]
    step = round(_STEP_PX * unit) * (1 + (again - 1) // len(_DIRECTIONS))
    along = step_x * np.arange(width) + step_y * np.arange(height)[:, None]
    return along % step < _STRIPE_FRAC * step


def _is_colored(config: MaskOverlay, number: int) -> bool:
    return number >= 0 and number not in config.hidden


def _draw_legend(
    config: MaskOverlay, picture: Image.Image, maps: Sequence[NDArray[np.int64]], top: int, across: int
) -> None:
    """Draw a swatch, a name and the shares of each of the largest classes, in columns."""
    unit, pen = unit_of(config.width_px), ImageDraw.Draw(picture)
    font, line, side = (
        style.pillow_font(round(FONT_PX * unit)),
        round(LINE_PX * unit),
        round(_SWATCH_PX * unit),
    )
    found = {n for m in maps for n in np.unique(m).tolist() if _is_colored(config, n)}
    areas = {n: [float((m == n).mean()) for m in maps] for n in found}
    order = sorted(areas, key=lambda n: (-max(areas[n]), n))
    chosen, column = order[: config.num_classes], picture.width / across
    shares = [" | ".join(f"{share:.0%}" for share in areas[n]) for n in chosen]
    room = column - side - max((font.getlength(share) for share in shares), default=0.0) - 18
    names = [name_class(config.class_names, n) for n in chosen]
    rest = f"and {len(order) - len(chosen)} more" if len(order) > len(chosen) else ""
    for i, name in enumerate(
        [*fit_names(names, chosen, font, room), rest or ("" if order else "no class is colored")]
    ):
        x, y = round(i % across * column) + 4, top + i // across * line
        if i < len(chosen):
            picture.paste(_swatch(chosen[i], side, unit), (x, y + (line - side) // 2))
            write(pen, x + column - 10, y + line / 2, shares[i], font, "rm")
        write(pen, x + (side + 4 if i < len(chosen) else 0), y + line / 2, name, font)


def _swatch(number: int, side: int, unit: float) -> Image.Image:
    """Return a square in the color and the hatch of a class."""
    pixels = np.full((side, side, 3), 255, dtype=np.uint8)
    pixels[hatch(number, side, side, unit)] = _COLORS[number % len(_COLORS)]
    pixels[[0, -1]] = pixels[:, [0, -1]] = _COLORS[number % len(_COLORS)]
    return Image.fromarray(pixels)


def describe(config: MaskOverlay) -> str:
    """Say what is drawn."""
    return "pictures of the classes of the pixels"


mask_overlay = define(
    "mask_overlay",
    MaskOverlay,
    deterministic,
    apply,
    reads=("image", "segments"),
    writes=("picture",),
    optional=("true_segments",),
    role="drawing",
    show=view_pictures,
    describe=describe,
    vmap=False,
    gradient=False,
    compile=False,
)
