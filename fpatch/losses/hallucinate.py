"""Make an object appear where none is: push up the score of a class among the dense boxes at a place.

The score is that of the class, times the objectness where the victim has one: the detector compares this
product with its threshold. The loss takes its log-odds, where the smaller factor gets most of the gradient.
A row without a placement has the term 0 and does not count in the mean. The choice of boxes passes no
gradient. Boxes of a detector such as DETR move over the image, and may leave a small place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpatch.core.checks import check_class, check_label, check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._detections import can_claim, find_unclaimed, mean_over_places
from fpatch.ops.detections import ABSENT, boxes_of, read_dense, score_logits
from fpatch.ops.geometry import quad_bounds
from fpatch.ops.stable import softplus


@dataclass(frozen=True)
class Hallucinate:
    """Settings of `losses.hallucinate`: the class that shall appear, and the place.

    The stage writes `hallucinate` [b], the mean of softplus(-logit) over the best boxes at each place.

    Attributes:
        label: The class, by its name or the victim's own number.
        box: The place (left, top, right, bottom) in fractions of the image. None: the box around the quad of
            every placement.
        num_boxes: The mean is over this many of the highest logits at each place. Missing boxes count as a
            score of 1e-13.
        iou: A dense box is at the place if its center lies in it, or if its IoU with it is at least this.

    Convention:
        Boxes are xyxy in pixels of the image: the origin is the outer corner of the top left pixel, x points
        right and y down.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> dense = {"boxes": torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), "logits": torch.tensor([[[0.0, 2.0]]])}
        >>> values = {"detections": {"dense": dense}, "image": torch.zeros(1, 3, 8, 8)}
        >>> stage = losses.hallucinate(label=1, box=(0.0, 0.0, 1.0, 1.0))
        >>> print(f"{float(stage.apply({}, {}, values)['hallucinate']):.4f}")  # log(1 + exp(-2))
        0.1269
    """

    label: int | str
    box: tuple[float, float, float, float] | None = None
    num_boxes: int = 6
    iou: float = 0.2

    def __post_init__(self) -> None:
        check_class("hallucinate(label)", self.label)
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
    """Return log-odds [b, 1, n], the boxes at each place [b, k, n] bool and the valid places [b, k] bool."""
    dense = read_dense(values["detections"])
    logits = score_logits(dense)
    label = check_label("hallucinate(label)", config.label, logits.shape[-1])
    logits = logits[..., label]
    boxes = boxes_of(dense, torch.full_like(logits, label, dtype=torch.int64))
    if config.box is None:
        valid = values["quad_valid"]
        places = quad_bounds(values["quads"])  # an absent quad is NaN, and no box is near it
    else:
        height, width = values["image"].shape[-2:]
        places = constant(config.box, boxes) * constant([width, height, width, height], boxes)
        places = places.expand(len(logits), 1, 4)
        valid = torch.ones_like(places[..., 0], dtype=torch.bool)
    return logits[:, None], can_claim(places, boxes, config.iou), valid


def check(config: Hallucinate, values: Values) -> dict[str, list[str]]:
    """List the places without a box."""
    _, near, valid = _near(config, values)
    absent = read_dense(values["detections"])["logits"][..., int(config.label)] == ABSENT
    return find_unclaimed(near & ~absent[:, None], valid, values, "place")


def declare(config: Hallucinate) -> Mapping[str, Any]:
    """Read placements, or the image for its size; a fixed place exists in every row."""
    return {} if config.box is None else {"reads": ("detections", "image"), "counted": None}


hallucinate = define(
    "hallucinate",
    Hallucinate,
    deterministic,
    apply,
    reads=("detections", "quads", "quad_valid"),
    optional=("image_id",),
    writes=("hallucinate",),
    role="loss",
    counted="quad_valid",
    needs=("detections/dense",),
    check=check,
    declare=declare,
    classes=("label",),
)
