"""Hits of a detector per object, at a fixed score threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fpatch.core.checks import check_class, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.metrics._answers import best_label, goal_answers, goal_of
from fpatch.ops.geometry import pairwise_iou


@dataclass(frozen=True)
class ObjectHit:
    """Settings of `metrics.object_hit`: the detections that count as a hit.

    The stage writes a value per object, which `Evaluation.objects` gathers as a table with a row per object:

    - `object_found` [b, k] bool: a detection of its class reaches `score` and `iou`;
    - `object_score` [b, k]: the highest score of a detection of its class that overlaps it by `iou`, 0 if
      none; one detection may answer two objects;
    - `object_label` [b, k] int64;
    - `object_valid` [b, k] bool: false for padding;
    - `object_answer` [b, k] int64: the label of the best detection of any class that reaches `score` and
      `iou`, -1 if none.

    With a goal, `object_valid` is also false for objects whose own class is the goal, since nothing has to
    change there. The stage then also writes:

    - `object_reached` [b, k] bool: a detection of the goal reaches `score` and `iou`;
    - `object_goal_score` [b, k]: the highest score of a detection of the goal that overlaps it by `iou`, 0 if
      none.

    Attributes:
        score: The threshold on the score of a final detection.
        iou: The overlap with the object that a detection must reach.
        goal: The class that the attack wants answered, by its name or number. None: any but the object's own.

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
        ValueError: If a threshold is outside 0..1, or the goal is no class.
    """

    score: float = 0.5
    iou: float = 0.5
    goal: int | str | None = None

    def __post_init__(self) -> None:
        check_number("object_hit(score)", self.score, 0.0, 1.0)
        check_number("object_hit(iou)", self.iou, 0.0, 1.0)
        if self.goal is not None:
            check_class("object_hit(goal)", self.goal)


def apply(config: ObjectHit, patch_params: Params, sample: Sample, values: Values) -> Values:
    final, label, valid = values["detections"]["final"], values["labels"], values["box_valid"]
    overlaps = pairwise_iou(values["boxes"], final["boxes"])
    hits = (overlaps >= config.iou) & valid[..., None]
    written = {"object_answer": best_label(final, hits, config.score)}
    if config.goal is not None:
        goal = goal_of("object_hit(goal)", config.goal, values)
        reached, goal_score = goal_answers(final, hits, goal, config.score)
        valid = valid & (label != goal)
        written |= {"object_reached": reached & valid, "object_goal_score": goal_score}
    of_class = final["valid"][:, None] & (final["labels"][:, None] == label[..., None])
    hit = of_class & (overlaps >= config.iou) & valid[..., None]
    scores = final["scores"][:, None].expand_as(overlaps)
    best = torch.where(hit, scores, torch.zeros_like(scores)).amax(-1)
    return written | {
        "object_found": (hit & (scores >= config.score)).any(-1),
        "object_score": best,
        "object_label": label,
        "object_valid": valid,
    }


def declare(config: ObjectHit) -> Mapping[str, Any]:
    """Write what the goal asks for if there is one."""
    return {} if config.goal is None else {"writes": (*_WRITES, "object_reached", "object_goal_score")}


_WRITES = ("object_found", "object_score", "object_label", "object_valid", "object_answer")

object_hit = define(
    "object_hit",
    ObjectHit,
    deterministic,
    apply,
    reads=("detections", "boxes", "labels", "box_valid"),
    writes=_WRITES,
    role="metric",
    declare=declare,
    classes=("goal",),
)
