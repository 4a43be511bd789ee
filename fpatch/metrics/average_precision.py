"""Average precision at IoU 0.5, by torchmetrics."""

from typing import Any

from torch import Tensor


def average_precision(
    final: dict[str, Tensor], boxes: Tensor, labels: Tensor, box_valid: Tensor, iou: float = 0.5
) -> float:
    """Mean over classes of the area under the precision-recall curve.

    Args:
        final: {"boxes" [b, m, 4], "scores", "labels", "valid" [b, m]}.
        boxes: Objects [b, k, 4], xyxy.
        labels: [b, k].
        box_valid: [b, k].
        iou: The overlap that counts as a match.

    Raises:
        ImportError: Without the extra `metrics`.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise ImportError("average precision needs torchmetrics: pip install 'fpatch[metrics]'") from error
    metric = MeanAveragePrecision(iou_thresholds=[iou], backend="faster_coco_eval")
    found: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for i in range(len(boxes)):
        keep, real = final["valid"][i], box_valid[i]
        found.append({n: final[n][i][keep] for n in ("boxes", "scores", "labels")})
        truth.append({"boxes": boxes[i][real], "labels": labels[i][real]})
    metric.update(found, truth)
    return float(metric.compute()["map"])
