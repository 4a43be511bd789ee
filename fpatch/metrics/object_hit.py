"""Does the victim still see each object? Per object, at a score threshold fixed beforehand."""

from dataclasses import dataclass

import torch

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.geometry import pairwise_iou


@dataclass(frozen=True)
class ObjectHit:
    """When an object counts as found.

    Attributes:
        score: The threshold on the score of a final detection.
        iou: The overlap with the object that a detection must reach.
    """

    score: float = 0.5
    iou: float = 0.5

    def __post_init__(self) -> None:
        check_number("object_hit(score)", self.score, 0.0, 1.0)
        check_number("object_hit(iou)", self.iou, 0.0, 1.0)


def apply(config: ObjectHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Per object [b, m]; a table of its own, `Evaluation.objects`, has a row for each.

    Returns:
        `object_found` bool; `object_score`, the highest score of a detection of its class that overlaps it by
        `iou` (0 if none; one detection may answer two objects); `object_label` int64; `object_valid` bool,
        whether there is an object at all.
    """
    final, label, valid = values["detections"]["final"], values["labels"], values["box_valid"]
    overlaps = pairwise_iou(values["boxes"], final["boxes"])
    of_class = final["valid"][:, None] & (final["labels"][:, None] == label[..., None])
    hit = of_class & (overlaps >= config.iou) & valid[..., None]
    scores = final["scores"][:, None].expand_as(overlaps)
    best = torch.where(hit, scores, torch.zeros_like(scores)).amax(-1)
    return {
        "object_found": (hit & (scores >= config.score)).any(-1),
        "object_score": best,
        "object_label": label,
        "object_valid": valid,
    }


object_hit = define(
    "object_hit",
    ObjectHit,
    deterministic,
    apply,
    reads=("detections", "boxes", "labels", "box_valid"),
    writes=("object_found", "object_score", "object_label", "object_valid"),
    role="metric",
)
