"""Keep the fine structure of a patch, around middle gray."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import clip
from fpatch.ops.patches import map_patches
from fpatch.ops.spectrum import dct2, gaussian_response, idct2

MIDDLE_GRAY = 0.5
"""The level of zero, since a print has no negative values."""


@dataclass(frozen=True)
class HighPass:
    """The complement of `low_pass` of the same cutoff; the mean of the patch becomes middle gray.

    Attributes:
        cutoff_frac: Frequency whose amplitude is halved, as a fraction of half a cycle per pixel.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = {"hood": torch.full((3, 4, 4), 0.9)}
        >>> out = create.high_pass().apply({}, {}, {"patch": patch})["patch"]["hood"]
        >>> round(out.mean().item(), 3)  # a flat patch has no fine structure
        0.5
    """

    cutoff_frac: float = 0.25
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_number("high_pass(cutoff_frac)", self.cutoff_frac, 1e-3, 1.0)


def apply(config: HighPass, patch_params: Params, sample: Sample, values: Values) -> Values:
    def filtered(name: str, patch: Tensor) -> Tensor:
        height, width = patch.shape[-2:]
        gain = 1.0 - gaussian_response(height, width, config.cutoff_frac).to(patch, non_blocking=True)
        return clip(MIDDLE_GRAY + idct2(dct2(patch) * gain))

    return {"patch": map_patches("high_pass", values["patch"], config.only, filtered)}


high_pass = define("high_pass", HighPass, deterministic, apply, reads=("patch",), writes=("patch",))
