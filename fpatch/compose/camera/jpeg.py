"""JPEG compression of baseline encoders: 8x8 DCT, 4:2:0 chroma, standard tables."""

from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.tree import constant
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip
from fpatch.ops.spectrum import block_dct, block_idct, pad_to_blocks
from fpatch.random import fold_in

TABLES = (
    (
        (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
        (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
        (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
        (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
    ),
    (
        (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
        (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
        *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
    ),
)  # fmt: skip
"""Quantization of luma and of chroma, ITU-T T.81 (1992), tables K.1 and K.2."""


@dataclass(frozen=True)
class Jpeg:
    """Range and probability of the compression.

    Attributes:
        quality: Range of the quality of libjpeg, whole numbers from 1 (worst) to 100.
        p: Probability that a row is compressed.

    Example:
        >>> import torch
        >>> from fpatch import compose
        >>> image = torch.full((1, 3, 16, 16), 0.5)
        >>> sample = {"on": torch.tensor([True]), "quality": torch.tensor([50])}
        >>> out = compose.jpeg().apply({}, sample, {"image": image})["image"]
        >>> tuple(out.shape), bool((out - image).abs().max() < 1 / 255)
        ((1, 3, 16, 16), True)
    """

    quality: Range = Range(40.0, 95.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_range("jpeg(quality)", self.quality, 1, 100)
        if any(q != int(q) for q in self.quality):
            raise ValueError(f"jpeg(quality) must be whole numbers, got {tuple(self.quality)}; round them")
        check_number("jpeg(p)", self.p, 0.0, 1.0)


class JpegSample(TypedDict):
    """Values per row; `on` marks the compressed rows."""

    on: Bool[Tensor, " b"]
    quality: Int64[Tensor, " b"]


def sample(config: Jpeg, keys: Tensor, batch: Batch) -> JpegSample:
    low, high = map(int, config.quality)
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "quality": random.randint(fold_in(keys, "quality"), (), low, high + 1),
    }


def apply(config: Jpeg, patch_params: Params, sample: JpegSample, values: Values) -> Values:
    """Compress in the colors of JFIF 1.02, with the gradient of Shin and Song for rounded coefficients.

    libjpeg computes in integers. The mean difference from it is 0 to 0.35 levels of 255 on a gray image and
    0.4 to 1.0 on a colored one (qualities 5 to 100).

    References:
        Shin and Song (2017), JPEG-resistant adversarial images, NIPS workshop on machine learning and
        computer security, equation 2.
    """
    image = values["image"]
    h, w = image.shape[-2:]
    padded = pad_to_blocks(255 * image, 16)
    red, green, blue = padded.split(1, dim=1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.cat([(blue - y) / 1.772, (red - y) / 1.402], dim=1)
    y = _store(_compress(_store(y - 128), _table(TABLES[0], sample["quality"]))) + 128
    chroma = _store(_compress(F.avg_pool2d(_store(chroma), 2), _table(TABLES[1], sample["quality"])))
    cb, cr = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).split(1, dim=1)
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    decoded = clip(torch.cat([red, green, blue], dim=1)[..., :h, :w] / 255)
    return {"image": torch.where(sample["on"][:, None, None, None], decoded, image)}


def _table(base: tuple[tuple[int, ...], ...], quality: Int64[Tensor, " b"]) -> Float[Tensor, "b 8 8"]:
    """Scale a quantization table to a quality, by libjpeg's rule (jcparam.c, jpeg_quality_scaling)."""
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    return ((constant(base, quality) * scale + 50) // 100).clamp(1, 255).float()


def _compress(plane: Float[Tensor, "b c h w"], table: Float[Tensor, "b 8 8"]) -> Float[Tensor, "b c h w"]:
    """Quantize every block of 8x8 in the frequency domain."""
    frequencies = block_dct(plane)
    step = table[:, None, None, :, None, :]
    return block_idct(_round(frequencies / step) * step)


def _store(plane: Tensor) -> Tensor:
    """Round to the 8 bits of a codec; the gradient passes where no value is clipped."""
    kept = clip(plane, -128.0, 127.0)
    return kept + (kept.round() - kept).detach()


def _round(x: Tensor) -> Tensor:
    """Round to whole numbers, with slope 3 (x - round(x))^2."""
    cubed = (x - x.round()) ** 3
    return x.round() + (cubed - cubed.detach())


jpeg = define(
    "jpeg",
    Jpeg,
    sample,
    apply,
    reads=("image",),
    writes=("image",),
    surrogate="slope 3 (x - round(x))^2 of every rounded coefficient",
)
