"""Shift the scene, and its quads and boxes with it; the gap repeats the edge."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.geometry import LABELS, move_view, scale_matrix
from fpatch.random import fold_in


@dataclass(frozen=True)
class Translation:
    """Range and probability of the shift.

    Attributes:
        shift_frac: Range of the shift along x and along y, as a fraction of the image's width and height.
        p: Probability that a row is shifted.

    Convention:
        Pixels of the image, x right, y down. (0, 0) is the outer corner of the top-left pixel, whose center
        is (0.5, 0.5). Corners keep their order: top-left, top-right, bottom-right, bottom-left of the upright
        patch. Positive shifts go right and down. A shift by whole pixels moves pixel values unchanged; any
        other interpolates bilinearly.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> batch = {"scene": torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(1, 3, 1, 4)}
        >>> sample = {"on": torch.tensor([True]), "shift_frac": torch.tensor([[0.25, 0.0]])}  # 1 px
        >>> compose.translation().apply({}, sample, batch)["scene"][0, 0].round(decimals=2)
        tensor([[0.1000, 0.1000, 0.2000, 0.3000]])
    """

    shift_frac: Range = Range(-0.1, 0.1)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("translation(shift_frac)", self.shift_frac, -1.0, 1.0)
        check_number("translation(p)", self.p, 0.0, 1.0)


class TranslationSample(TypedDict):
    """Per row; the shift is along x and along y."""

    on: Bool[Tensor, " b"]
    shift_frac: Float[Tensor, "b 2"]


def sample(config: Translation, keys: Tensor, batch: Batch) -> TranslationSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "shift_frac": random.uniform(fold_in(keys, "shift_frac"), (2,), *config.shift_frac),
    }


def apply(config: Translation, patch_params: Params, sample: TranslationSample, values: Values) -> Values:
    h, w = values["scene"].shape[-2:]
    shift = sample["shift_frac"] * constant([w, h], values["scene"])
    matrix = scale_matrix(torch.ones_like(shift), torch.zeros_like(shift), shift)
    return move_view(values, matrix, sample["on"])


translation = define(
    "translation",
    Translation,
    sample,
    apply,
    reads=("scene",),
    optional=LABELS,
    writes=("scene", *LABELS),
    geometric=True,
)
