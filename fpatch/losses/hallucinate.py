"""Make an object appear where none is: push up the score of a class among the dense boxes at a place.

The score is that of the class, times the objectness where there is one, as the detector itself compares it
with its threshold; in log-odds, where most of the gradient goes to the smaller of the two. A row with no
placement is done: its term and its gradient are 0. Which boxes are at a place is seen as it is, without
gradient: those of a detector whose boxes roam the image (DETR) may leave a small one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpatch.core.checks import check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._detections import can_claim, check_label, find_unclaimed, mean_over_places
from fpatch.ops.detections import ABSENT, boxes_of, score_logits
from fpatch.ops.geometry import quad_bounds
from fpatch.ops.stable import softplus


@dataclass(frozen=True)
class Hallucinate:
    """What is to appear, and where.

    Attributes:
        label: Class, by the victim's own number.
        box: Where: left, top, right and bottom as fractions of the image; None: at every placement of a
            patch, in the box around its quad.
        num_boxes: The mean is over so many of the highest logits at each place; where there are fewer, the
            others count as a score of 1e-13.
        iou: A dense box is at the place if its center lies in it, or if it overlaps it at least so much.
    """

    label: int
    box: tuple[float, float, float, float] | None = None
    num_boxes: int = 6
    iou: float = 0.2

    def __post_init__(self) -> None:
        check_number("hallucinate(label)", self.label, 0)
        check_number("hallucinate(num_boxes)", self.num_boxes, 1)
        check_number("hallucinate(iou)", self.iou, 0.0, 1.0)
        if self.box is not None and not _is_inside(self.box):
            raise ValueError(
                "hallucinate(box) must be (left, top, right, bottom) in fractions of the image, with "
                f"0 <= left < right <= 1 and 0 <= top < bottom <= 1, got {self.box}"
            )


def _is_inside(box: tuple[float, ...]) -> bool:
    return len(box) == 4 and all(0 <= low < high <= 1 for low, high in zip(box[:2], box[2:], strict=True))


def apply(config: Hallucinate, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits, near, valid = _near(config, values)
    logits = torch.where(near, logits, torch.full_like(logits, ABSENT))
    highest = logits.topk(min(config.num_boxes, logits.shape[-1]), dim=-1).values
    return {"hallucinate": mean_over_places(softplus(-highest).mean(-1), valid)}


def _near(config: Hallucinate, values: Values) -> tuple[Tensor, Tensor, Tensor]:
    """The log-odds [b, 1, n], which boxes are at which place [b, k, n], and which places are there [b, k]."""
    dense = values["detections"]["dense"]
    logits = score_logits(dense)
    check_label("hallucinate(label)", config.label, logits.shape[-1])
    logits = logits[..., config.label]
    boxes = boxes_of(dense, torch.full_like(logits, config.label, dtype=torch.int64))
    if config.box is None:
        valid = values["quad_valid"]
        places = quad_bounds(values["quads"])  # nothing is near one that is absent and NaN
    else:
        height, width = values["image"].shape[-2:]
        places = constant(config.box, boxes) * constant([width, height, width, height], boxes)
        places = places.expand(len(logits), 1, 4)
        valid = torch.ones_like(places[..., 0], dtype=torch.bool)
    return logits[:, None], can_claim(places, boxes, config.iou), valid


def check(config: Hallucinate, values: Values) -> dict[str, list[str]]:
    """Places that no box is at."""
    _, near, valid = _near(config, values)
    absent = values["detections"]["dense"]["logits"][..., config.label] == ABSENT
    return find_unclaimed(near & ~absent[:, None], valid, values, "place")


def declare(config: Hallucinate) -> Mapping[str, Any]:
    """Placements are read, or the size of the image."""
    return {} if config.box is None else {"reads": ("detections", "image")}


hallucinate = define(
    "hallucinate",
    Hallucinate,
    deterministic,
    apply,
    reads=("detections", "quads", "quad_valid"),
    optional=("image_id",),
    writes=("hallucinate",),
    role="loss",
    check=check,
    declare=declare,
)
