"""Replace every pixel by the median of its neighbors, which removes what is small."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fpatch.core.checks import check_count
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Median:
    """The side of the square window, 2 to 15.

    Example:
        >>> import torch
        >>> from fpatch import defend
        >>> image = torch.zeros(1, 3, 5, 5)
        >>> image[..., 2, 2] = 1.0
        >>> defend.median().apply({}, {}, {"image": image})["image"].max().item()
        0.0
    """

    size_px: int = 3

    def __post_init__(self) -> None:
        check_count("median(size_px)", self.size_px, 2, 15)


def apply(config: Median, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Take the median of each channel by itself, with mirrored edges.

    The gradient is that of the pixel which was taken. Of an even number it is the higher of the two in the
    middle, and the window reaches further up and left.

    References:
        Xu, Evans and Qi (2018), Feature squeezing: detecting adversarial examples in deep neural networks,
        NDSS, section III-B.
    """
    image, k = values["image"], config.size_px
    padded = _mirror(_mirror(image, k, -2), k, -1)
    h, w = image.shape[-2:]
    shifted = [padded[..., y : y + h, x : x + w] for y in range(k) for x in range(k)]
    # sorted, since kthvalue has no deterministic form on a GPU
    return {"image": torch.stack(shifted, dim=1).sort(dim=1, stable=True).values[:, k * k // 2]}


def _mirror(image: Tensor, size_px: int, axis: int) -> Tensor:
    """Continue an axis by its mirror, edges repeated, so that every pixel is in the middle of a window."""
    n = image.shape[axis]
    index = torch.arange(-(size_px // 2), n + size_px - 1 - size_px // 2, device=image.device) % (2 * n)
    return image.index_select(axis, torch.minimum(index, 2 * n - 1 - index))


median = define("median", Median, deterministic, apply, reads=("image",), writes=("image",))
