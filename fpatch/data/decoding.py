"""The bytes of an image file to an upright PIL image of mode RGB."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fpatch.core.inputs import check_file

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_bytes(path: Path) -> bytes:
    """Read the content of an image file.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    return _check_image(path).read_bytes()


def _check_image(path: str | os.PathLike[str]) -> Path:
    """Check that a path leads to a regular file, as an image is."""
    return check_file(Path(path), "no such image; correct the path or restore the file", "give an image file")


def decode_pil(source: bytes | Image.Image, name: str | os.PathLike[str]) -> Image.Image:
    """Decode an image to an upright PIL image of mode RGB; see `read_image`.

    Args:
        source: The content of a file, or a PIL image.
        name: The name of the image, for errors.

    Raises:
        ValueError: If the image cannot be decoded, or its pixels have no fixed range.
    """
    try:
        image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        packed = _packing(image)  # loading forgets it
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), packed)
    except _DECODER_ERRORS as error:
        raise _unreadable(name, error) from error


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the height and width of an upright image, in pixels, from the header of its file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the header is unreadable.
    """
    path = _check_image(path)
    try:
        with Image.open(path) as image:
            # PngImageFile.getexif decodes the pixels in search of EXIF after them
            exif = Image.Image.getexif(image)
            sideways = exif.get(ExifTags.Base.Orientation) in _SIDEWAYS and image.format != "TIFF"
            width, height = image.size  # a TIFF is upright already
    except _DECODER_ERRORS as error:
        raise _unreadable(path, error) from error
    return (width, height) if sideways else (height, width)


_SCALES = {"L;2": 85, "L;4": 17}
"""Levels of 8 bits per level of a packed gray pixel."""


def _packing(image: Image.Image) -> str:
    """Return the layout of the pixels in the file, such as "RGB;16B"; empty if it is not known."""
    layouts = [tile[3] for tile in getattr(image, "tile", ())]
    return layouts[0] if layouts and isinstance(layouts[0], str) else ""


def _to_rgb(image: Image.Image, packed: str = "") -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("32-bit pixels have no fixed range")
        shown = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        shown[levels == clear] = 255
        return Image.fromarray(shown).convert("RGB")
    if clear is not None and (in_file := _transparent_level(clear, packed)) != clear:
        image = image.copy()
        image.info["transparency"] = in_file
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _transparent_level(clear: int | bytes | tuple[int, ...], packed: str) -> int | bytes | tuple[int, ...]:
    """Return the level that a PNG names as transparent, in the 8 bits of the pixels as Pillow reads them."""
    if isinstance(clear, tuple):
        has_upper = packed.endswith(";16B") or max(clear) > 255
        return tuple(level >> 8 for level in clear) if has_upper else clear
    return clear * _SCALES[packed] if isinstance(clear, int) and packed in _SCALES else clear


def _unreadable(name: str | os.PathLike[str], error: BaseException) -> ValueError:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return ValueError(
            f"{name}: the image has more than {most:.0f} megapixels, the limit of Pillow; scale it down, "
            "which loses nothing, since images are resized to the size of the scenes"
        )
    reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"{name}: not a readable image ({reason}); replace it, or save it again as 8-bit PNG")
