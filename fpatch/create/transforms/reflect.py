"""Shift a patch, and fill the gap with its mirror image."""

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
class Reflect:
    """Offsets to the right and down, rounded to whole pixels; the patch gets an axis of rows.

    The mirror lies on the outer edge of the patch, so that the edge pixel appears twice: d c b a | a b c d.

    Attributes:
        x_frac: Range of the offset along x, as a fraction of the patch's width.
        y_frac: Along y, as a fraction of its height.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = {"hood": torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(3, 1, 4)}
        >>> sample = {"x_frac": torch.tensor([0.5]), "y_frac": torch.tensor([0.0])}
        >>> out = create.reflect().apply({}, sample, {"patch": patch})["patch"]["hood"]
        >>> [round(x, 2) for x in out[0, 0, 0].tolist()]
        [0.2, 0.1, 0.1, 0.2]
    """

    x_frac: Range = Range(-0.5, 0.5)
    y_frac: Range = Range(-0.5, 0.5)
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_range("reflect(x_frac)", self.x_frac, -1.0, 1.0)
        check_range("reflect(y_frac)", self.y_frac, -1.0, 1.0)


class ReflectSample(TypedDict):
    """Offsets per row, as fractions of width and height."""

    x_frac: Float[Tensor, " b"]
    y_frac: Float[Tensor, " b"]


def sample(config: Reflect, keys: Tensor, batch: Batch) -> ReflectSample:
    return {
        "x_frac": random.uniform(fold_in(keys, "x_frac"), (), *config.x_frac),
        "y_frac": random.uniform(fold_in(keys, "y_frac"), (), *config.y_frac),
    }


def apply(config: Reflect, patch_params: Params, sample: ReflectSample, values: Values) -> Values:
    def reflected(name: str, patch: Tensor) -> Tensor:
        return shift_rows(patch, sample["x_frac"], sample["y_frac"], _mirror)

    return {"patch": map_patches("reflect", values["patch"], config.only, reflected)}


def _mirror(place: Tensor, size: int) -> Tensor:
    """Map any positions on a line into [0, size) by mirrors at both ends."""
    place = place.remainder(2 * size)
    return torch.where(place < size, place, 2 * size - 1 - place)


reflect = define("reflect", Reflect, sample, apply, reads=("patch",), writes=("patch",))
