"""A detector as victim: dense boxes and logits, before any suppression, with no gradient cut."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fpatch.core.resource import Resource, resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.infer._boundary import check_victim, describe, run_victim, show_logits


@dataclass(frozen=True)
class Detector:
    """The victim.

    Attributes:
        model: A module in evaluation mode, images [b, 3, h, w] in 0..1 -> {"boxes" [b, n, 4] xyxy in pixels
            of the image, or [b, n, c, 4] where every class has its own; "logits" [b, n, c]; "objectness"
            [b, n], if it has one}. Or the `Resource` that makes one.
    """

    model: Resource | nn.Module


def apply(config: Detector, patch_params: Params, sample: Sample, values: Values) -> Values:
    answer = run_victim(check_victim("detector", resolve(config.model)), values["image"])
    return {"detections": {"dense": _check_dense(answer, len(values["image"]))}}


def _check_dense(answer: Any, num_rows: int) -> Mapping[str, Tensor]:
    """Refuse an answer of another form, before a loss stumbles over it."""
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
            f"boxes before suppression, got {describe(answer)}; wrap it in a module that does"
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
    show=show_logits,
)
