"""Make a detector answer an object with another class: any but its own, or a chosen one.

The loss compares the class log-odds of each box that claims the object. The objectness is common to all
classes and would cancel. The term does not keep the object found; add `losses.hallucinate` of the target for
that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fpatch.core.checks import check_class, check_label, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._detections import (
    best_boxes,
    can_claim,
    find_unclaimed,
    mean_over_places,
    object_labels,
    present,
)
from fpatch.ops.detections import ABSENT, read_dense, score_logits


@dataclass(frozen=True)
class Relabel:
    """Settings of `losses.relabel`: the goal, and the boxes that count.

    The stage writes `relabel` [b].

    Attributes:
        target: The class to answer, by its name or number; None: any but the object's own.
        margin: The lead of the goal, in logits, from which on the term of a box is 0.
        num_boxes: The mean is over this many of the boxes that claim each object, the best by the score of
            their best class. Missing boxes count 0.
        iou: A dense box can claim an object if its center lies on it, or if its IoU with it is at least this.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> box, logits = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([[[3.0, 1.0]]])
        >>> values = {"detections": {"dense": {"boxes": box, "logits": logits}}, "boxes": box}
        >>> values |= {"labels": torch.tensor([[0]]), "box_valid": torch.tensor([[True]])}
        >>> losses.relabel(margin=1.0).apply({}, {}, values)["relabel"]  # class 0 leads by 2
        tensor([3.])
    """

    target: int | str | None = None
    margin: float = 10.0
    num_boxes: int = 6
    iou: float = 0.2

    def __post_init__(self) -> None:
        if self.target is not None:
            check_class("relabel(target)", self.target)
        check_number("relabel(margin)", self.margin, 0.0)
        check_number("relabel(num_boxes)", self.num_boxes, 1)
        check_number("relabel(iou)", self.iou, 0.0, 1.0)


def apply(config: Relabel, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense = read_dense(values["detections"])
    logits, claims = dense["logits"], _claims(config, values)
    num_boxes, num_classes = logits.shape[-2:]
    if num_classes < 2:
        raise ValueError(
            "relabel: the victim must have two classes at least, got 1; use losses.vanish instead"
        )
    if config.target is not None:
        check_label("relabel(target)", config.target, num_classes)
    labels = object_labels("relabel", values, num_classes)
    goal = labels if config.target is None else torch.full_like(labels, int(config.target))
    own = logits.transpose(1, 2).gather(1, goal[..., None].expand(-1, -1, num_boxes))
    two = logits.topk(2, dim=-1)  # the rival is one of these
    first, second = two.values[:, None].unbind(-1)
    rival = torch.where(two.indices[:, None, :, 0] == goal[..., None], second, first)
    lead = own - rival if config.target is None else rival - own
    term = (lead + config.margin).clamp(min=0.0)
    best = score_logits(dense).detach().amax(-1)[:, None].masked_fill(~claims, float("-inf"))
    index = best.topk(min(config.num_boxes, num_boxes), dim=-1).indices
    per_object = (term * claims).gather(-1, index).mean(-1)
    return {"relabel": mean_over_places(per_object, values["box_valid"])}


def _claims(config: Relabel, values: Values) -> Tensor:
    dense = read_dense(values["detections"])
    return can_claim(values["boxes"], best_boxes(dense), config.iou) & present(dense)[:, None]


def check(config: Relabel, values: Values) -> dict[str, list[str]]:
    """List the objects that no box claims, of those that can answer the target."""
    claims = _claims(config, values)
    if config.target is not None:
        logits = read_dense(values["detections"])["logits"][..., int(config.target)]
        claims = claims & (logits != ABSENT)[:, None]
    return find_unclaimed(claims, values["box_valid"], values, "object")


relabel = define(
    "relabel",
    Relabel,
    deterministic,
    apply,
    reads=("detections", "boxes", "labels", "box_valid"),
    optional=("image_id",),
    writes=("relabel",),
    role="loss",
    counted="box_valid",
    needs=("detections/dense",),
    check=check,
    classes=("target",),
)
