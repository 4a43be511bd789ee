"""Images, lines of text and fonts of drawings by Pillow, in the sizes of a panel of 320 pixels."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fpatch.core.names import show
from fpatch.viz import style
from fpatch.viz.names import clip_name

FONT_PX, LINE_PX, GAP_PX, UNIT_PX = 13, 18, 6, 320
"""Sizes in a panel of 320 pixels; they grow with the panel."""

TALLEST = 3
"""The greatest height of an image in a panel, in widths of the panel."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK, PALE = map(style.rgb, (style.PAPER, style.INK, style.PALE))


def unit_of(width_px: int) -> float:
    """Return the factor of sizes in a panel of this width: 1 up to 320 pixels."""
    return max(width_px / UNIT_PX, 1.0)


def fit_font(text: str, width: int, px: int) -> Font:
    """Return the font of a line, smaller if the line is too long for the width."""
    while px > 6 and style.pillow_font(px).getlength(text) > width:
        px -= 1
    return style.pillow_font(px)


def fit_image(image: Image.Image, width: int) -> Image.Image:
    """Resize an image to a width, or to the greatest height of a panel."""
    scale = min(width / image.width, TALLEST * width / image.height)
    sides = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(sides, Image.Resampling.BICUBIC)


def fit_names(names: Sequence[str], numbers: Sequence[int], font: Font, width: float) -> list[str]:
    """Clip names to a width in pixels; names that become equal end in their numbers, such as "[2]".

    Example:
        >>> from fpatch.viz import style
        >>> from fpatch.viz._canvas import fit_names
        >>> names = ["stop", "a sign of a speed limit, 30", "a sign of no speed limit, 30"]
        >>> fit_names(names, (5, 7, 9), style.pillow_font(13), 110)[0]
        'stop'
    """
    shown = [_clip(name, font, width) for name in names]
    return [
        _clip(name, font, width, f" [{number}]") if shown.count(short) > 1 else short
        for name, number, short in zip(names, numbers, shown, strict=True)
    ]


def _clip(name: str, font: Font, width: float, end: str = "") -> str:
    """Clip a name so that it fits with its end."""
    text, most = show(name).replace("\n", " "), len(name)
    while most > 1 and font.getlength(text + end) > width:
        most -= 1
        text = clip_name(name, most) if most > 6 else name[:most]
    return text + end


def make_canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return white paper of a size, and a pen for it."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def write(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, font: Any, anchor: str = "lm") -> None:
    """Write a line of text in ink at a point, by default its left end at half height."""
    pen.text((x, y), text, fill=INK, font=font, anchor=anchor)
