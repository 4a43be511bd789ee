"""Make a patch equal to its mirror image."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import map_patches

_FLIPS = {"x": ([-1],), "y": ([-2],), "both": ([-1], [-2])}


@dataclass(frozen=True)
class Symmetric:
    """Axes along which a patch is averaged with its mirror image; put it after any parameterization.

    Attributes:
        along: "x" mirrors left and right, "y" top and bottom, "both" mirrors along x, then along y.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = {"hood": torch.tensor([0.0, 0.0, 0.5, 1.0]).expand(3, 1, 4)}
        >>> create.symmetric().apply({}, {}, {"patch": patch})["patch"]["hood"][0].tolist()
        [[0.5, 0.25, 0.25, 0.5]]
    """

    along: Literal["x", "y", "both"] = "x"
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.along not in _FLIPS:
            raise ValueError(f"symmetric(along) must be one of {', '.join(_FLIPS)}, got {self.along!r}")


def apply(config: Symmetric, patch_params: Params, sample: Sample, values: Values) -> Values:
    def mirrored(name: str, patch: Tensor) -> Tensor:
        for dims in _FLIPS[config.along]:
            patch = 0.5 * (patch + patch.flip(dims))
        return patch

    return {"patch": map_patches("symmetric", values["patch"], config.only, mirrored)}


symmetric = define("symmetric", Symmetric, deterministic, apply, reads=("patch",), writes=("patch",))
