"""Which detection answers which object: the greedy matching of the COCO evaluation, and AP by its code."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fpatch.ops.geometry import pairwise_iou

Answers = Mapping[str, Tensor]
"""Of one image: `boxes` [n, 4] xyxy, `labels`; of detections also `scores`, of objects maybe `iscrowd`."""


def answered_scores(found: Answers, truth: Answers, iou: float) -> Tensor:
    """The score of the detection that answers each object of an image, -inf where none does.

    Class by class, detections choose in the order of their scores, each the free object that it overlaps
    most, by `iou` at least. A crowd asks for no answer: it holds NaN.

    References:
        Lin et al. (2014), Microsoft COCO; `COCOeval.evaluateImg` of pycocotools.
    """
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
    """What torchmetrics' `MeanAveragePrecision` says of some images; -1 is NaN.

    Args:
        found: Detections of each image, of which COCO counts the best 100 per class.
        truth: Objects of each.
        iou_thresholds: None for those of COCO, 0.5 to 0.95.
        recall_thresholds: Where precision is read; None for the 101 of COCO, as torchmetrics rounds them.

    Returns:
        `map`, `map_50`, `map_75` as floats; `classes`, AP by label.

    Raises:
        ImportError: Without the extra `metrics`.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise ImportError("average precision needs torchmetrics: pip install 'fpatch[metrics]'") from error
    metric = MeanAveragePrecision(
        iou_thresholds=None if iou_thresholds is None else list(iou_thresholds),
        rec_thresholds=None if recall_thresholds is None else list(recall_thresholds),
        class_metrics=True,
        backend="faster_coco_eval",
    )
    metric.warn_on_many_detections = False
    metric.update([dict(f) for f in found], [dict(t) for t in truth])
    result = metric.compute()
    values = result["map_per_class"].reshape(-1).tolist()
    classes = dict(zip(result["classes"].reshape(-1).tolist(), map(_number, values), strict=True))
    return {n: _number(result[n]) for n in ("map", "map_50", "map_75")} | {"classes": classes}


def _number(value: Any) -> float:
    return float("nan") if value < 0 else float(value)


def split_rows(
    final: Answers, boxes: Tensor, labels: Tensor, box_valid: Tensor
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Detections and objects of each row, without their padding."""
    found, truth = [], []
    for i in range(len(boxes)):
        keep, real = final["valid"][i], box_valid[i]
        found.append({n: final[n][i][keep] for n in ("boxes", "scores", "labels")})
        truth.append({"boxes": boxes[i][real], "labels": labels[i][real]})
    return found, truth
