"""Average precision at one IoU, by torchmetrics."""

from torch import Tensor

from fpatch.metrics._matching import coco_precision, split_rows


def average_precision(
    final: dict[str, Tensor], boxes: Tensor, labels: Tensor, box_valid: Tensor, iou: float = 0.5
) -> float:
    """Mean over classes of the area under the precision-recall curve; NaN where there is no object.

    Args:
        final: {"boxes" [b, m, 4], "scores", "labels", "valid" [b, m]}.
        boxes: Objects [b, k, 4], xyxy.
        labels: [b, k].
        box_valid: [b, k].
        iou: The overlap that counts as a match.

    Raises:
        ImportError: Without the extra `metrics`.
    """
    return coco_precision(*split_rows(final, boxes, labels, box_valid), [iou])["map"]
