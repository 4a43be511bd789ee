"""A detector's answers over the image, with the true objects."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fpatch.core.checks import check_count, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.detections import read_final
from fpatch.viz import style
from fpatch.viz._canvas import FONT_PX, fit_names, unit_of
from fpatch.viz._pictures import PICTURE, stack_pictures, view_pictures
from fpatch.viz.conversions import to_levels
from fpatch.viz.side_by_side import Panel, draw_panel
from fpatch.viz.unpacking import unpack


@dataclass(frozen=True)
class BoxOverlay:
    """Settings of `viz.box_overlay`: the answers that are drawn.

    Answers are orange, each with its class and score, the best on top. True objects are blue, with their
    class. The caption counts both. The stage writes `picture` [b, 3, h, w], uint8, of one size for all rows;
    see `viz.drawing`.

    Attributes:
        class_names: Names by label; labels without a name are shown as numbers.
        score: The lowest score of an answer that is drawn.
        num_answers: The most answers drawn, the best by score.
        width_px: The width of the picture, to which the image is resized.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> final = {"boxes": torch.tensor([[[4.0, 4.0, 20.0, 12.0]]]), "scores": torch.tensor([[0.9]])}
        >>> final |= {"labels": torch.tensor([[0]]), "valid": torch.tensor([[True]])}
        >>> values = {"image": torch.zeros(1, 3, 24, 48), "detections": {"final": final}}
        >>> viz.box_overlay(class_names=("car",)).apply({}, {}, values)["picture"].shape
        torch.Size([1, 3, 182, 320])

    Raises:
        ValueError: If a setting is outside its range.
    """

    class_names: tuple[str, ...] = ()
    score: float = 0.5
    num_answers: int = 10
    width_px: int = 320

    def __post_init__(self) -> None:
        check_number("box_overlay(score)", self.score, 0.0, 1.0)
        check_count("box_overlay(num_answers)", self.num_answers, high=1000)
        check_count("box_overlay(width_px)", self.width_px, low=64, high=8192)


def apply(config: BoxOverlay, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Draw the boxes of every image."""
    read = {name: value for name, value in values.items() if name != "detections"}
    rows = unpack(read | {"found": read_final(values["detections"])}, {Tensor: "tensor"})
    return {PICTURE: stack_pictures("box_overlay", [_draw(config, **row) for row in rows])}


def _draw(
    config: BoxOverlay,
    image: Tensor,
    found: Mapping[str, Tensor],
    boxes: Tensor | None = None,
    labels: Tensor | None = None,
    box_valid: Tensor | None = None,
) -> Image.Image:
    """Draw the answers and the objects of one image."""
    levels = torch.from_numpy(to_levels(image, "box_overlay: 'image'")).permute(2, 0, 1) / 255
    is_finite = bool(found["scores"][found["valid"]].isfinite().all())
    drawn = found["valid"] & (found["scores"] >= config.score) & found["boxes"].isfinite().all(-1)
    best = found["scores"].masked_fill(~drawn, -1.0).argsort(descending=True, stable=True)
    count, most = int(drawn.sum()), config.num_answers
    drawn[best[most:]] = False
    caption = _count(count, "answer", "orange") if is_finite else "answers are not finite"
    caption = f"{most} of {caption}" if is_finite and count > most else caption
    if boxes is not None:
        there = boxes.isfinite().all(-1)
        there = there if box_valid is None else there & box_valid
        boxes, labels = boxes[there], None if labels is None else labels[there]
        caption += f", {_count(len(boxes), 'object', 'blue')}"
    panel = Panel(levels, caption, {**found, "valid": drawn}, boxes, labels)
    font = style.pillow_font(round(FONT_PX * unit_of(config.width_px)))
    names = fit_names(config.class_names, range(len(config.class_names)), font, config.width_px / 2)
    return draw_panel(panel, names, config.score, config.width_px)


def _count(count: int, what: str, color: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'} ({color})"


def describe(config: BoxOverlay) -> str:
    """Say which answers are drawn."""
    return f"pictures of the answers of at least {config.score:g}, and of the objects"


box_overlay = define(
    "box_overlay",
    BoxOverlay,
    deterministic,
    apply,
    reads=("image", "detections"),
    writes=("picture",),
    optional=("boxes", "labels", "box_valid"),
    role="drawing",
    show=view_pictures,
    describe=describe,
    needs=("detections/final",),
    vmap=False,
    gradient=False,
    compile=False,
)
