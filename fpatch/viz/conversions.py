"""Conversions between tensors, arrays, PIL images and matplotlib figures, without silent repairs.

Convention:
    A tensor has its channels first, [h, w], [1, h, w] or [3, h, w]. An array has them last, [h, w], [h, w, 1]
    or [h, w, 3]. Floats are levels in 0..1, uint8 in 0..255, and bool is black or white.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fpatch.data import read_image
from fpatch.graph.contracts import OVERSHOOT

_AXES = {True: "[h, w], [1, h, w] or [3, h, w]", False: "[h, w], [h, w, 1] or [h, w, 3]"}


def to_levels(value: Tensor | NDArray[Any], field: str) -> NDArray[np.uint8]:
    """Convert an image to levels: [h, w, 3], or [h, w] for gray and bool.

    Floats are rounded to the nearest of 256 levels. They may leave 0..1 by 0.02, as a bicubic filter does.

    Args:
        value: A tensor or an array, as the module's convention says.
        field: The name of the image, for errors.

    Raises:
        ValueError: If the image has other axes or another type, is not finite, or leaves 0..1; the message
            names the image and the way out.

    Example:
        >>> import torch
        >>> from fpatch.viz.conversions import to_levels
        >>> to_levels(torch.tensor([[0.0, 0.5, 1.0]]), "image").tolist()
        [[0, 128, 255]]
        >>> to_levels(torch.zeros(3, 4, 6), "image").shape
        (4, 6, 3)
        >>> to_levels(torch.full((3, 4, 6), 200.0), "image")
        Traceback (most recent call last):
        ValueError: image: an image of floats must be within 0..1, got 200 to 200; divide by 255
    """
    is_tensor = isinstance(value, Tensor)
    if not is_tensor and value.dtype.kind not in "biuf":
        raise ValueError(f"{field}: an image must hold numbers, got an array of {value.dtype}; convert it")
    pixels: Any = value.detach().cpu() if is_tensor else torch.from_numpy(np.ascontiguousarray(value))
    if way := _find_axes(tuple(pixels.shape), is_tensor):
        raise ValueError(f"{field}: an image must be {_AXES[is_tensor]}, got {list(pixels.shape)}; {way}")
    if pixels.ndim == 3:
        channels = pixels if is_tensor else pixels.permute(2, 0, 1)
        pixels = channels[0] if len(channels) == 1 else channels.permute(1, 2, 0)
    return _quantize(pixels, field).numpy()


def _find_axes(shape: tuple[int, ...], is_tensor: bool) -> str | None:
    """Name the way out for axes that are not those of an image; None for an image."""
    first, last = (shape[0], shape[-1]) if shape else (0, 0)
    channels, other = (first, last) if is_tensor else (last, first)
    if 0 in shape:
        return "it has no pixels"
    if len(shape) == 2 or (len(shape) == 3 and channels in (1, 3)):
        return None
    if len(shape) == 4:
        return "take one image: image[0]"
    if len(shape) != 3:
        return "give an axis of height and one of width"
    if other in (1, 3):
        return (
            "a tensor has its channels first: permute(2, 0, 1)"
            if is_tensor
            else "an array has its channels last: transpose(1, 2, 0)"
        )
    if channels == 4:
        return f"leave out the transparency: {'[:3]' if is_tensor else '[..., :3]'}"
    return f"draw one channel: {'[0]' if is_tensor else '[..., 0]'}"


def _quantize(pixels: Tensor, field: str) -> UInt8[Tensor, "..."]:
    """Convert levels of any type to 0..255."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if not pixels.is_floating_point():
        kind = str(pixels.dtype).removeprefix("torch.")
        raise ValueError(
            f"{field}: an image must hold floats in 0..1, uint8 or bool, got {kind}; "
            "convert levels with .float() / 255, and draw numbers of classes by viz.mask_overlay"
        )
    pixels = pixels.float()
    if not bool(pixels.isfinite().all()):
        count = int((~pixels.isfinite()).sum())
        raise ValueError(
            f"{field}: an image must be finite, got NaN or infinity in {count} of {pixels.numel()} values; "
            "correct the stage that wrote it"
        )
    low, high = (float(end) for end in pixels.aminmax())
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        is_scaled = low >= 0 and 2 < high <= 255
        way = "divide by 255" if is_scaled else "undo the normalization, or clamp it to 0..1"
        raise ValueError(
            f"{field}: an image of floats must be within 0..1, got {low:.4g} to {high:.4g}; {way}"
        )
    return (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def to_pil(value: Any, field: str) -> Image.Image:
    """Convert an image to PIL: mode RGB, or L for gray and bool; a PIL image stays.

    Raises:
        ValueError: As `to_levels`.

    Example:
        >>> import torch
        >>> from fpatch.viz.conversions import to_pil
        >>> to_pil(torch.ones(3, 4, 6), "image").size, to_pil(torch.eye(2).bool(), "mask").mode
        ((6, 4), 'L')
    """
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, Tensor | np.ndarray):
        raise ValueError(
            f"{field}: a PIL image is made from a tensor or an array, got {_named(value)}; convert it by a "
            "function, or leave it out of the conversions"
        )
    return Image.fromarray(to_levels(value, field))


def to_picture(value: Any, field: str) -> UInt8[Tensor, "3 h w"]:
    """Convert a drawing to a picture.

    Args:
        value: A PIL image, a matplotlib figure, a tensor or an array. Transparency becomes white.
        field: The name of the picture, for errors.

    Raises:
        ValueError: If it is something else, or no image.

    Example:
        >>> from PIL import Image
        >>> from fpatch.viz.conversions import to_picture
        >>> to_picture(Image.new("RGBA", (6, 4)), "picture").unique()  # all of it is transparent
        tensor([255], dtype=torch.uint8)
    """
    if hasattr(value, "savefig"):
        value = _render(value)
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 4 and value.dtype == np.uint8:
        value = Image.fromarray(value)
    if isinstance(value, Image.Image):
        return read_image(value)
    if not isinstance(value, Tensor | np.ndarray):
        raise ValueError(
            f"{field}: a drawing must be a PIL image, a figure, a tensor or an array, got {_named(value)}; "
            "return the image that was drawn on"
        )
    levels = torch.from_numpy(to_levels(value, field))
    return (levels.expand(3, *levels.shape) if levels.ndim == 2 else levels.permute(2, 0, 1)).contiguous()


def _render(figure: Any) -> NDArray[np.uint8]:
    """Render a matplotlib figure, with no state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def _named(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
