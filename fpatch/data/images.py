"""Image files to tensors and back, and the letterbox that resizes images to one size."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fpatch.core.checks import check_kind
from fpatch.core.files import digest
from fpatch.core.resource import define_loader
from fpatch.data.decoding import decode_pil, read_bytes

PAD_LEVEL = 128
"""The gray level of the margins of a letterboxed image."""


def read_image(source: str | os.PathLike[str] | Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Read an image as upright RGB.

    EXIF orientation is applied. Gray, palette and CMYK become RGB. 16-bit gray is scaled by 255/65535 and
    rounded; of 16-bit color and of gray with alpha, Pillow reads the upper byte. Transparent
    pixels become white, as on the paper of a print. The first of several frames is read.

    Args:
        source: A file or a PIL image.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is truncated, of an unknown format, or its pixels have no fixed range (float,
            32-bit).

    Example:
        >>> from PIL import Image
        >>> from fpatch import data
        >>> data.read_image(Image.new("L", (2, 1), 128))[:, 0].tolist()
        [[128, 128], [128, 128], [128, 128]]
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"PIL image of mode {source.mode}"
        return _to_tensor(decode_pil(source, name)).contiguous()
    path = Path(source)
    return _to_tensor(decode_pil(read_bytes(path), path)).contiguous()


def _load_image(path: str | os.PathLike[str]) -> Float[Tensor, "3 h w"]:
    """Read an image as floats in 0..1.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from fpatch import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data.write_image(Path(folder, "art.png"), torch.ones(3, 4, 6))
        ...     image = data.image_file(Path(folder, "art.png")).value
        >>> image.shape, image.unique()
        (torch.Size([3, 4, 6]), tensor([1.]))
    """
    return read_image(path).float() / 255.0


image_file = define_loader("image_file", _load_image)
"""The loader of an image file as a resource: floats `[3, h, w]` in 0..1, read by `read_image`."""


def write_image(path: str | os.PathLike[str], image: Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"]) -> None:
    """Write an image file of 8 bits per channel atomically, in the format of its suffix.

    Args:
        path: The file. Its folder is made if absent, and an older file is replaced.
        image: `[1, h, w]` (written as gray) or `[3, h, w]`. Floats in 0..1 are clamped and rounded to the
            nearest of 256 levels.

    Raises:
        ValueError: If the image has another shape or dtype or a NaN, or the suffix names no format.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from fpatch import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data.write_image(Path(folder, "gray.png"), torch.full((1, 1, 2), 0.5))
        ...     data.read_image(Path(folder, "gray.png"))[:, 0, 0].tolist()
        [128, 128, 128]
    """
    check_kind("write_image(path)", path, (str, os.PathLike), "the order is (path, image)")
    path = Path(path)
    pixels = to_pixels(image, f"write_image({path})")
    if (kind := Image.registered_extensions().get(path.suffix.lower())) not in Image.SAVE:
        raise ValueError(f"write_image: {path} must end in an image suffix such as .png, got {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(draft, format=kind)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def to_pixels(image: Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"], field: str) -> NDArray[np.uint8]:
    """Return the levels [h, w, c] of an image: floats in 0..1 are clamped and rounded to the nearest of 256.

    Args:
        image: 1 or 3 channels, floats or uint8, on any device.
        field: The name of the image, for errors.

    Raises:
        ValueError: If the image has another shape or dtype, or a NaN.

    Example:
        >>> import torch
        >>> from fpatch.data.images import to_pixels
        >>> to_pixels(torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3), "image").ravel().tolist()
        [0, 128, 255]
    """
    if not isinstance(image, Tensor):
        kind = type(image)
        way = "torch.from_numpy(pixels).permute(2, 0, 1) makes one of [h, w, 3]"
        if kind.__module__.startswith("PIL"):
            way = "torchvision.transforms.functional.pil_to_tensor makes one"
        if isinstance(image, str | os.PathLike):
            way = "fpatch.data.read_image(path) makes one, and a path to write to has another place"
        raise ValueError(f"{field}: an image must be a tensor, got a {kind.__name__}; {way}")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        way = "; take one row of the batch, image[0]" if image.ndim == 4 else ""
        raise ValueError(f"{field}: an image must be [1, h, w] or [3, h, w], got {list(image.shape)}{way}")
    if image.dtype != torch.uint8:
        if not image.is_floating_point():
            raise ValueError(
                f"{field}: an image must hold floats in 0..1 or uint8, got {image.dtype}; convert it"
            )
        if image.isnan().any():
            raise ValueError(f"{field}: an image must be finite, got NaN; check the stage that wrote it")
        image = (image.detach().float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return image.cpu().permute(1, 2, 0).numpy()


def image_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of an image file, in hexadecimal.

    Raises:
        FileNotFoundError: If the file does not exist.

    Example:
        >>> import tempfile
        >>> from fpatch import data
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     data.image_digest(file.name)[:16]
        'e3b0c44298fc1c14'
    """
    return digest(read_bytes(Path(path)))


