"""A detector as victim: dense boxes and logits, before any suppression, with no gradient cut."""

from dataclasses import dataclass

from torch import nn

from fpatch.infer.boundary import check_victim, run_victim, show_logits
from fpatch.resource import Resource, live
from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class Detector:
    """The victim.

    Attributes:
        model: A module in evaluation mode, images [b, 3, h, w] in 0..1 -> {"boxes" [b, n, 4] xyxy in pixels
            of the image, "logits" [b, n, c]}; or the `Resource` that makes one.
    """

    model: Resource | nn.Module


def apply(config: Detector, patch_params: Params, sample: Sample, values: Values) -> Values:
    dense = run_victim(check_victim("detector", live(config.model)), values["image"])
    return {"detections": {"dense": dense}}


detector = define(
    "detector",
    Detector,
    deterministic,
    apply,
    reads=("image",),
    writes=("detections",),
    role="victim",
    show=show_logits,
)
