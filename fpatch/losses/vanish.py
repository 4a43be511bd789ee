"""Make an object vanish: push down the logits of every dense box that could still claim it.

Dense logits, not final scores: suppression cuts the gradient, and a sigmoid near 0 or 1 flattens it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fpatch.checks import check_number
from fpatch.geometry import pairwise_iou
from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values

ABSENT = -30.0
"""Logit of a box that is not near the object: softplus and its gradient are below 1e-13."""


@dataclass(frozen=True)
class Vanish:
    """Which boxes count.

    Attributes:
        num_boxes: The mean is over so many of the highest logits near each object.
        iou: A dense box is near an object if it overlaps it at least so much.
    """

    num_boxes: int = 6
    iou: float = 0.2

    def __post_init__(self) -> None:
        check_number("vanish(num_boxes)", self.num_boxes, 1)
        check_number("vanish(iou)", self.iou, 0.0, 1.0)


def apply(config: Vanish, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense = values["detections"]["dense"]
    best = dense["logits"].amax(-1)
    near = pairwise_iou(values["boxes"], dense["boxes"].detach()) >= config.iou
    logits = torch.where(near, best[:, None], torch.full_like(best[:, None], ABSENT))
    highest = logits.topk(min(config.num_boxes, logits.shape[-1]), dim=-1).values
    per_object = F.softplus(highest).mean(-1)
    valid = values["box_valid"].to(per_object)
    return {"vanish": (per_object * valid).sum(-1) / valid.sum(-1).clamp(min=1)}


vanish = define(
    "vanish",
    Vanish,
    deterministic,
    apply,
    reads=("detections", "boxes", "box_valid"),
    writes=("vanish",),
    role="loss",
)
