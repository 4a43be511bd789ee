"""Make an object vanish: push down the scores of every dense box that could still claim it.

Dense log-odds, not final scores: suppression cuts the gradient, and a sigmoid near 0 or 1 flattens it. The
objects' own class counts, or any: a box that answers another class is still an answer (`losses.relabel` is
for that goal).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fpatch.core.checks import check_choice, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._detections import (
    best_boxes,
    can_claim,
    find_unclaimed,
    mean_over_places,
    object_labels,
    of_labels,
)
from fpatch.ops.detections import ABSENT, Score, score_logits
from fpatch.ops.stable import (
    sigmoid,
    softplus,
)


@dataclass(frozen=True)
class Vanish:
    """Which boxes count, and which of their scores.

    Attributes:
        num_boxes: The mean is over so many of the highest logits that claim each object.
        iou: A dense box can claim an object if its center lies on it, or if it overlaps it at least so much.
        on: What is pushed down: softplus of the logit, whose gradient never fades; or the probability, whose
            gradient goes to the boxes near the threshold and leaves those that are already safe.
        score: Whose logit: the class, the objectness, or their product, which is what a detector compares
            with its threshold. Without objectness the product is the class.
        boxes: Those that can claim the object, or all of the image.
        label: Which class of a box: its best one (None), or the object's own ("own", by `labels`).
    """

    num_boxes: int = 6
    iou: float = 0.2
    on: Literal["logit", "probability"] = "logit"
    score: Score = "product"
    boxes: Literal["overlapping", "all"] = "overlapping"
    label: Literal["own"] | None = None

    def __post_init__(self) -> None:
        check_number("vanish(num_boxes)", self.num_boxes, 1)
        check_number("vanish(iou)", self.iou, 0.0, 1.0)
        check_choice("vanish(on)", self.on, ("logit", "probability"))
        check_choice("vanish(score)", self.score, ("class", "objectness", "product"))
        check_choice("vanish(boxes)", self.boxes, ("overlapping", "all"))
        check_choice("vanish(label)", self.label, (None, "own"))
        if self.label == "own" and self.score == "objectness":
            raise ValueError(
                "vanish(label='own') needs a score by class, and score='objectness' has none; take "
                "score='product', or leave label out"
            )


def apply(config: Vanish, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits, claims = _claims(config, values)
    claimed = torch.where(claims, logits, torch.full_like(logits, ABSENT))
    highest = claimed.topk(min(config.num_boxes, logits.shape[-1]), dim=-1).values
    pushed = softplus(highest) if config.on == "logit" else sigmoid(highest)
    return {"vanish": mean_over_places(pushed.mean(-1), values["box_valid"])}


def _claims(config: Vanish, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-odds of every box for every object, [b, m or 1, n], and which count, [b, m, n]."""
    dense = values["detections"]["dense"]
    if config.score == "objectness" and "objectness" not in dense:
        raise ValueError("vanish(score='objectness'): this victim has no objectness; take score='class'")
    logits = score_logits(dense, config.score)
    if config.label is None:
        boxes, logits = best_boxes(dense), logits.amax(-1)[:, None]
    else:
        boxes, logits = of_labels(dense, logits, object_labels("vanish", values, logits.shape[-1]))
    claims = can_claim(values["boxes"], boxes, config.iou)
    return logits, torch.ones_like(claims) if config.boxes == "all" else claims


def check(config: Vanish, values: Values) -> dict[str, list[str]]:
    """Objects that nothing claims."""
    return find_unclaimed(_claims(config, values)[1], values["box_valid"], values, "object")


def declare(config: Vanish) -> Mapping[str, Any]:
    """Labels are read where they count."""
    return {"reads": (*READS, "labels")} if config.label == "own" else {}


READS = ("detections", "boxes", "box_valid")

vanish = define(
    "vanish",
    Vanish,
    deterministic,
    apply,
    reads=READS,
    optional=("image_id",),
    writes=("vanish",),
    role="loss",
    check=check,
    declare=declare,
)
