"""Shift a patch cyclically: pixels that leave at one edge enter at the opposite edge."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.create.transforms._shift import shift_rows
from fpatch.graph.stage import define
from fpatch.ops.patches import map_patches
from fpatch.random import fold_in


@dataclass(frozen=True)
class Scroll:
    """Offsets to the right and down, rounded to whole pixels; the patch gets an axis of rows.

    All patches of a row move by the same fractions. For different fractions, use two nodes with `only`.

    Attributes:
        x_frac: Range of the offset along x, as a fraction of the patch's width.
        y_frac: Along y, as a fraction of its height.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = {"hood": torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(3, 1, 4)}
        >>> sample = {"x_frac": torch.tensor([0.25]), "y_frac": torch.tensor([0.0])}
        >>> out = create.scroll().apply({}, sample, {"patch": patch})["patch"]["hood"]
        >>> [round(x, 2) for x in out[0, 0, 0].tolist()]
        [0.4, 0.1, 0.2, 0.3]
    """

    x_frac: Range = Range(0.0, 1.0)
    y_frac: Range = Range(0.0, 1.0)
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_range("scroll(x_frac)", self.x_frac, -1.0, 1.0)
        check_range("scroll(y_frac)", self.y_frac, -1.0, 1.0)


class ScrollSample(TypedDict):
    """Offsets per row, as fractions of width and height."""

    x_frac: Float[Tensor, " b"]
    y_frac: Float[Tensor, " b"]


def sample(config: Scroll, keys: Tensor, batch: Batch) -> ScrollSample:
    return {
        "x_frac": random.uniform(fold_in(keys, "x_frac"), (), *config.x_frac),
        "y_frac": random.uniform(fold_in(keys, "y_frac"), (), *config.y_frac),
    }


def apply(config: Scroll, patch_params: Params, sample: ScrollSample, values: Values) -> Values:
    def scrolled(name: str, patch: Tensor) -> Tensor:
        return shift_rows(patch, sample["x_frac"], sample["y_frac"], torch.remainder)

    return {"patch": map_patches("scroll", values["patch"], config.only, scrolled)}


scroll = define("scroll", Scroll, sample, apply, reads=("patch",), writes=("patch",))
