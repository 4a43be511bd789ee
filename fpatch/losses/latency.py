"""Give the suppression step more work: every dense box over the threshold, and small enough to stay.

Suppression compares boxes in pairs, so that its time grows with the square of how many pass the threshold;
what one box removes need not be compared again, and small boxes remove fewer. A detector that is trained end
to end has no such step, and nothing to slow down.

Two terms. `latency` is how far the boxes are below the threshold, on average, 0 where all have passed it;
`latency_area` is the mean area of those that have passed, as a fraction of the image, 0 where none has.

References:
    Shapira et al., Phantom Sponges: Exploiting Non-Maximum Suppression to Attack Deep Object Detectors, WACV
    2023; read as the authors' code (`max_objects` and `bboxes_area` of AvishagS422/PhantomSponges), which has
    these two terms, the first in probability and for one class. Of two papers the abstracts: Wang et al.,
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
from fpatch.ops.detections import score_logits
from fpatch.ops.geometry import box_area
from fpatch.ops.stable import sigmoid


@dataclass(frozen=True)
class Latency:
    """Which threshold is to be passed, and how the way to it is measured.

    Attributes:
        score: Of the best class, times the objectness where there is one; a little more than the victim's
            own threshold.
        on: How far a box is below it: in log-odds, where every box is pushed alike; or in probability, where
            those are pushed that are near.
    """

    score: float = 0.25
    on: Literal["logit", "probability"] = "logit"

    def __post_init__(self) -> None:
        check_number("latency(score)", self.score, 0.001, 0.999)
        check_choice("latency(on)", self.on, ("logit", "probability"))


def apply(config: Latency, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense, (height, width) = values["detections"]["dense"], values["image"].shape[-2:]
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
)
