"""Images with their boxes and placements, to check a data set before training."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fpatch.core.checks import check_kind
from fpatch.core.names import label
from fpatch.core.tree import widen
from fpatch.viz import style
from fpatch.viz._labels import Label, corners_at, place_labels
from fpatch.viz.names import clip_name, wrap_name

_BOX, _QUAD, _PANEL_IN = style.TRUTH, style.FOUND, 2.6


def plot_boxes(
    path: str | Path,
    batch: Mapping[str, Any],
    class_names: Sequence[str] = (),
    patch_names: Sequence[str] = (),
    columns: int = 4,
    title: str = "",
) -> None:
    """Save a figure of a batch: valid boxes in blue and valid quads in orange, each with its name.

    The thick edge of a quad is the top of its patch.

    Args:
        path: PNG file.
        batch: `image` or else `scene` [b, 3, h, w] in 0..1. It may also hold `boxes`, `labels`, `box_valid`,
            `quads`, `quad_patch`, `quad_valid`, `image_id`, and `titles`, a list of strings in place of the
            latter.
        class_names: Names by label; labels without a name are shown as numbers.
        patch_names: Names by `quad_patch`; likewise.
        columns: The most images in a row.
        title: The lines above all images.

    Raises:
        ImportError: If the extra `plot` is not installed.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from fpatch import viz
        >>> box, label = torch.tensor([[[4.0, 4.0, 20.0, 12.0]]]), torch.tensor([[0]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     batch = {"image": torch.full((1, 3, 16, 32), 0.5), "boxes": box, "labels": label}
        ...     viz.plot_boxes(Path(folder, "boxes.png"), batch, class_names=("car",))
        ...     Path(folder, "boxes.png").read_bytes()[1:4]
        b'PNG'
    """
    check_kind("plot_boxes(path)", path, (str, os.PathLike), "the order is (path, batch)")
    check_kind("plot_boxes(batch)", batch, Mapping, "take one of a data set, or give {'image': tensor}")
    images = (batch["image"] if "image" in batch else batch["scene"]).detach().cpu().clamp(0, 1)
    columns = min(columns, len(images))
    rows, aspect = math.ceil(len(images) / columns), images.shape[2] / images.shape[3]
    lines = [line for text in title.split("\n") for line in wrap_name(text, int(columns * 36)).split("\n")]
    above = 0.14 * len(lines) + 0.1 if title else 0.0
    size = _PANEL_IN * columns, (_PANEL_IN * aspect + 0.25) * rows + above
    with style.figure("figures of boxes", *size) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        written = [
            (axis, _draw_image(axis, image, batch, class_names, patch_names, i))
            for i, (axis, image) in enumerate(zip(axes, images, strict=False))
        ]
        if title:
            figure.suptitle(label("\n".join(lines)), fontsize=7.5, fontweight="normal")
        figure.set_dpi(style.DPI)
        figure.draw_without_rendering()  # the sizes of labels are known now
        for axis, labels in written:
            _spread(axis, labels)
        style.save(figure, path)


def _draw_image(
    axis: Any,
    image: Tensor,
    batch: Mapping[str, Any],
    class_names: Sequence[str],
    patch_names: Sequence[str],
    i: int,
) -> list[tuple[Any, Sequence[float]]]:
    """Draw one image with its boxes and quads; return its labels, each with its box, or center and box."""
    from matplotlib.patches import Polygon, Rectangle

    h, w = image.shape[1:]
    axis.imshow(widen(image).permute(1, 2, 0).numpy(), extent=(0, w, h, 0))
    labels: list[tuple[Any, Sequence[float]]] = []
    title = batch["titles"][i] if "titles" in batch else None
    if title is None and "image_id" in batch:
        title = f"image {int(batch['image_id'][i])}"
    if title is not None:
        axis.set_title(label(clip_name(title, 40)), fontsize=7.5, fontweight="normal")
    for (x0, y0, x1, y1), name in _valid(batch, "boxes", "labels", "box_valid", class_names, i):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=_BOX, linewidth=1.3))
        labels.append((_write(axis, x0, y0, name, _BOX), (x0, y0, x1, y1)))
    for corners, name in _valid(batch, "quads", "quad_patch", "quad_valid", patch_names, i):
        axis.add_patch(Polygon(corners, fill=False, edgecolor=_QUAD, linewidth=1.1))
        axis.plot(*np.transpose(corners[:2]), color=_QUAD, linewidth=3.0, solid_capstyle="butt", marker="")
        inside = np.clip(corners, 0, (w, h))
        x, y = inside.mean(0)
        labels.append((_write(axis, x, y, name, _QUAD), (x, y, *inside.min(0), *inside.max(0))))
    axis.set(xlim=(0, w), ylim=(h, 0))
    return labels


def _valid(
    batch: Mapping[str, Any], shapes: str, index: str, valid: str, names: Sequence[str], row: int
) -> list[tuple[Any, str]]:
    """Return the valid boxes or quads of one row, as lists of numbers, each with its name."""
    if shapes not in batch:
        return []
    found: Tensor = batch[shapes][row]
    keep = (batch[valid][row] if valid in batch else found.isfinite().flatten(1).all(-1)).tolist()
    which = batch[index][row].tolist() if index in batch else range(len(found))
    return [
        (shape, names[i] if i < len(names) else str(i))
        for shape, i, kept in zip(found.tolist(), which, keep, strict=True)
        if kept
    ]


def _write(axis: Any, x: float, y: float, name: str, color: str) -> Any:
    text = axis.text(
        x, y, label(name), color=_ink(color), fontsize=6.5, bbox={"fc": color, "ec": color, "pad": 1}
    )
    text.set_in_layout(False)
    return text


def _ink(color: str) -> str:
    """Return the color of letters on a color."""
    return "white" if sum(style.rgb(color)) < 400 else "black"


def _spread(axis: Any, labels: Sequence[tuple[Any, Sequence[float]]]) -> None:
    """Move the labels of one image so that none covers another, nor a quad that is smaller than its label."""
    to_px, x0, y0, x1, y1 = axis.transData, *axis.bbox.extents
    wishes, extents, small = [], [], []
    for text, place in labels:
        extent = text.get_bbox_patch().get_window_extent()
        size = (extent.width, extent.height)
        px = to_px.transform(np.reshape(place, (-1, 2))) * (1, -1)  # pixels with y downwards
        if len(px) == 2:
            above, *others = corners_at(tuple(px.ravel()), size, 0.0)
            wishes.append(Label(size, [*others, above]))
        elif (px[2] - px[1] > size).all():
            wishes.append(Label(size, [tuple(px[0] - np.array(size) / 2)]))
        else:
            small.append(tuple(px[1:].ravel()))
            wishes.append(Label(size, _beside(px[1:], size)))
        extents.append(extent)
    found = place_labels(wishes, (x0, -y1, x1, -y0), small)
    for (text, _), extent, (x, y) in zip(labels, extents, found, strict=True):
        moved = to_px.transform(text.get_position()) + np.array([x - extent.x0, -y - extent.y1])
        text.set_position(to_px.inverted().transform(moved))


def _beside(box: np.ndarray, size: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the places of a label around a small box: below, above, right and left of it."""
    (left, top), (right, bottom) = box
    x, y = (left + right - size[0]) / 2, (top + bottom - size[1]) / 2
    return [(x, bottom), (x, top - size[1]), (right, y), (left - size[0], y)]
