"""Helpers of losses on dense detections: the boxes that count for a place, and their log-odds."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fpatch.core.tree import check_labels
from fpatch.core.types import Values
from fpatch.ops.detections import ABSENT, boxes_of
from fpatch.ops.geometry import pairwise_iou


def can_claim(
    places: Float[Tensor, "b m 4"], boxes: Float[Tensor, "b n 4"] | Float[Tensor, "b m n 4"], iou: float
) -> Bool[Tensor, "b m n"]:
    """Mark the boxes that can answer the object at each place.

    The center counts beside the overlap. By overlap alone a patch could shrink or shift the boxes, and the
    loss would no longer push them.

    Args:
        places: xyxy in pixels.
        boxes: xyxy in pixels; the same for every place, or others for each.
        iou: A box counts if its center lies on the place, or if its IoU with the place is at least this.
    """
    boxes = boxes.detach()
    boxes = boxes if boxes.ndim == 4 else boxes[:, None].expand(-1, places.shape[1], -1, -1)
    places = places[:, :, None]
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = ((center >= places[..., :2]) & (center <= places[..., 2:])).all(-1)
    return inside | (pairwise_iou(places, boxes)[:, :, 0] >= iou)


def best_boxes(dense: Mapping[str, Tensor]) -> Float[Tensor, "b n 4"]:
    """Return the box of every entry for its best class."""
    return boxes_of(dense, dense["logits"].argmax(-1))


def of_labels(
    dense: Mapping[str, Tensor], scores: Float[Tensor, "b n c"], labels: Int64[Tensor, "b m"]
) -> tuple[Tensor, Float[Tensor, "b m n"]]:
    """Return the boxes and scores of all entries for the class of every object.

    Returns:
        Boxes [b, n, 4], or [b, m, n, 4] where every class has its own; scores [b, m, n].
    """
    b, n, _ = scores.shape
    index = labels[..., None].expand(-1, -1, n)
    boxes = dense["boxes"]
    if boxes.ndim == 4:
        boxes = boxes.transpose(1, 2).gather(1, index[..., None].expand(b, -1, -1, 4))
    return boxes, scores.transpose(1, 2).gather(1, index)


def present(dense: Mapping[str, Tensor]) -> Bool[Tensor, "b n"]:
    """Mark the entries that are boxes, not padding."""
    return (dense["logits"] != ABSENT).any(-1)


def mean_over_places(per_place: Float[Tensor, "b m"], valid: Bool[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Average over the valid places; 0 where none is valid."""
    weight = valid.to(per_place)
    return (per_place * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def object_labels(stage: str, values: Values, num_classes: int) -> Int64[Tensor, "b m"]:
    """Return the classes of the objects; 0 where `box_valid` is false.

    Raises:
        ValueError: If the victim lacks the class of a valid object.
    """
    labels = torch.where(values["box_valid"], values["labels"], 0)
    check_labels(f"{stage}: a label", labels, num_classes)
    return labels


def find_unclaimed(
    claims: Bool[Tensor, "b m n"], valid: Bool[Tensor, "b m"], values: Values, what: str
) -> dict[str, list[str]]:
    """List the places that no box can claim, for `fpatch doctor`."""
    image_id = values.get("image_id", torch.arange(len(claims)))
    lost = (valid & ~claims.any(-1)).nonzero().tolist()
    found = [f"image {int(image_id[i])}, {what} {j}" for i, j in lost]
    return (
        {f"no dense box of the victim is near the {what}, so that nothing is learned": found} if found else {}
    )
