"""A figure of images, beside each other."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fpatch.data.images import to_pixels
from fpatch.viz import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PER_ROW = 4
_PANEL_INCHES = 2.6


def plot(
    images: Tensor | Mapping[str, Tensor] | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show an image, the rows of a batch, patches by name or a list of images, up to four beside each other.

    Pixels are drawn as squares, with the levels that `fpatch.data.write_image` writes.

    Args:
        images: [c, h, w], [b, c, h, w], a mapping or a sequence of [c, h, w]; see `to_pixels`.
        titles: One per image; None: the names of a mapping, otherwise none.
        path: File to save the figure to, or None.

    Returns:
        The figure, independent of pyplot's state; a notebook displays it.

    Raises:
        ImportError: If the extra `plot` is not installed.
        ValueError: If there are no images, a tensor is no image, or the number of titles differs.

    Example:
        >>> import torch
        >>> from fpatch import viz
        >>> figure = viz.plot({"hood": torch.zeros(3, 8, 8), "roof": torch.ones(3, 8, 4)})
        >>> [axis.get_title() for axis in figure.axes]
        ['hood', 'roof']
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'fpatch[plot]'") from error
    if isinstance(titles, str | os.PathLike):
        raise ValueError(
            f"plot(titles) must be a list, one title per image, got {os.fspath(titles)!r}; to save a file, "
            f"give path={os.fspath(titles)!r}, and for one title [{os.fspath(titles)!r}]"
        )
    if isinstance(images, Tensor) and images.ndim == 5:
        raise ValueError(
            f"plot(images) must be [c, h, w] or [b, c, h, w], got {list(images.shape)}; the frames of a "
            "video are rows of a batch: flatten(0, 1)"
        )
    shown: list[Any]
    if isinstance(images, Mapping):
        titles, shown = list(images) if titles is None else titles, list(images.values())
    elif isinstance(images, list | tuple) or (isinstance(images, Tensor) and images.ndim == 4):
        shown = list(images)
    else:
        shown = [images]
    titles = [""] * len(shown) if titles is None else titles
    if len(shown) == 0 or len(titles) != len(shown):
        raise ValueError(f"plot: one title per image is needed, got {len(titles)} for {len(shown)} images")
    pixels = [to_pixels(image, f"plot(images), number {i}") for i, image in enumerate(shown)]
    across = min(len(pixels), _PER_ROW)
    down = -(-len(pixels) // across)
    tallest = max(p.shape[0] / p.shape[1] for p in pixels)
    size = across * _PANEL_INCHES, down * (_PANEL_INCHES * min(tallest, 2.0) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, levels, title in zip(axes, pixels, titles, strict=False):
        axis.imshow(levels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", origin="upper")
        axis.set_title(title, fontsize=10)
    if path is not None:
        style.save(figure, path, dpi=140)
    return figure
