"""The likeliest classes of a classifier's answer, as bars below the image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fpatch.core.checks import check_count
from fpatch.core.types import Params, Sample, Values
from fpatch.data.classes import name_class
from fpatch.graph.stage import define, deterministic
from fpatch.viz import style
from fpatch.viz._canvas import FONT_PX, LINE_PX, PALE, fit_image, fit_names, make_canvas, unit_of, write
from fpatch.viz._pictures import PICTURE, stack_pictures, view_pictures
from fpatch.viz.unpacking import unpack

_FOUND, _TRUTH = map(style.rgb, (style.FOUND, style.TRUTH))
_NAME_FRAC, _BAR_FRAC = 0.5, 0.36
"""The shares of the width that belong to names and to bars; numbers take the rest."""


@dataclass(frozen=True)
class ClassBars:
    """Settings of `viz.class_bars`: the classes of the bars.

    Bars are probabilities: the softmax of the logits, or the sigmoid of a single logit. The true class is
    blue, and stands above the image with its probability. Other classes are orange, and those without a bar
    are summed up in the last line. The stage writes `picture` [b, 3, h, w], uint8, of one size for all rows;
    see `viz.drawing`.

    Attributes:
        class_names: Names by number; classes without a name are shown as numbers.
        num_classes: The most classes with a bar.
        width_px: The width of the picture, to which the image is resized.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> stage = viz.class_bars(class_names=("stop", "yield"))
        >>> values = {"image": torch.zeros(1, 3, 24, 48), "logits": torch.tensor([[2.0, 0.0]])}
        >>> stage.apply({}, {}, values | {"target": torch.tensor([1])})["picture"].shape
        torch.Size([1, 3, 220, 320])

    Raises:
        ValueError: If a setting is outside its range.
    """

    class_names: tuple[str, ...] = ()
    num_classes: int = 5
    width_px: int = 320

    def __post_init__(self) -> None:
        check_count("class_bars(num_classes)", self.num_classes, high=100)
        check_count("class_bars(width_px)", self.width_px, low=64, high=8192)


def apply(config: ClassBars, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Draw the bars of every image."""
    rows = unpack(values, by_name={"image": "pil"})
    return {PICTURE: stack_pictures("class_bars", [_draw(config, **row) for row in rows])}


def _draw(
    config: ClassBars,
    image: Image.Image,
    logits: NDArray[np.floating],
    target: NDArray[np.int64] | None = None,
) -> Image.Image:
    """Draw the image with the line of the true class above and the bars below."""
    unit = unit_of(config.width_px)
    line, font = round(LINE_PX * unit), style.pillow_font(round(FONT_PX * unit))
    above = 0 if target is None else line
    shown, chosen = fit_image(image, config.width_px), _choose(logits, config.num_classes)
    most = min(config.num_classes, len(logits))
    lines = most + (len(logits) > most)
    below = above + shown.height + round(3 * unit)
    picture, pen = make_canvas(config.width_px, below + lines * line + round(3 * unit))
    picture.paste(shown, ((config.width_px - shown.width) // 2, above))
    true = None if target is None else int(target)
    probability = _softmax(logits)
    if true is not None:
        about = f" {probability[true]:.2f}" if 0 <= true < len(logits) and chosen else ""
        room = config.width_px - font.getlength(f"true class: {about}") - line
        (name,) = fit_names([name_class(config.class_names, true)], [true], font, room)
        side = line * 0.3
        pen.rectangle((4, line / 2 - side, 4 + 2 * side, line / 2 + side), fill=_TRUTH)
        write(pen, 8 + 2 * side, line / 2, f"true class: {name}{about}", font)
    if not chosen:
        write(pen, 4, below + line / 2, "the answer is not finite", font)
        return picture
    names = [name_class(config.class_names, i) for i in chosen]
    bars = list(zip(fit_names(names, chosen, font, _NAME_FRAC * config.width_px - 8), chosen, strict=True))
    for i, (name, number) in enumerate(bars):
        color = _TRUTH if number == true else _FOUND
        _draw_bar(pen, below + i * line, line, name, float(probability[number]), color, config.width_px)
    if lines > most:
        rest, left = max(1.0 - float(probability[chosen].sum()), 0.0), len(logits) - most
        _draw_bar(pen, below + most * line, line, f"{left} more", rest, PALE, config.width_px)
    return picture


def _draw_bar(
    pen: ImageDraw.ImageDraw, top: int, line: int, name: str, share: float, color: Any, width: int
) -> None:
    """Draw a name, its bar and its number."""
    font, left = style.pillow_font(round(FONT_PX * unit_of(width))), _NAME_FRAC * width
    write(pen, 4, top + line / 2, name, font)
    end = left + _BAR_FRAC * width
    pen.line((left, top + line * 0.15, left, top + line * 0.85), fill=PALE)
    if share > 0:
        pen.rectangle((left, top + line * 0.2, left + (end - left) * share, top + line * 0.8), fill=color)
    write(pen, width - 4, top + line / 2, f"{share:.2f}", font, "rm")


def _choose(logits: NDArray[np.floating], most: int) -> list[int]:
    """Return the likeliest classes, the best first; none if the answer is not finite."""
    if not np.isfinite(logits).all():
        return []
    return np.argsort(-logits, kind="stable")[:most].tolist()


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    if len(wide) == 1:
        wide = np.array([wide[0], 0.0])
    with np.errstate(invalid="ignore"):
        powers = np.exp(wide - wide.max())
        return (powers / powers.sum())[: len(logits)]


def describe(config: ClassBars) -> str:
    """Say how many classes have a bar."""
    return f"pictures of the {config.num_classes} likeliest classes"


class_bars = define(
    "class_bars",
    ClassBars,
    deterministic,
    apply,
    reads=("image", "logits"),
    writes=("picture",),
    optional=("target",),
    role="drawing",
    show=view_pictures,
    describe=describe,
    vmap=False,
    gradient=False,
    compile=False,
)
