"""Darken pixels where windows of the image have strong gradients, as on a noisy patch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch.core.checks import check_count, check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import luma
from fpatch.ops.products import multiply_rows
from fpatch.ops.stable import root


@dataclass(frozen=True)
class GradientSmoothing:
    """Windows, threshold and strength; the defaults are the authors'.

    Attributes:
        strength: The factor of the normalized gradient by which a pixel is darkened.
        threshold: The mean of the normalized gradient, 0..1, from which a window counts.
        window_px: The side of the windows.
        overlap_px: The pixels that neighboring windows share; the last windows end at the edge.

    Example:
        >>> import torch
        >>> from fpatch import defend
        >>> image = torch.full((1, 3, 16, 16), 0.5)
        >>> image[..., :8, ::2] = 1.0
        >>> smooth = defend.gradient_smoothing(window_px=8, overlap_px=0)
        >>> out = smooth.apply({}, {}, {"image": image})["image"]
        >>> out[..., :7, :8].max().item(), out[..., 8:, :].min().item()
        (0.0, 0.5)
    """

    strength: float = 2.3
    threshold: float = 0.1
    window_px: int = 15
    overlap_px: int = 5

    def __post_init__(self) -> None:
        check_number("gradient_smoothing(strength)", self.strength, 0.0, 100.0)
        check_number("gradient_smoothing(threshold)", self.threshold, 0.0, 1.0)
        check_count("gradient_smoothing(window_px)", self.window_px, 1, 4096)
        check_count("gradient_smoothing(overlap_px)", self.overlap_px, 0, self.window_px - 1)


def apply(config: GradientSmoothing, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Multiply by 1 - strength g, clipped to 0..1, where windows are above the threshold.

    g is the length of the gradient of luma, by forward differences, normalized to 0..1. In overlapping
    windows a pixel keeps its g if one of them is above the threshold. The gradient of the result is exact; an
    attack by it beats one that is trained straight through.

    References:
        Naseer, Khan and Porikli (2019), Local gradients smoothing: defense against localized adversarial
        attacks, WACV, equations 2 to 5.
    """
    image = values["image"]
    g = _normalized_gradient(luma(image))
    window = min(config.window_px, *image.shape[-2:])
    stride = max(1, window - config.overlap_px)
    rows, columns = (_windows(size, window, stride) for size in image.shape[-2:])
    means = _sum_windows(_sum_windows(g.detach(), window, -1, columns), window, -2, rows) / window**2
    covers = (
        _cover(starts, size, window, g) for starts, size in zip((rows, columns), g.shape[-2:], strict=True)
    )
    down, across = (cover.expand(len(image), 1, -1, -1) for cover in covers)
    counts = multiply_rows(down.transpose(-1, -2), (means > config.threshold).to(g.dtype), across)
    return {"image": image * (1 - config.strength * torch.where(counts > 0, g, 0.0)).clamp(0.0, 1.0)}


def _normalized_gradient(gray: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """The length of the gradient, from 0 at its minimum to 1 at its maximum over the image."""
    dx = torch.cat([gray[..., 1:] - gray[..., :-1], torch.zeros_like(gray[..., :1])], dim=-1)
    dy = torch.cat([gray[..., 1:, :] - gray[..., :-1, :], torch.zeros_like(gray[..., :1, :])], dim=-2)
    length = root(dx * dx + dy * dy)
    low, high = length.amin((-1, -2), keepdim=True), length.amax((-1, -2), keepdim=True)
    return (length - low) / torch.where(high > low, high - low, 1.0)


def _windows(size: int, window: int, stride: int) -> list[int]:
    """The first pixels of the windows along an axis; the last window ends at the edge."""
    return sorted({*range(0, size - window + 1, stride), size - window})


def _sum_windows(values: Tensor, window: int, axis: int, starts: list[int]) -> Tensor:
    """Sums over windows along an axis, in fixed order."""
    length = values.shape[axis] - window + 1
    total = sum(values.narrow(axis, i, length) for i in range(window))
    chosen = constant(starts, torch.arange(0, device=values.device))
    return total.index_select(axis, chosen)  # type: ignore[union-attr]


def _cover(starts: list[int], size: int, window: int, like: Tensor) -> Float[Tensor, "1 1 n size"]:
    """1 where a window covers a pixel."""
    return constant([[float(s <= i < s + window) for i in range(size)] for s in starts], like)[None, None]


gradient_smoothing = define(
    "gradient_smoothing", GradientSmoothing, deterministic, apply, reads=("image",), writes=("image",)
)
