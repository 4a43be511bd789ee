"""Exchange left and right of the scene, and of its quads and boxes."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Params, Values
from fpatch.graph.stage import define
from fpatch.ops.geometry import LABELS, move_labels, scale_matrix


@dataclass(frozen=True)
class HorizontalFlip:
    """Probability that a row is mirrored; its patches are then mirrored too.

    Convention:
        Pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel, whose center
        is (0.5, 0.5). Corners keep their order: top-left, top-right, bottom-right, bottom-left of the upright
        patch. The width of the image is w, and x becomes w - x.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> batch = {
        ...     "scene": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2) / 4,
        ...     "quads": torch.tensor([[[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]]),
        ... }
        >>> out = compose.horizontal_flip().apply({}, {"on": torch.tensor([True])}, batch)
        >>> (4 * out["scene"][0, 0]).tolist(), out["quads"].tolist()
        ([[2.0, 1.0], [4.0, 3.0]], [[[[2.0, 0.0], [1.0, 0.0], [1.0, 1.0], [2.0, 1.0]]]])
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_number("horizontal_flip(p)", self.p, 0.0, 1.0)


class HorizontalFlipSample(TypedDict):
    """The rows that are mirrored."""

    on: Bool[Tensor, " b"]


def sample(config: HorizontalFlip, keys: Tensor, batch: Batch) -> HorizontalFlipSample:
    return {"on": random.bernoulli(keys, config.p)}


def apply(
    config: HorizontalFlip, patch_params: Params, sample: HorizontalFlipSample, values: Values
) -> Values:
    scene, on = values["scene"], sample["on"]
    h, w = scene.shape[-2:]
    scale, origin, target = (constant([v], scene) for v in ([-1.0, 1.0], [0.0, 0.0], [w, 0.0]))
    matrix = scale_matrix(scale, origin, target).expand(len(on), -1, -1)
    mirrored = torch.where(on[:, None, None, None], scene.flip(-1), scene)
    return {"scene": mirrored, **move_labels(values, matrix, (h, w), on)}


horizontal_flip = define(
    "horizontal_flip",
    HorizontalFlip,
    sample,
    apply,
    reads=("scene",),
    optional=LABELS,
    writes=("scene", *LABELS),
    geometric=True,
)
