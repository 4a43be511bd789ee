"""Blank the blocks of an image with strong high frequencies, as a segmenter of patches would."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch.core.checks import check_count, check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import luma
from fpatch.ops.spectrum import BLOCK_PX, block_dct, pad_to_blocks
from fpatch.ops.stable import with_gradient_of


@dataclass(frozen=True)
class FrequencyMask:
    """The rule by which blocks of 8 x 8 pixels are blanked; nothing in it is trained.

    Attributes:
        threshold: The root mean square of the high frequencies of luma, 0..1, above which a block is blanked.
        cutoff: Frequencies of the block's DCT count from this sum of their indices on, 1 to 14.
        fill: The value of a blanked pixel, 0..1.

    Example:
        >>> import torch
        >>> from fpatch import defend
        >>> image = torch.full((1, 3, 8, 16), 0.25)
        >>> image[..., 8::2] = 0.75
        >>> out = defend.frequency_mask(fill=0.0).apply({}, {}, {"image": image})["image"]
        >>> out[..., :8].unique().item(), out[..., 8:].unique().item()
        (0.25, 0.0)
    """

    threshold: float = 0.1
    cutoff: int = 4
    fill: float = 0.5

    def __post_init__(self) -> None:
        check_number("frequency_mask(threshold)", self.threshold, 1e-6, 1.0)
        check_count("frequency_mask(cutoff)", self.cutoff, 1, 2 * BLOCK_PX - 2)
        check_number("frequency_mask(fill)", self.fill, 0.0, 1.0)


def apply(config: FrequencyMask, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Blank where r > 1, the energy of a block's high frequencies relative to that of the threshold.

    The gradient is that of blending image and fill by 1 / (1 + r^2).

    References:
        Liu et al. (2022), Segment and complete: defending object detectors against adversarial patch attacks
        with robust patch detection, CVPR, for removing a patch before the victim sees it.
    """
    image = values["image"]
    h, w = image.shape[-2:]
    r = _energy(pad_to_blocks(luma(image)), config.cutoff) / config.threshold**2
    kept, soft = (_enlarge(mask)[..., :h, :w] for mask in ((r <= 1).to(image.dtype), 1 / (1 + r * r)))
    blanked = torch.where(kept > 0, image, config.fill)
    return {"image": with_gradient_of(blanked, config.fill + (image - config.fill) * soft)}


def _energy(gray: Float[Tensor, "b 1 h w"], cutoff: int) -> Float[Tensor, "b 1 y x"]:
    """The mean square per pixel of the high frequencies of every block, summed in fixed order."""
    frequencies = block_dct(gray)
    n = range(BLOCK_PX)
    high = constant([[[float(v + u >= cutoff) for u in n]] for v in n], gray)  # [v, 1, u]
    squares = frequencies * frequencies * high
    rows = sum(squares.select(-3, v) for v in n)
    return sum(rows.select(-1, u) for u in n) / BLOCK_PX**2  # type: ignore[union-attr]


def _enlarge(blocks: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 h w"]:
    """The value of its block for every pixel."""
    spread = blocks[..., None, :, None].expand(*blocks.shape[:-1], BLOCK_PX, blocks.shape[-1], BLOCK_PX)
    return spread.flatten(-2, -1).flatten(-3, -2)


frequency_mask = define(
    "frequency_mask",
    FrequencyMask,
    deterministic,
    apply,
    reads=("image",),
    writes=("image",),
    surrogate="blending by 1 / (1 + r^2), r the energy relative to the threshold's",
)
