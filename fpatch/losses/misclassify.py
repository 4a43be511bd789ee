"""Make a classifier answer wrongly: away from the true class, or towards a chosen one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fpatch.stage import define, deterministic
from fpatch.types import Params, Sample, Values


@dataclass(frozen=True)
class Misclassify:
    """The goal.

    Attributes:
        target: Class to be answered (targeted), or None for any but the true one (untargeted).
        margin: The term stops falling once the goal leads by so much, in logits.
    """

    target: int | None = None
    margin: float = 10.0


def apply(config: Misclassify, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits = values["logits"]
    label = values["target"] if config.target is None else torch.full_like(values["target"], config.target)
    chosen = F.one_hot(label, logits.shape[-1]).bool()
    own = logits.masked_fill(~chosen, 0.0).sum(-1)
    rival = logits.masked_fill(chosen, float("-inf")).amax(-1)
    lead = own - rival if config.target is None else rival - own
    return {"misclassify": (lead + config.margin).clamp(min=0.0)}


misclassify = define(
    "misclassify",
    Misclassify,
    deterministic,
    apply,
    reads=("logits", "target"),
    writes=("misclassify",),
    role="loss",
)
