"""Non-maximum suppression: from dense detections to a fixed number of final ones.

The suppression is greedy, per class, among the best candidates, and runs over all rows at once. Each of the m
steps takes the best candidate left in every row. No row depends on another: the usual trick, offsets by row,
would change the last bits of the boxes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fpatch.core.checks import check_count, check_number
from fpatch.core.tree import is_concrete
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.detections import log_scores, read_dense
from fpatch.ops.geometry import pairwise_iou


@dataclass(frozen=True)
class Suppress:
    """Settings of `infer.suppress`: the detections that are kept.

    The stage adds the entry `final` to `detections`: `boxes` [b, m, 4] xyxy in pixels of the image, `scores`,
    `labels` and `valid` [b, m], with zeros where there are fewer than m. It passes no gradient.

    Attributes:
        score: The lowest score of a valid detection.
        iou: A box that overlaps a better one of its class by more than this is suppressed; 1: none is.
        num_detections: The most detections kept per image (m), the best by score; COCO counts 100.
        multi_label: Whether a dense box may answer with several classes, or with its best one only.
        num_candidates: The number of the best scores per image that enter the suppression.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [1.0, 0.0, 8.0, 8.0], [20.0, 0.0, 28.0, 8.0]]])
        >>> dense = {"boxes": boxes, "logits": torch.tensor([[[2.0], [1.0], [0.0]]])}
        >>> values = {"detections": {"dense": dense}}
        >>> final = infer.suppress(num_detections=3).apply({}, {}, values)["detections"]["final"]
        >>> final["valid"], final["boxes"][0, 1]  # the second box overlaps the first by 7 / 8
        (tensor([[ True,  True, False]]), tensor([20.,  0., 28.,  8.]))

    Raises:
        ValueError: If a setting is outside its range.
    """

    score: float = 0.05
    iou: float = 0.5
    num_detections: int = 100
    multi_label: bool = True
    num_candidates: int = 3000

    def __post_init__(self) -> None:
        check_number("suppress(score)", self.score, 0.0, 1.0)
        check_number("suppress(iou)", self.iou, 0.0, 1.0)
        check_count("suppress(num_detections)", self.num_detections, high=100_000)
        check_number("suppress(num_candidates)", self.num_candidates, 1)


def apply(config: Suppress, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense = read_dense(values["detections"])
    scores = log_scores(dense).exp()
    if not config.multi_label:
        best = F.one_hot(scores.argmax(-1), scores.shape[-1]).bool()
        scores = scores.masked_fill(~best, -1.0)
    final = _keep_best(dense["boxes"], scores, config)
    return {"detections": {**values["detections"], "final": final}}


def _keep_best(
    boxes: Float[Tensor, "b n 4"] | Float[Tensor, "b n c 4"], scores: Float[Tensor, "b n c"], config: Suppress
) -> dict[str, Tensor]:
    """Return the m best detections that overlap no better one of their class; zeros after the last."""
    b, n, num_classes = scores.shape
    scores = scores.nan_to_num(nan=-1.0)
    best = scores.flatten(1).topk(min(config.num_candidates, n * num_classes), sorted=False)
    index = best.indices.sort(dim=-1).values  # of equal scores the first is better
    label = index % num_classes
    place = index if boxes.ndim == 4 else torch.div(index, num_classes, rounding_mode="floor")
    boxes = boxes.reshape(b, -1, 4).gather(1, place[..., None].expand(-1, -1, 4))
    left = scores.flatten(1).gather(1, index)  # -1 marks what is taken or suppressed
    taken = []
    for _ in range(min(config.num_detections, index.shape[1])):
        score, chosen = left.max(1, keepdim=True)
        if is_concrete(score) and not bool((score >= config.score).any()):
            break
        box = boxes.gather(1, chosen[..., None].expand(-1, 1, 4))
        own = label.gather(1, chosen)
        taken.append((box[:, 0], score[:, 0], own[:, 0], (score >= config.score)[:, 0]))
        beside = (pairwise_iou(box, boxes)[:, 0] > config.iou) & (label == own)
        left = left.masked_fill(beside, -1.0).scatter(1, chosen, -1.0)
    none = boxes.new_zeros(b, 4), scores.new_zeros(b), label.new_zeros(b), label.new_zeros(b).bool()
    taken += [none] * (config.num_detections - len(taken))
    found, score, labels, valid = (torch.stack(column, dim=1) for column in zip(*taken, strict=True))
    return {
        "boxes": torch.where(valid[..., None], found, 0.0),
        "scores": torch.where(valid, score, 0.0),
        "labels": labels * valid,
        "valid": valid,
    }


suppress = define(
    "suppress",
    Suppress,
    deterministic,
    apply,
    reads=("detections",),
    writes=("detections",),
    gradient=False,
    needs=("detections/dense",),
    gives=("detections/final",),
)
