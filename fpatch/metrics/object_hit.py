"""Hits of a detector per object, at a fixed score threshold."""

from dataclasses import dataclass

import torch

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.detections import read_final
from fpatch.ops.geometry import pairwise_iou


@dataclass(frozen=True)
class ObjectHit:
    """Settings of `metrics.object_hit`: the detections that count as a hit.

    The stage writes a value per object, which `Evaluation.objects` gathers as a table with a row per object:

    - `object_found` [b, k] bool: a detection of its class reaches `score` and `iou`;
    - `object_score` [b, k]: the highest score of a detection of its class that overlaps it by `iou`, 0 if
      none; one detection may answer two objects;
    - `object_label` [b, k] int64;
    - `object_valid` [b, k] bool: false for padding.

    Attributes:
        score: The threshold on the score of a final detection.
        iou: The overlap with the object that a detection must reach.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> box, label, yes = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[True]])
        >>> final = {"boxes": box, "scores": torch.tensor([[0.75]]), "labels": label, "valid": yes}
        >>> values = {"detections": {"final": final}, "boxes": box, "labels": label, "box_valid": yes}
        >>> written = metrics.object_hit(score=0.8).apply({}, {}, values)
        >>> written["object_found"], written["object_score"]
        (tensor([[False]]), tensor([[0.7500]]))

    Raises:
        ValueError: If a threshold is outside 0..1.
    """

    score: float = 0.5
    iou: float = 0.5

    def __post_init__(self) -> None:
        check_number("object_hit(score)", self.score, 0.0, 1.0)
        check_number("object_hit(iou)", self.iou, 0.0, 1.0)


def apply(config: ObjectHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    final, label, valid = read_final(values["detections"]), values["labels"], values["box_valid"]
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
    needs=("detections/final",),
)
