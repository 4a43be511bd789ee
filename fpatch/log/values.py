"""Conversion of tensors, arrays and settings to JSON, PNG and histograms."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

NUM_BINS = 50


def to_array(value: Any) -> np.ndarray:
    """Convert a tensor, on any device and of any dtype, or an array to a numpy array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def to_scalar(name: str, value: Any) -> float | str:
    """Convert one number for JSON: a float, or "nan", "inf", "-inf"; `float` is the inverse.

    Raises:
        ValueError: If `value` is not one real number.
    """
    array = to_array(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"scalars: {name!r} must be one number, got {array.dtype} {list(array.shape)}")
    number = float(array.item())
    return number if math.isfinite(number) else repr(number)


def to_plain(value: Any) -> Any:
    """Convert a setting for JSON: tensors and tuples become lists; "nan" and "inf" replace such floats."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = to_array(value).tolist()
    if isinstance(value, dict):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(entry) for entry in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def to_json(value: Any) -> bytes:
    """Encode a JSON file; null replaces NaN, which stands for a missing interval or an empty count.

    Example:
        >>> from fpatch.log.values import to_json
        >>> print(to_json({"low": float("nan")}).decode(), end="")
        {
          "low": null
        }
    """
    return (json.dumps(_without_nan(value), indent=2) + "\n").encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def to_text(value: Any) -> str:
    """Convert a JSON value to a string; a string is returned as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def to_png(name: str, value: Any) -> bytes:
    """Encode an image as PNG; values are clamped and rounded, and NaN becomes black.

    Args:
        name: The name of the image, for errors.
        value: Floats [c, h, w] in 0..1. If c is neither 1 nor 3, the channels stand side by side in gray.

    Raises:
        ValueError: If the image has another shape, or holds integers.
    """
    array = to_array(value)
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind != "f":
        raise ValueError(
            f"images: {name!r} must be floats [3, h, w] or [1, h, w], got {array.dtype} {list(array.shape)}"
        )
    if len(array) not in (1, 3):
        array = np.concatenate(list(array), axis=1)[None]
    pixels = np.rint(np.nan_to_num(array).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    file = io.BytesIO()
    image.save(file, "png", compress_level=1)  # a fifth of the time, for files a fifth larger
    return file.getvalue()


def to_histogram(name: str, value: Any) -> dict[str, Any]:
    """Count the finite numbers of an array in 50 equal bins; add their moments and the count of others.

    Raises:
        ValueError: If `value` does not hold real numbers.
    """
    array = to_array(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"histograms: {name!r} must hold real numbers, got {array.dtype}")
    array = array.astype(np.float64).ravel()
    finite = array[np.isfinite(array)]
    try:
        counts, edges = np.histogram(finite, NUM_BINS)
    except ValueError:  # the range is too narrow for distinct edges
        low, high = finite.min(), finite.max()
        apart = 2.0**-40 * max(abs(low), abs(high))
        counts, edges = np.histogram(finite, NUM_BINS, (low - apart, high + apart))
    return {
        "range": [float(edges[0]), float(edges[-1])],
        "counts": counts.tolist(),
        "min": float(finite.min()) if finite.size else 0.0,
        "max": float(finite.max()) if finite.size else 0.0,
        "sum": float(finite.sum()),
        "sum_squares": float(finite @ finite),
        "num": finite.size,
        "num_nonfinite": array.size - finite.size,
    }


def inside(folder: Path, path: str) -> Path:
    """Return the path of a file or folder in a run folder.

    Args:
        folder: The run folder.
        path: Relative to it.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it lies outside the run folder.
    """
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"artifacts: {path!r} must lie in the run folder {folder}; copy it there first")
    if not target.exists():
        raise FileNotFoundError(f"artifacts: {target} does not exist; write it before it is logged")
    return target