def fit(image_hw: Sequence[int], size_hw: Sequence[int]) -> tuple[tuple[float, float], tuple[int, int]]:
    """Return the scale and offset of a letterbox: centered, as large as fits, on whole pixels.

    Args:
        image_hw: Height and width of the image, in pixels.
        size_hw: Height and width of the letterbox, in pixels.

    Returns:
        `scale_xy` and `offset_xy`: point (x, y) of the image moves to (x, y) * scale_xy + offset_xy. The two
        scales differ by the rounding of the resized sides.

    Example:
        >>> from fpatch.data.images import fit
        >>> fit((30, 40), (80, 80))
        ((2.0, 2.0), (0, 10))
    """
    (height, width), (height_px, width_px) = image_hw, size_hw
    scale = min(height_px / height, width_px / width)
    new_width = min(width_px, max(1, round(width * scale)))
    new_height = min(height_px, max(1, round(height * scale)))
    return (
        (new_width / width, new_height / height),
        ((width_px - new_width) // 2, (height_px - new_height) // 2),
    )


def letterbox(
    image: UInt8[Tensor, "3 h w"] | Image.Image, size_hw: Sequence[int]
) -> tuple[UInt8[Tensor, "3 H W"], tuple[float, float], tuple[int, int]]:
    """Resize an image without distortion (antialiased bilinear, in integers) and pad it with gray.

    Convention:
        Coordinates are pixels, x to the right and y down. (0, 0) is the outer corner of the first pixel; its
        center is (0.5, 0.5). Point (x, y) of the image moves to (x, y) * scale_xy + offset_xy.

    Args:
        image: An image of any size, or a PIL image of mode RGB, which saves a copy of its pixels.
        size_hw: Height and width of the result, in pixels.

    Returns:
        The letterboxed image, and `scale_xy` and `offset_xy` for `move_points` and `move_boxes`.

    Example:
        >>> import torch
        >>> from fpatch import data
        >>> image, scale_xy, offset_xy = data.letterbox(torch.zeros(3, 30, 40, dtype=torch.uint8), (80, 80))
        >>> image.shape, image[0, 0, 0].item(), scale_xy, offset_xy
        (torch.Size([3, 80, 80]), 128, (2.0, 2.0), (0, 10))
    """
    if isinstance(image, Tensor):
        image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    scale_xy, (left, top) = fit((image.height, image.width), size_hw)
    new_width, new_height = round(image.width * scale_xy[0]), round(image.height * scale_xy[1])
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas = torch.full((3, *size_hw), PAD_LEVEL, dtype=torch.uint8)
    canvas[:, top : top + new_height, left : left + new_width] = _to_tensor(image)
    return canvas, scale_xy, (left, top)


def move_points(
    points: Float[Tensor, "... 2"], scale_xy: Sequence[float] | Tensor, offset_xy: Sequence[float] | Tensor
) -> Float[Tensor, "... 2"]:
    """Move points (x, y), such as corners of quads, along with a letterboxed image.

    Convention:
        Coordinates are pixels, x to the right and y down. (0, 0) is the outer corner of the first pixel.

    Args:
        points: `[..., 2]`, in pixels of the original image.
        scale_xy: From `letterbox`, or a tensor that broadcasts against the points.
        offset_xy: Likewise.

    Returns:
        `[..., 2]`, in pixels of the letterboxed image; differentiable in the points.

    Example:
        >>> import torch
        >>> from fpatch import data
        >>> data.move_points(torch.tensor([10.0, 20.0]), (2.0, 2.0), (0, 10))
        tensor([20., 50.])
    """
    scale = torch.as_tensor(scale_xy, dtype=points.dtype, device=points.device)
    return points * scale + torch.as_tensor(offset_xy, dtype=points.dtype, device=points.device)


def move_boxes(
    boxes: Float[Tensor, "... 4"], scale_xy: Sequence[float] | Tensor, offset_xy: Sequence[float] | Tensor
) -> Float[Tensor, "... 4"]:
    """Move boxes along with a letterboxed image.

    Convention:
        Boxes are (xmin, ymin, xmax, ymax) in the frame of `move_points`.

    Args:
        boxes: `[..., 4]`, in pixels of the original image.
        scale_xy: From `letterbox`, or a tensor that broadcasts against the corners `[..., 2, 2]`.
        offset_xy: Likewise.

    Returns:
        `[..., 4]`, in pixels of the letterboxed image; differentiable in the boxes.

    Example:
        >>> import torch
        >>> from fpatch import data
        >>> data.move_boxes(torch.tensor([0.0, 0.0, 10.0, 20.0]), (2.0, 2.0), (0, 10))
        tensor([ 0., 10., 20., 50.])
    """
    return move_points(boxes.unflatten(-1, (2, 2)), scale_xy, offset_xy).flatten(-2)


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
