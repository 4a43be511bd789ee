"""Images in rows and columns, with boxes and captions: control and patched beside each other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from fpatch.viz import style
from fpatch.viz._canvas import FONT_PX, INK, PAPER, TALLEST, fit_font, fit_image, unit_of
from fpatch.viz._labels import Box, Label, corners_at, place_labels

_FOUND, _TRUTH = map(style.rgb, (style.FOUND, style.TRUTH))
_PAD_PX, _STRIP_PX, _LINE_PX, _GAP_PX = 2, 22, 16, 8
"""Sizes in a panel of 320 pixels; they grow with the panel."""


class Panel(NamedTuple):
    """One image of a figure, with its boxes and caption.

    Attributes:
        image: [3, h, w] in 0..1.
        caption: A line above the image.
        detections: {"boxes" [m, 4], "scores", "labels", "valid" [m]}, drawn in orange if finite, the best on
            top, or None.
        truth: Boxes [k, 4], drawn in blue, or None. All boxes are xyxy in pixels of the image.
        truth_labels: The class of each of these [k], for its name, or None.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> viz.Panel(torch.zeros(3, 8, 16), "clean").caption
        'clean'
    """

    image: Float[Tensor, "3 h w"]
    caption: str = ""
    detections: Mapping[str, Tensor] | None = None
    truth: Tensor | None = None
    truth_labels: Tensor | None = None


def side_by_side(
    rows: Sequence[Sequence[Panel]],
    class_names: Sequence[str] = (),
    score: float = 0.5,
    panel_px: int = 320,
) -> Float[Tensor, "3 height width"]:
    """Draw rows of panels as one image.

    Args:
        rows: Panels; every row has the same number of columns.
        class_names: Names by label; labels without a name are shown as numbers.
        score: Detections below this score are not drawn.
        panel_px: Width of a panel; images are enlarged to it.

    Returns:
        The figure [3, height, width] in 0..1.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> box = torch.tensor([[2.0, 2.0, 12.0, 6.0]])
        >>> panel = viz.Panel(torch.zeros(3, 8, 16), "clean", truth=box)
        >>> viz.side_by_side([[panel, panel]], panel_px=64).shape  # gaps and captions included
        torch.Size([3, 70, 152])
    """
    captions = [[_wrap_caption(panel.caption, panel_px) for panel in row] for row in rows]
    lines = max(text.count("\n") + 1 for row in captions for text in row)
    drawn = [
        [
            draw_panel(panel._replace(caption=text), class_names, score, panel_px, lines)
            for panel, text in zip(row, texts, strict=True)
        ]
        for row, texts in zip(rows, captions, strict=True)
    ]
    height = max(p.height for row in drawn for p in row)
    gap = round(_GAP_PX * unit_of(panel_px))
    figure = Image.new(
        "RGB", (len(drawn[0]) * (panel_px + gap) + gap, len(drawn) * (height + gap) + gap), PAPER
    )
    for i, row in enumerate(drawn):
        for j, picture in enumerate(row):
            figure.paste(picture, (gap + j * (panel_px + gap), gap + i * (height + gap)))
    return torch.from_numpy(np.array(figure)).permute(2, 0, 1).float() / 255


def _wrap_caption(text: str, width: int) -> str:
    """Break a caption that is too long for a panel at a space, into two lines of nearly equal length."""
    font = style.pillow_font(round(FONT_PX * unit_of(width)))
    if font.getlength(text) <= width - 4 or " " not in text:
        return text
    places = [i for i, letter in enumerate(text) if letter == " "]
    middle = min(places, key=lambda i: max(font.getlength(text[:i]), font.getlength(text[i + 1 :])))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def draw_panel(
    panel: Panel, class_names: Sequence[str], score: float, width: int, lines: int = 1
) -> Image.Image:
    """Draw a panel; a caption that is too long for its lines gets a smaller font."""
    array = (panel.image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    scale, unit = min(width / array.shape[1], TALLEST * width / array.shape[0]), unit_of(width)
    strip = round((_STRIP_PX + (lines - 1) * _LINE_PX) * unit)
    enlarged = fit_image(Image.fromarray(array), width)
    picture = Image.new("RGB", (width, strip + enlarged.height), PAPER)
    picture.paste(enlarged, (0, strip))
    canvas = ImageDraw.Draw(picture)
    longest = max(panel.caption.split("\n"), key=len)
    font = fit_font(longest, width - 4, round(FONT_PX * unit))
    for i, line in enumerate(reversed(panel.caption.split("\n"))):  # the last line stands above the image
        middle = strip - round((_STRIP_PX / 2 + i * _LINE_PX) * unit)
        canvas.text((2, middle), line, fill=INK, font=font, anchor="lm")

    far = 2.0 * max(picture.size)  # Pillow draws no coordinate beyond 32 bits

    def place(box: Tensor) -> Box:
        x0, y0, x1, y1 = (box * scale).clamp(-far, far).tolist()
        return x0, y0 + strip, max(x1, x0), max(y1, y0) + strip

    marks: list[_Mark] = []
    if panel.detections is not None:
        found = panel.detections
        shown = found["valid"] & (found["scores"] >= score) & found["boxes"].isfinite().all(-1)
        order = found["scores"].argsort(descending=True, stable=True)
        best_first = [i for i in order.tolist() if shown[i]]
        titles = [
            f"{_named(found['labels'][i], class_names)} {float(found['scores'][i]):.2f}" for i in best_first
        ]
        boxes = [place(found["boxes"][i]) for i in best_first]
        marks = [_Mark(box, text, _FOUND, 3) for box, text in zip(boxes, titles, strict=True)]
    if panel.truth is not None:
        labels = panel.truth_labels
        names = [""] * len(panel.truth) if labels is None else [_named(i, class_names) for i in labels]
        marks += [_Mark(place(box), name, _TRUTH, 2) for box, name in zip(panel.truth, names, strict=True)]
    _draw_marks(canvas, marks, (0.0, strip, width, picture.height), unit)
    return picture


def _named(number: Tensor, class_names: Sequence[str]) -> str:
    label = int(number)
    return class_names[label] if 0 <= label < len(class_names) else str(label)


class _Mark(NamedTuple):
    """A box, and its label if it has a text."""

    box: Box
    text: str
    color: tuple[int, int, int]
    line_px: int


def _draw_marks(canvas: ImageDraw.ImageDraw, marks: list[_Mark], bounds: Box, unit: float) -> None:
    """Draw boxes and their labels, given best first: the best is on top and has the best place."""
    for mark in reversed(marks):
        canvas.rectangle(mark.box, outline=mark.color, width=round(mark.line_px * unit))
    titled, px = [mark for mark in marks if mark.text], round(FONT_PX * unit)
    fonts = [fit_font(mark.text, int(bounds[2] - bounds[0]) - 2 * _PAD_PX, px) for mark in titled]
    extents = [font.getbbox(mark.text) for font, mark in zip(fonts, titled, strict=True)]
    sizes = [(x1 - x0 + 2 * _PAD_PX, y1 - y0 + 2 * _PAD_PX) for x0, y0, x1, y1 in extents]
    labels = [Label(size, corners_at(m.box, size, 3.0)) for size, m in zip(sizes, titled, strict=True)]
    corners = place_labels(labels, bounds)
    for (x, y), (w, h), (left, top, _, _), mark, font in reversed(
        list(zip(corners, sizes, extents, titled, fonts, strict=True))
    ):
        canvas.rectangle((x, y, x + w - 1, y + h - 1), fill=mark.color)
        ink = PAPER if mark.color == _FOUND else INK
        canvas.text((x + _PAD_PX - left, y + _PAD_PX - top), mark.text, fill=ink, font=font)
