"""A detector as the victim: dense boxes and logits before suppression, differentiable in the images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fpatch.core.resource import Resource, resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.infer._boundary import check_model, check_victim, describe, hint, run_victim, show_logits


@dataclass(frozen=True)
class Detector:
    """Settings of `infer.detector`: the victim.

    The stage writes `detections`, whose entry `dense` is the model's answer.

    Attributes:
        model: A module in evaluation mode, or the `Resource` that makes one. From images [b, 3, h, w] in 0..1
            it answers {"boxes", "logits" [b, n, c]} and maybe "objectness" [b, n], as log-odds. Boxes are
            xyxy in pixels of the image, [b, n, 4], or [b, n, c, 4] if every class has its own.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> class Bright(torch.nn.Module):  # one box per image; its logit is the mean of the pixels
        ...     def forward(self, images):
        ...         boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(len(images), 1, 4)
        ...         return {"boxes": boxes, "logits": images.mean((1, 2, 3))[:, None, None]}
        >>> values = {"image": torch.ones(2, 3, 8, 8)}
        >>> infer.detector(Bright().eval()).apply({}, {}, values)["detections"]["dense"]["logits"].shape
        torch.Size([2, 1, 1])

    Raises:
        ValueError: If the model is in training mode or answers another form, when the stage runs.
    """

    model: Resource | nn.Module

    def __post_init__(self) -> None:
        check_model("detector", self.model)


def apply(config: Detector, patch_params: Params, sample: Sample, values: Values) -> Values:
    answer = run_victim(check_victim("detector", resolve(config.model)), values["image"])
    return {"detections": {"dense": _check_dense(answer, values["image"].shape[0])}}


def _check_dense(answer: Any, num_rows: int) -> Mapping[str, Tensor]:
    """Check the form of an answer, and return it."""
    parts = answer if isinstance(answer, Mapping) else {}
    shapes = {name: tuple(part.shape) for name, part in parts.items() if isinstance(part, Tensor)}
    logits = shapes.get("logits", ())
    if (
        len(logits) != 3
        or logits[0] != num_rows
        or shapes.get("boxes") not in ((*logits[:2], 4), (*logits, 4))
        or shapes.get("objectness", logits[:2]) != logits[:2]
    ):
        raise ValueError(
            f"detector: the model must answer {{boxes: [{num_rows}, n, 4], logits: [{num_rows}, n, c]}}, all "
            f"boxes before suppression, got {describe(answer)}; {hint(answer)}"
        )
    return parts


detector = define(
    "detector",
    Detector,
    deterministic,
    apply,
    reads=("image",),
    writes=("detections",),
    role="victim",
    gives=("detections/dense",),
    show=show_logits,
)
