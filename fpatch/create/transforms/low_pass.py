"""Keep the coarse structure of a patch, which survives distance and blur."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import clip
from fpatch.ops.patches import map_patches
from fpatch.ops.spectrum import dct2, gaussian_response, idct2


@dataclass(frozen=True)
class LowPass:
    """A Gaussian filter that keeps the mean of the patch.

    Attributes:
        cutoff_frac: Frequency whose amplitude is halved, as a fraction of half a cycle per pixel.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(3, 8, 8)
        >>> out = create.low_pass(0.1).apply({}, {}, {"patch": {"hood": stripes}})["patch"]["hood"]
        >>> bool((out - 0.5).abs().max() < 0.05), round(out.mean().item(), 3)
        (True, 0.5)
    """

    cutoff_frac: float = 0.25
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_number("low_pass(cutoff_frac)", self.cutoff_frac, 1e-3, 1.0)


def apply(config: LowPass, patch_params: Params, sample: Sample, values: Values) -> Values:
    def filtered(name: str, patch: Tensor) -> Tensor:
        height, width = patch.shape[-2:]
        gain = gaussian_response(height, width, config.cutoff_frac).to(patch, non_blocking=True)
        return clip(idct2(dct2(patch) * gain))

    return {"patch": map_patches("low_pass", values["patch"], config.only, filtered)}


low_pass = define("low_pass", LowPass, deterministic, apply, reads=("patch",), writes=("patch",))
