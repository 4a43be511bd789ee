"""Replace every pixel by the nearest of a few printable colors."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import check_color, map_patches


@dataclass(frozen=True)
class Snap:
    """The colors of a printer; for `phases={"eval"}`, behind any parameterization.

    Attributes:
        colors: (red, green, blue) triples within 0..1. The distance is that of sRGB values; the first
            of equally near colors is taken.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = torch.tensor([0.1, 0.6, 0.9]).expand(3, 1, 3)
        >>> stage = create.snap(colors=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
        >>> stage.apply({}, {}, {"patch": {"hood": patch}})["patch"]["hood"][0].tolist()
        [[0.0, 1.0, 1.0]]
    """

    colors: tuple[tuple[float, float, float], ...]
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.colors or not all(len(c) == 3 and 0 <= min(c) <= max(c) <= 1 for c in self.colors):
            raise ValueError(
                f"snap(colors) must be (red, green, blue) triples within 0..1, got {self.colors}"
            )


def apply(config: Snap, patch_params: Params, sample: Sample, values: Values) -> Values:
    def snapped(name: str, patch: Tensor) -> Tensor:
        check_color("snap", name, patch)
        colors = constant(config.colors, patch)
        difference = patch[..., None, :, :, :] - colors[:, :, None, None]
        nearest = difference.square().sum(-3).argmin(-3)
        return colors[nearest].movedim(-1, -3)

    return {"patch": map_patches("snap", values["patch"], config.only, snapped)}


snap = define("snap", Snap, deterministic, apply, reads=("patch",), writes=("patch",), gradient=False)
