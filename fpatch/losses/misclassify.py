"""Make a classifier answer wrongly: away from the true class, or towards a chosen one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fpatch.core.checks import check_class, check_label, check_number
from fpatch.core.tree import check_labels, widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Misclassify:
    """Settings of `losses.misclassify`: the goal, and the lead that suffices.

    The stage writes `misclassify` [b].

    Attributes:
        target: The class to answer (targeted), by name or number. None: any but the true one (untargeted).
        margin: The lead of the goal, in logits, from which on the term is 0.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> values = {"logits": torch.tensor([[3.0, 1.0], [0.0, 5.0]]), "target": torch.tensor([0, 0])}
        >>> losses.misclassify(margin=1.0).apply({}, {}, values)["misclassify"]
        tensor([3., 0.])
        >>> losses.misclassify(target=1, margin=10.0).apply({}, {}, values)["misclassify"]
        tensor([12.,  5.])
    """

    target: int | str | None = None
    margin: float = 10.0

    def __post_init__(self) -> None:
        if self.target is not None:
            check_class("misclassify(target)", self.target)
        check_number("misclassify(margin)", self.margin, 0.0)


def apply(config: Misclassify, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits, label = widen(values["logits"]), values["target"]
    num_classes = logits.shape[-1]
    if num_classes < 2:
        raise ValueError(
            "misclassify: the victim must have two classes at least, got 1; give it a second logit, 0 for "
            "the opposite"
        )
    if config.target is None:
        check_labels("misclassify: a target", label, num_classes)
    else:
        goal = check_label("misclassify(target)", config.target, num_classes)
        label = torch.full_like(label, goal)
    chosen = F.one_hot(label, num_classes).bool()
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
    classes=("target",),
)
