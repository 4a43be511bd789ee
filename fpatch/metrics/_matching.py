"""COCO's greedy matching of detections to objects, and average precision by COCO's own code."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor

from fpatch.ops.detections import widen_detections
from fpatch.ops.geometry import pairwise_iou

Answers = Mapping[str, Tensor]
"""One image: `boxes` [n, 4] xyxy and `labels`; detections add `scores`, objects may add `iscrowd`."""


COUNTED = 100
"""COCO's average precision counts this many detections of an image and class, the best by score."""


def answered_scores(found: Answers, truth: Answers, iou: float) -> Tensor:
    """Return the score of the detection that matches each object of an image, -inf without a match.

    Detections choose in the order of their scores. Each takes the free object of its class that it overlaps
    most, by `iou` at least. A crowd is never matched: its score is NaN.

    Args:
        found: The detections of one image.
        truth: Its k objects.
        iou: The overlap that counts as a match.

    Returns:
        Scores [k].

    References:
        Lin et al. (2014), Microsoft COCO; `COCOeval.evaluateImg` of pycocotools.

    Example:
        >>> import torch
        >>> from fpatch.metrics._matching import answered_scores
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> label, score = torch.tensor([0]), torch.tensor([0.75])
        >>> found = {"boxes": box, "labels": label, "scores": score}
        >>> answered_scores(found, {"boxes": torch.cat([box, box + 8]), "labels": torch.tensor([0, 0])}, 0.5)
        tensor([0.7500,   -inf])
    """
    found = widen_detections(found)
    answered = torch.full([len(truth["labels"])], -torch.inf, dtype=found["scores"].dtype)
    crowd = truth.get("iscrowd", torch.zeros_like(truth["labels"])).bool()
    overlaps = pairwise_iou(found["boxes"], truth["boxes"])
    open_ = ~crowd
    for i in found["scores"].argsort(descending=True, stable=True).tolist():
        mine = open_ & (truth["labels"] == found["labels"][i])
        best = torch.where(mine, overlaps[i], -1.0)
        if len(best) and float(best.max()) >= min(iou, 1 - 1e-10):
            chosen = int((best == best.max()).nonzero()[-1])
            answered[chosen], open_[chosen] = found["scores"][i], False
    return answered.masked_fill(crowd, torch.nan)


def coco_precision(
    found: Sequence[Answers],
    truth: Sequence[Answers],
    iou_thresholds: Sequence[float] | None = None,
    recall_thresholds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the average precision of torchmetrics' `MeanAveragePrecision`, with NaN for its -1.

    Every number is NaN if a box or a score of a detection is not finite.

    Args:
        found: Detections of each image; COCO counts the best `COUNTED` of an image and class.
        truth: Objects of each image.
        iou_thresholds: The overlaps; None: 0.5 to 0.95, as in COCO.
        recall_thresholds: The recalls at which precision is read; None: COCO's 101, as torchmetrics rounds
            them.

    Returns:
        `map`, `map_50`, `map_75` as floats; `classes`, AP by label; `left_out`, the number of detections that
        COCO does not count.

    Raises:
        ImportError: If the extra `metrics` is not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise ImportError("average precision needs torchmetrics: pip install 'fpatch[metrics]'") from error
    if not are_finite(found):
        labels = {label for t in truth for label in t["labels"].tolist()}
        classes = dict.fromkeys(sorted(labels), nan)
        return dict.fromkeys(("map", "map_50", "map_75"), nan) | {"classes": classes, "left_out": 0}
    metric = MeanAveragePrecision(
        iou_thresholds=None if iou_thresholds is None else list(iou_thresholds),
        rec_thresholds=None if recall_thresholds is None else list(recall_thresholds),
        class_metrics=True,
        backend="faster_coco_eval",
        distributed_available_fn=alone,
    )
    metric.warn_on_many_detections = False  # it warns of 100 of all classes, and COCO counts by class
    found, truth = [widen_detections(f) for f in found], [widen_detections(t) for t in truth]
    metric.update(found, truth)
    result = metric.compute()
    values = result["map_per_class"].reshape(-1).tolist()
    classes = dict(zip(result["classes"].reshape(-1).tolist(), map(_number, values), strict=True))
    numbers = {n: _number(result[n]) for n in ("map", "map_50", "map_75")}
    counts = [f["labels"].unique(return_counts=True)[1] for f in found]
    left_out = sum(int((count - COUNTED).clamp(min=0).sum()) for count in counts)
    return numbers | {"classes": classes, "left_out": left_out}


def are_finite(found: Sequence[Answers]) -> bool:
    """Return whether all boxes and scores of detections are finite.

    Example:
        >>> import torch
        >>> from fpatch.metrics._matching import are_finite
        >>> are_finite([{"boxes": torch.zeros(1, 4), "scores": torch.tensor([torch.nan])}])
        False
    """
    return all(bool(f[name].isfinite().all()) for f in found for name in ("boxes", "scores"))


def alone() -> bool:
    """Return False: for a metric of torchmetrics there is no other process to join.

    An evaluation runs in process 0, and a collective would wait for the others.
    """
    return False


def _number(value: Any) -> float:
    return float("nan") if value < 0 else float(value)


def split_rows(
    final: Answers, boxes: Tensor, labels: Tensor, box_valid: Tensor
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Return the detections and the objects of each row, without their padding."""
    found, truth, final = [], [], widen_detections(final)
    for i in range(len(boxes)):
        keep, real = final["valid"][i], box_valid[i].bool()
        found.append({n: final[n][i][keep] for n in ("boxes", "scores", "labels")})
        truth.append({"boxes": boxes[i][real], "labels": labels[i][real]})
    return found, truth
