"""Photographs: files to tensors and back, and the letterbox that gives them one size."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fpatch.core.resource import define_loader

PAD_LEVEL = 128
"""The gray around a letterboxed photograph."""

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(source: str | os.PathLike[str] | Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Read an image, a file or a PIL image, as upright RGB.

    EXIF orientation is applied. Gray, palette and CMYK become RGB; 16-bit gray is scaled by 255/65535 and
    rounded (of 16-bit color, Pillow reads the upper byte); transparent pixels show white, the paper of a
    print. Of several frames the first is taken.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, of an unknown format, or its pixels have no fixed range (float, 32-bit).
    """
    if isinstance(source, Image.Image):
        return decode_image(source, getattr(source, "filename", "") or f"PIL image of mode {source.mode}")
    path = Path(source)
    return decode_image(read_bytes(path), path)


def load_image(path: str | os.PathLike[str]) -> Float[Tensor, "3 h w"]:
    """`read_image` in 0..1; named in configs by `image_file`."""
    return read_image(path).float() / 255.0


image_file = define_loader("image_file", load_image)


def read_bytes(path: Path) -> bytes:
    """The content of an image file, with `read_image`'s error if it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image; correct the path or restore the file") from error


def decode_image(source: bytes | Image.Image, name: str | os.PathLike[str]) -> UInt8[Tensor, "3 h w"]:
    """`read_image` of a file's bytes, or of a PIL image; `name` stands in errors."""
    return _to_tensor(decode_picture(source, name)).contiguous()


def decode_picture(source: bytes | Image.Image, name: str | os.PathLike[str]) -> Image.Image:
    """The same as a PIL image: upright, of mode RGB."""
    try:
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except _DECODER_ERRORS as error:
        raise _unreadable(name, error) from error


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width that `read_image` would give, in pixels, from the file's header alone.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The header is unreadable.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            # PngImageFile.getexif would decode the pixels to look for EXIF behind them
            exif = Image.Image.getexif(image)
            sideways = exif.get(ExifTags.Base.Orientation) in _SIDEWAYS and image.format != "TIFF"
            width, height = image.size  # of a TIFF, upright already
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image; correct the path or restore the file") from error
    except _DECODER_ERRORS as error:
        raise _unreadable(path, error) from error
    return (width, height) if sideways else (height, width)


def write_image(path: str | os.PathLike[str], image: Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"]) -> None:
    """Write an image file of 8 bits per channel, in the format that its suffix names.

    It appears complete or not at all.

    Args:
        path: Its folder is made if absent; an older file is replaced.
        image: 1 channel (written as gray) or 3; see `to_pixels`.

    Raises:
        ValueError: What `to_pixels` refuses, or a suffix that names no format.
    """
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
    """The levels [h, w, c] of an image: floats in 0..1 are clamped and rounded to the nearest of 256.

    Args:
        image: 1 or 3 channels, floats or uint8, on any device.
        field: What it is called in errors.

    Raises:
        ValueError: Another shape (a batch, say), other integers, or a NaN.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        way = "; take one row of the batch, image[0]" if image.ndim == 4 else ""
        raise ValueError(f"{field}: an image must be [1, h, w] or [3, h, w], got {list(image.shape)}{way}")
    if image.dtype != torch.uint8:
        if not image.is_floating_point():
            raise ValueError(
                f"{field}: an image must hold floats in 0..1 or uint8, got {image.dtype}; convert it"
            )
        if image.isnan().any():
            raise ValueError(f"{field}: an image must be finite, got NaN; see what made it")
        image = (image.detach().float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return image.cpu().permute(1, 2, 0).numpy()


def image_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file's bytes, in hexadecimal.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return hashlib.sha256(read_bytes(Path(path))).hexdigest()


def fit(image_hw: Sequence[int], size_hw: Sequence[int]) -> tuple[tuple[float, float], tuple[int, int]]:
    """Where a letterbox puts an image: centered, as large as fits, on whole pixels.

    Returns:
        `scale_xy` and `offset_xy`: point (x, y) of the image goes to (x, y) * scale_xy + offset_xy. The two
        scales differ by the rounding of the resized sides.
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
    """Resize without distortion (antialiased bilinear, in integers) and pad with gray.

    Args:
        image: Any size; or a PIL image of mode RGB, which saves a copy of all its pixels.
        size_hw: Height and width wanted, in pixels.

    Returns:
        The image, and the `scale_xy` and `offset_xy` of `fit` for `move_points` and `move_boxes`.
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
    """Move points (x, y), corners of quads among them, along with a letterboxed image.

    Args:
        points: In pixels of the image; (0, 0) is the outer corner of its first pixel.
        scale_xy: As `fit` returns it, or a tensor that broadcasts against the points.
        offset_xy: Likewise.
    """
    scale = torch.as_tensor(scale_xy, dtype=points.dtype, device=points.device)
    return points * scale + torch.as_tensor(offset_xy, dtype=points.dtype, device=points.device)


def move_boxes(
    boxes: Float[Tensor, "... 4"], scale_xy: Sequence[float] | Tensor, offset_xy: Sequence[float] | Tensor
) -> Float[Tensor, "... 4"]:
    """Move boxes (xmin, ymin, xmax, ymax) along with a letterboxed image; see `move_points`."""
    return move_points(boxes.unflatten(-1, (2, 2)), scale_xy, offset_xy).flatten(-2)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("32-bit pixels have no fixed range")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _unreadable(name: str | os.PathLike[str], error: BaseException) -> ValueError:
    reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"{name}: not a readable image ({reason}); replace it, or save it again as 8-bit PNG")
