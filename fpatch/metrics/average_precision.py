"""Average precision at one IoU, by torchmetrics."""

import warnings

from torch import Tensor

from fpatch.metrics._matching import COUNTED, coco_precision, split_rows


def average_precision(
    final: dict[str, Tensor], boxes: Tensor, labels: Tensor, box_valid: Tensor, iou: float = 0.5
) -> float:
    """Return the mean over classes of the area under the precision-recall curve.

    COCO counts the best 100 detections of an image and class; a warning says how many are left out.

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
    found = coco_precision(*split_rows(final, boxes, labels, box_valid), [iou])
    if found["left_out"]:
        warnings.warn(
            f"average_precision leaves out {found['left_out']} detections: as in COCO, it counts the best "
            f"{COUNTED} of an image and class",
            stacklevel=2,
        )
    return found["map"]
