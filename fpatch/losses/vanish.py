"""Make an object vanish: push down the logits of every dense box that could still claim it.

Dense logits, not final scores: suppression cuts the gradient, and a sigmoid near 0 or 1 flattens it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch.checks import check_number
from fpatch.detections import ABSENT
from fpatch.geometry import pairwise_iou
from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class Vanish:
    """Which boxes count.

    Attributes:
        num_boxes: The mean is over so many of the highest logits that claim each object.
        iou: A dense box can claim an object if its center lies on it, or if it overlaps it at least so much.
        on: What is pushed down: softplus of the logit, whose gradient never fades; or the probability, whose
            gradient goes to the boxes near the threshold and leaves those that are already safe.
    """

    num_boxes: int = 6
    iou: float = 0.2
    on: Literal["logit", "probability"] = "logit"

    def __post_init__(self) -> None:
        check_number("vanish(num_boxes)", self.num_boxes, 1)
        check_number("vanish(iou)", self.iou, 0.0, 1.0)


def apply(config: Vanish, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense = values["detections"]["dense"]
    best = dense["logits"].amax(-1)
    claims = can_claim(values["boxes"], dense["boxes"].detach(), config.iou)
    logits = torch.where(claims, best[:, None], torch.full_like(best[:, None], ABSENT))
    highest = logits.topk(min(config.num_boxes, logits.shape[-1]), dim=-1).values
    # softplus and sigmoid by way of logsigmoid: their own bits change with the position in the tensor
    pushed = -F.logsigmoid(-highest) if config.on == "logit" else F.logsigmoid(highest).exp()
    per_object = pushed.mean(-1)
    valid = values["box_valid"].to(per_object)
    return {"vanish": (per_object * valid).sum(-1) / valid.sum(-1).clamp(min=1)}


def can_claim(
    objects: Float[Tensor, "b m 4"], boxes: Float[Tensor, "b n 4"], iou: float
) -> Bool[Tensor, "b m n"]:
    """Which boxes could be taken for which object.

    The center counts beside the overlap because a patch that only shrinks or shifts the boxes would otherwise
    be done: they would answer beside the object, and no longer be pushed down.
    """
    center = (boxes[..., :2] + boxes[..., 2:])[:, None] / 2
    inside = ((center >= objects[:, :, None, :2]) & (center <= objects[:, :, None, 2:])).all(-1)
    return inside | (pairwise_iou(objects, boxes) >= iou)


vanish = define(
    "vanish",
    Vanish,
    deterministic,
    apply,
    reads=("detections", "boxes", "box_valid"),
    writes=("vanish",),
    role="loss",
)
