"""Non-maximum suppression: from dense detections to a fixed number of final ones.

Greedy, per class, and over all rows at once: each of the m steps is one operation on the batch, and no row's
result depends on another's (offsets by row, the usual trick, would change the boxes' last bits).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch.checks import check_number
from fpatch.geometry import pairwise_iou
from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class Suppress:
    """What is kept.

    Attributes:
        score: Detections below this score are not valid.
        iou: A box that overlaps a better one of its class by more than this is suppressed.
        num_detections: Candidates per image (m), the best by score.
    """

    score: float = 0.05
    iou: float = 0.5
    num_detections: int = 50

    def __post_init__(self) -> None:
        check_number("suppress(score)", self.score, 0.0, 1.0)
        check_number("suppress(iou)", self.iou, 0.0, 1.0)
        check_number("suppress(num_detections)", self.num_detections, 1)


def apply(config: Suppress, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense = values["detections"]["dense"]
    scores = F.logsigmoid(dense["logits"]).exp()  # sigmoid changes bits with position
    if "objectness" in dense:
        scores = scores * F.logsigmoid(dense["objectness"]).exp()[..., None]
    n, num_classes = scores.shape[1:]
    count = min(config.num_detections, n * num_classes)
    scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :count], order[:, :count]
    labels = order % num_classes
    where = torch.div(order, num_classes, rounding_mode="floor")[..., None].expand(-1, -1, 4)
    boxes = dense["boxes"].gather(1, where)
    valid = (scores >= config.score) & keep_best(boxes, labels, config.iou)
    final = {"boxes": boxes, "scores": scores, "labels": labels, "valid": valid}
    return {"detections": {**values["detections"], "final": final}}


def keep_best(boxes: Float[Tensor, "b m 4"], labels: Tensor, iou: float) -> Bool[Tensor, "b m"]:
    """Which boxes stay, of boxes in falling order of score: those that overlap no better one that stays."""
    overlaps = (pairwise_iou(boxes, boxes) > iou) & (labels[:, :, None] == labels[:, None, :])
    later = torch.ones_like(overlaps[0]).triu(diagonal=1)
    overlaps = overlaps & later
    keep = torch.ones_like(overlaps[:, 0])
    for i in range(boxes.shape[1]):
        keep = keep & ~(overlaps[:, i] & keep[:, i, None])
    return keep


suppress = define(
    "suppress", Suppress, deterministic, apply, reads=("detections",), writes=("detections",), gradient=False
)
