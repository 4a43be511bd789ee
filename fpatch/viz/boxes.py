"""Images with their boxes and placements, to check a data set before training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fpatch.core.names import label
from fpatch.viz._labels import Label, corners_at, place_labels

_BOX, _QUAD = "#40dc78", "#ff4040"


def plot_boxes(
    path: str | Path,
    batch: Mapping[str, Any],
    class_names: Sequence[str] = (),
    patch_names: Sequence[str] = (),
    columns: int = 4,
) -> None:
    """Save a figure of a batch: valid boxes in green and valid quads in red, each with its name.

    The thick edge of a quad is the top of its patch.

    Args:
        path: PNG file.
        batch: `image` or else `scene` [b, 3, h, w] in 0..1. It may also hold `boxes`, `labels`, `box_valid`,
            `quads`, `quad_patch`, `quad_valid` and `image_id`.
        class_names: Names by label; labels without a name are shown as numbers.
        patch_names: Names by `quad_patch`; likewise.
        columns: The most images in a row.

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
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Polygon, Rectangle
    except ImportError as error:
        raise ImportError("figures of boxes need matplotlib: pip install 'fpatch[plot]'") from error
    images = (batch["image"] if "image" in batch else batch["scene"]).detach().cpu().clamp(0, 1)
    columns = min(columns, len(images))
    rows, aspect = math.ceil(len(images) / columns), images.shape[2] / images.shape[3]
    figure = Figure(figsize=(4 * columns, (4 * aspect + 0.3) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    written = []
    for axis in axes:
        axis.set_axis_off()
    for i, (axis, image) in enumerate(zip(axes, images, strict=False)):
        h, w = image.shape[1:]
        axis.imshow(image.permute(1, 2, 0).numpy(), extent=(0, w, h, 0))
        labels: list[tuple[Any, Sequence[float]]] = []
        if "image_id" in batch:
            axis.set_title(f"image {int(batch['image_id'][i])}", fontsize=9)
        for (x0, y0, x1, y1), name in _valid(batch, "boxes", "labels", "box_valid", class_names, i):
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=_BOX, linewidth=1.5))
            labels.append((_write(axis, x0, y0, name, _BOX), (x0, y0, x1, y1)))
        for corners, name in _valid(batch, "quads", "quad_patch", "quad_valid", patch_names, i):
            axis.add_patch(Polygon(corners, fill=False, edgecolor=_QUAD, linewidth=1.2))
            axis.plot(*np.transpose(corners[:2]), color=_QUAD, linewidth=3.5, solid_capstyle="butt")
            x, y = np.clip(corners, 0, (w, h)).mean(0)
            labels.append((_write(axis, x, y, name, _QUAD), (x, y)))
        axis.set(xlim=(0, w), ylim=(h, 0))
        written.append((axis, labels))
    figure.set_dpi(120)
    figure.draw_without_rendering()  # the sizes of labels are known now
    for axis, labels in written:
        _spread(axis, labels)
    figure.savefig(path, dpi=120)


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
    text = axis.text(x, y, label(name), color="white", fontsize=8, bbox={"fc": color, "ec": color, "pad": 1})
    text.set_in_layout(False)
    return text


def _spread(axis: Any, labels: Sequence[tuple[Any, Sequence[float]]]) -> None:
    """Move the labels of one image so that none covers another: to a corner of its box, or to a center."""
    to_px, x0, y0, x1, y1 = axis.transData, *axis.bbox.extents
    wishes, extents = [], []
    for text, place in labels:
        extent = text.get_bbox_patch().get_window_extent()
        size = (extent.width, extent.height)
        px = to_px.transform(np.reshape(place, (-1, 2))) * (1, -1)  # pixels with y downwards
        center = [(px[0, 0] - size[0] / 2, px[0, 1] - size[1] / 2)]
        above, *others = corners_at(tuple(px.ravel()), size, 0.0) if len(px) > 1 else center
        wishes.append(Label(size, [*others, above]))
        extents.append(extent)
    for (text, _), extent, (x, y) in zip(
        labels, extents, place_labels(wishes, (x0, -y1, x1, -y0)), strict=True
    ):
        moved = to_px.transform(text.get_position()) + np.array([x - extent.x0, -y - extent.y1])
        text.set_position(to_px.inverted().transform(moved))
