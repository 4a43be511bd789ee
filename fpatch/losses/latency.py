"""Slow suppression down: push every dense box over the threshold, and make it small enough to stay.

Suppression compares boxes in pairs, so its time grows with the square of the boxes over the threshold. A
removed box is compared no more, and small boxes remove fewer others. End-to-end detectors have no suppression
to slow down.

The stage writes two terms. `latency` is the mean distance of the boxes below the threshold, 0 where all
have passed. `latency_area` is the mean area of those that have passed, a fraction of the image.

References:
    Shapira et al., Phantom Sponges: Exploiting Non-Maximum Suppression to Attack Deep Object Detectors, WACV
    2023; read as the authors' code (`max_objects` and `bboxes_area` of AvishagS422/PhantomSponges), which has
    these two terms, the first in probability and for one class. Only the abstracts of two more were
    read: Wang et al.,
    Daedalus, IEEE Transactions on Cybernetics 2022, evade suppression by boxes made small; Chen et al.,
    Overload: Latency Attacks on Object Detection for Edge Devices, CVPR 2024, aim at the time of inference.
"""

import math
from dataclasses import dataclass
from typing import Literal

from fpatch.core.checks import check_choice, check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._detections import best_boxes, mean_over_places, present
from fpatch.ops.detections import read_dense, score_logits
from fpatch.ops.geometry import box_area
from fpatch.ops.stable import sigmoid


@dataclass(frozen=True)
class Latency:
    """Settings of `losses.latency`: the threshold, and the measure of the distance below it.

    The stage writes `latency` [b] and `latency_area` [b].

    Attributes:
        score: The threshold on the score of the best class, times the objectness where the victim has one.
            Set it a little above the victim's own.
        on: "logit": the distance in log-odds, which pushes every box alike. "probability": the distance in
            probability, which pushes the boxes near the threshold.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]]])
        >>> dense = {"boxes": boxes, "logits": torch.tensor([[[-3.0], [2.0]]])}
        >>> values = {"detections": {"dense": dense}, "image": torch.zeros(1, 3, 8, 8)}
        >>> out = losses.latency(score=0.5).apply({}, {}, values)
        >>> out["latency"], out["latency_area"]
        (tensor([1.5000]), tensor([0.2500]))
    """

    score: float = 0.25
    on: Literal["logit", "probability"] = "logit"

    def __post_init__(self) -> None:
        check_number("latency(score)", self.score, 0.001, 0.999)
        check_choice("latency(on)", self.on, ("logit", "probability"))


def apply(config: Latency, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense, (height, width) = read_dense(values["detections"]), values["image"].shape[-2:]
    logits, there = score_logits(dense).amax(-1), present(dense)
    threshold = math.log(config.score / (1 - config.score))
    below = threshold - logits if config.on == "logit" else config.score - sigmoid(logits)
    area = box_area(best_boxes(dense)) / (height * width)
    return {
        "latency": mean_over_places(below.clamp(min=0.0), there),
        "latency_area": mean_over_places(area, there & (logits >= threshold)),
    }


latency = define(
    "latency",
    Latency,
    deterministic,
    apply,
    reads=("detections", "image"),
    writes=("latency", "latency_area"),
    role="loss",
    needs=("detections/dense",),
)
