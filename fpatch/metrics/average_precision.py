"""Average precision at one IoU, by torchmetrics."""

from torch import Tensor

from fpatch.metrics._matching import coco_precision, split_rows


def average_precision(
    final: dict[str, Tensor], boxes: Tensor, labels: Tensor, box_valid: Tensor, iou: float = 0.5
) -> float:
    """Return the mean over classes of the area under the precision-recall curve.

    Args:
        final: Final detections: {"boxes" [b, m, 4], "scores", "labels", "valid" [b, m]}.
        boxes: Objects [b, k, 4], xyxy.
        labels: Their classes [b, k].
        box_valid: Bool [b, k]; false for padding.
        iou: The overlap that counts as a match.

    Returns:
        The average precision in 0..1; NaN without objects, or if a detection is not finite.

    Raises:
        ImportError: If the extra `metrics` is not installed.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> box, label, yes = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[True]])
        >>> final = {"boxes": box, "scores": torch.tensor([[0.9]]), "labels": label, "valid": yes}
        >>> metrics.average_precision(final, box, label, yes)
        1.0
    """
    return coco_precision(*split_rows(final, boxes, labels, box_valid), [iou])["map"]
