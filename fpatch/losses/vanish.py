"""Make an object vanish: push down the scores of every dense box that can claim it.

The loss reads dense log-odds, not final scores: suppression cuts the gradient, and a sigmoid near 0 or 1
flattens it. By default the object's own class counts, as it does for the metrics: a box of another class does
not answer the object. `label="any"` pushes whatever answers, and `losses.relabel` aims at another class.
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
from fpatch.ops.detections import ABSENT, Score, read_dense, score_logits
from fpatch.ops.stable import sigmoid, softplus


@dataclass(frozen=True)
class Vanish:
    """Settings of `losses.vanish`: the boxes that count, and their score.

    The stage writes `vanish` [b].

    Attributes:
        num_boxes: The mean is over this many of the highest logits that claim each object.
        iou: A dense box can claim an object if its center lies on it, or if its IoU with it is at least this.
        on: "logit": the softplus of the logit, whose gradient never fades. "probability": the probability,
            whose gradient goes to the boxes near the threshold and spares those far below it.
        score: The score that counts: the class, the objectness, or their product, which a detector compares
            with its threshold. Without objectness the product is the class.
        boxes: "overlapping": the boxes that can claim the object; "all": every box of the image.
        label: The class of a box that counts: "own", the object's by `labels`, which the metrics count; or
            "any", its best one, with which nothing is found there under any name. None is "any", as studies
            of earlier versions record it.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> box, logits = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([[[0.0, -1.0]]])
        >>> values = {"detections": {"dense": {"boxes": box, "logits": logits}}, "boxes": box}
        >>> values |= {"box_valid": torch.tensor([[True]]), "labels": torch.tensor([[0]])}
        >>> losses.vanish(on="probability").apply({}, {}, values)["vanish"]  # sigmoid(0)
        tensor([0.5000])

    Raises:
        ValueError: If a setting is outside its range, or `score="objectness"` comes without `label="any"`.
    """

    num_boxes: int = 6
    iou: float = 0.2
    on: Literal["logit", "probability"] = "logit"
    score: Score = "product"
    boxes: Literal["overlapping", "all"] = "overlapping"
    label: Literal["own", "any"] | None = "own"

    def __post_init__(self) -> None:
        check_number("vanish(num_boxes)", self.num_boxes, 1)
        check_number("vanish(iou)", self.iou, 0.0, 1.0)
        check_choice("vanish(on)", self.on, ("logit", "probability"))
        check_choice("vanish(score)", self.score, ("class", "objectness", "product"))
        check_choice("vanish(boxes)", self.boxes, ("overlapping", "all"))
        check_choice("vanish(label)", self.label, ("own", "any", None))
        if self.label == "own" and self.score == "objectness":
            raise ValueError(
                "vanish(label='own') needs a score by class, got score='objectness'; take score='product', "
                "or label='any'"
            )


def apply(config: Vanish, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits, claims = _claims(config, values)
    claimed = torch.where(claims, logits, torch.full_like(logits, ABSENT))
    highest = claimed.topk(min(config.num_boxes, logits.shape[-1]), dim=-1).values
    pushed = softplus(highest) if config.on == "logit" else sigmoid(highest)
    return {"vanish": mean_over_places(pushed.mean(-1), values["box_valid"])}


def _claims(config: Vanish, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-odds of every box for every object, [b, m or 1, n], and those that count, [b, m, n]."""
    dense = read_dense(values["detections"])
    if config.score == "objectness" and "objectness" not in dense:
        raise ValueError(
            "vanish(score='objectness'): the victim's answer has no objectness; take score='class'"
        )
    logits = score_logits(dense, config.score)
    if config.label != "own":
        boxes, logits = best_boxes(dense), logits.amax(-1)[:, None]
    else:
        boxes, logits = of_labels(dense, logits, object_labels("vanish", values, logits.shape[-1]))
    claims = can_claim(values["boxes"], boxes, config.iou)
    return logits, torch.ones_like(claims) if config.boxes == "all" else claims


def check(config: Vanish, values: Values) -> dict[str, list[str]]:
    """List the objects that no box claims."""
    return find_unclaimed(_claims(config, values)[1], values["box_valid"], values, "object")


def declare(config: Vanish) -> Mapping[str, Any]:
    """Read labels if `label` is "own"."""
    return {"reads": (*_READS, "labels")} if config.label == "own" else {}


_READS = ("detections", "boxes", "box_valid")

vanish = define(
    "vanish",
    Vanish,
    deterministic,
    apply,
    reads=_READS,
    optional=("image_id",),
    writes=("vanish",),
    role="loss",
    counted="box_valid",
    needs=("detections/dense",),
    check=check,
    declare=declare,
)
