"""A classifier as the victim."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fpatch.core.resource import Resource, resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.infer._boundary import check_model, check_victim, describe, hint, run_victim


@dataclass(frozen=True)
class Classifier:
    """Settings of `infer.classifier`: the victim.

    The stage writes `logits` [b, c], differentiable in the images.

    Attributes:
        model: A module in evaluation mode, images [b, 3, h, w] in 0..1 -> logits [b, c], or {"logits": them}
            as transformers' classifiers answer; or the `Resource` that makes one.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
        >>> infer.classifier(model).apply({}, {}, {"image": torch.ones(2, 3, 4, 4)})["logits"].shape
        torch.Size([2, 5])

    Raises:
        ValueError: If the model is in training mode or answers another shape, when the stage runs.
    """

    model: Resource | nn.Module

    def __post_init__(self) -> None:
        check_model("classifier", self.model)


def ask(model: Callable[[Tensor], Any], images: Tensor) -> Any:
    """Return the logits of an answer that names them, as transformers' classifiers do."""
    answer = model(images)
    return answer["logits"] if isinstance(answer, Mapping) and "logits" in answer else answer


def apply(config: Classifier, patch_params: Params, sample: Sample, values: Values) -> Values:
    logits = run_victim(check_victim("classifier", resolve(config.model)), values["image"], ask)
    b = values["image"].shape[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != b:
        raise ValueError(
            f"classifier: the model must answer logits [{b}, c], got {describe(logits)}; {hint(logits)}"
        )
    return {"logits": logits}


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
