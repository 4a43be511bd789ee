"""Exchange top and bottom: the scene, and its quads and boxes with it."""

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
class VerticalFlip:
    """Probability of a row to be mirrored; its patches are then seen mirrored too."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_number("vertical_flip(p)", self.p, 0.0, 1.0)


class VerticalFlipSample(TypedDict):
    """Whether each row is mirrored."""

    on: Bool[Tensor, " b"]


def sample(config: VerticalFlip, keys: Tensor, batch: Batch) -> VerticalFlipSample:
    return {"on": random.bernoulli(keys, config.p)}


def apply(config: VerticalFlip, patch_params: Params, sample: VerticalFlipSample, values: Values) -> Values:
    scene, on = values["scene"], sample["on"]
    h, w = scene.shape[-2:]
    scale, origin, target = (constant([v], scene) for v in ([1.0, -1.0], [0.0, 0.0], [0.0, h]))
    matrix = scale_matrix(scale, origin, target).expand(len(on), -1, -1)
    mirrored = torch.where(on[:, None, None, None], scene.flip(-2), scene)
    return {"scene": mirrored, **move_labels(values, matrix, (h, w), on)}


vertical_flip = define(
    "vertical_flip",
    VerticalFlip,
    sample,
    apply,
    reads=("scene",),
    optional=LABELS,
    writes=("scene", *LABELS),
    geometric=True,
)
