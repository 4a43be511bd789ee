"""Hits of a detector on the object of each row, at a fixed score threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpatch.core.checks import check_class, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.metrics._answers import best_label, goal_answers, goal_of
from fpatch.ops.detections import read_final
from fpatch.ops.geometry import pairwise_iou, quad_bounds


@dataclass(frozen=True)
class DetectionHit:
    """Settings of `metrics.detection_hit`: the detections that count as a hit.

    The object of a row is the one that fits a placement best, or the first valid one without placements. The
    stage writes, for that object:

    - `found` [b] bool: a detection of its class reaches `score` and `iou`;
    - `displaced` [b] bool: not found, but a detection of its class beside it reaches `score` and
      `displaced_iou`;
    - `best_score` [b]: the highest score of a detection of its class that overlaps it by `iou`, 0 if none,
      which gives the success at every other threshold;
    - `has_object` [b] bool: the row has a valid object;
    - `answer` [b] int64: the label of the best detection of any class that reaches `score` and `iou`, -1 if
      none;
    - `label` [b] int64: the true class of the object, -1 without one.

    With a goal, an object whose own class is the goal does not count as one, since nothing has to change
    there. The stage then also writes:

    - `reached` [b] bool: a detection of the goal reaches `score` and `iou`;
    - `goal_score` [b]: the highest score of a detection of the goal that overlaps it by `iou`, 0 if none.

    Attributes:
        score: The threshold on the score of a final detection.
        iou: The overlap with the object that a detection must reach.
        displaced_iou: The overlap, below `iou`, from which on a detection counts as displaced, not gone.
        goal: The class that the attack wants answered, by its name or number. None: any but the object's own.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> box, label, yes = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[True]])
        >>> final = {"boxes": box + 4, "scores": torch.tensor([[0.75]]), "labels": label, "valid": yes}
        >>> values = {"detections": {"final": final}, "boxes": box, "labels": label, "box_valid": yes}
        >>> written = metrics.detection_hit().apply({}, {}, values)  # IoU 16 / 112
        >>> written["found"], written["displaced"]
        (tensor([False]), tensor([True]))

    Raises:
        ValueError: If a threshold is outside 0..1, `displaced_iou` is above `iou`, or the goal is no class.
    """

    score: float = 0.5
    iou: float = 0.5
    displaced_iou: float = 0.1
    goal: int | str | None = None

    def __post_init__(self) -> None:
        check_number("detection_hit(score)", self.score, 0.0, 1.0)
        check_number("detection_hit(iou)", self.iou, 0.0, 1.0)
        check_number("detection_hit(displaced_iou)", self.displaced_iou, 0.0, self.iou)
        if self.goal is not None:
            check_class("detection_hit(goal)", self.goal)


def apply(config: DetectionHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    final = read_final(values["detections"])
    valid = values["box_valid"]
    chosen = choose_object(values)
    label = values["labels"].gather(1, chosen)
    overlaps = pairwise_iou(values["boxes"], final["boxes"]).masked_fill(~valid[..., None], 0.0)
    overlap = overlaps.gather(1, chosen[..., None].expand(-1, -1, overlaps.shape[2]))[:, 0]
    of_class = final["valid"] & (final["labels"] == label)
    hit = of_class & (overlap >= config.iou)
    own = overlap >= overlaps.amax(1)  # not the answer to a neighbor
    beside = of_class & own & (overlap >= config.displaced_iou) & (final["scores"] >= config.score)
    best = torch.where(hit, final["scores"], torch.zeros_like(final["scores"])).amax(-1)
    hits = (overlap >= config.iou)[:, None]
    has_object = valid.any(-1)
    answer = torch.where(has_object, best_label(final, hits, config.score)[:, 0], -1)
    targeted: Values = {}
    if config.goal is not None:
        goal = goal_of("detection_hit(goal)", config.goal, values)
        reached, goal_score = goal_answers(final, hits, goal, config.score)
        has_object = has_object & (label[:, 0] != goal)
        targeted = {"reached": reached[:, 0] & has_object, "goal_score": goal_score[:, 0]}
    found = (hit & (final["scores"] >= config.score)).any(-1) & has_object
    return {
        "found": found,
        "displaced": beside.any(-1) & ~found & has_object,
        "best_score": best,
        "has_object": has_object,
        "answer": answer,
        "label": torch.where(valid.any(-1), label[:, 0], -1),
        **targeted,
    }


def declare(config: DetectionHit) -> Mapping[str, Any]:
    """Write what the goal asks for if there is one."""
    return {} if config.goal is None else {"writes": (*_WRITES, "reached", "goal_score")}


def choose_object(values: Values) -> Tensor:
    """Return the index [b, 1] of the valid object with the largest IoU with the bounds of a placement."""
    fit = torch.zeros_like(values["boxes"][..., 0])
    if "quads" in values:
        bounds = quad_bounds(values["quads"].masked_fill(~values["quad_valid"][..., None, None], 0.0))
        fit = pairwise_iou(values["boxes"], bounds).amax(-1)
    return torch.where(values["box_valid"], fit, -1.0).argmax(-1, keepdim=True)


_WRITES = ("found", "displaced", "best_score", "has_object", "answer", "label")

detection_hit = define(
    "detection_hit",
    DetectionHit,
    deterministic,
    apply,
    reads=("detections", "boxes", "labels", "box_valid"),
    optional=("quads", "quad_valid"),
    writes=_WRITES,
    role="metric",
    needs=("detections/final",),
    declare=declare,
    classes=("goal",),
)
