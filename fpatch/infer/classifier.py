"""A classifier as victim."""

from dataclasses import dataclass

from torch import nn

from fpatch.infer.boundary import check_victim, run_victim
from fpatch.resource import Resource, live
from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class Classifier:
    """The victim.

    Attributes:
        model: A module in evaluation mode, images [b, 3, h, w] in 0..1 -> logits [b, c]; or the `Resource`
            that makes one.
    """

    model: Resource | nn.Module


def apply(config: Classifier, patch_params: Params, sample: Sample, values: Values) -> Values:
    return {"logits": run_victim(check_victim("classifier", live(config.model)), values["image"])}


def show(config: Classifier, values: Values, control_values: Values) -> Values:
    return {
        f"logits/{name}": shown["logits"].flatten()
        for name, shown in (("patch", values), ("none", control_values))
    }


classifier = define(
    "classifier",
    Classifier,
    deterministic,
    apply,
    reads=("image",),
    writes=("logits",),
    role="victim",
    show=show,
)
