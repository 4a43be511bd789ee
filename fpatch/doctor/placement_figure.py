"""A picture of the placements of a study: its places on some training images, with their aspects."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fpatch.data import TargetSet
from fpatch.doctor.placements import aspects_of
from fpatch.ops.geometry import quad_area
from fpatch.viz.boxes import plot_boxes
from fpatch.viz.names import clip_name

_MOST_IMAGES = 6
_MOST_LINES = 8
"""The most patches that the title names."""


def draw_placements(path: str | Path, dataset: TargetSet, sizes: Mapping[str, tuple[int, int]]) -> bool:
    """Draw the places of all patches on some training images, and the objects.

    The images are those of the extreme places: the narrowest, the widest, the smallest and the largest, then
    the first others. Each place is labeled with its width over its height, and the title says those of the
    patches.

    Args:
        path: PNG file.
        dataset: The training images.
        sizes: Height and width of each patch in its own pixels, as far as they are known.

    Returns:
        Whether there was a place to draw.

    Raises:
        ImportError: If the extra `plot` is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.doctor.placement_figure import draw_placements
        >>> folder = Path(tempfile.mkdtemp())
        >>> scenes = tiny_study(folder).data.open().split("train")
        >>> draw_placements(folder / "places.png", scenes, {"tag": (6, 6)})
        True
    """
    ids = dataset.image_ids
    if "quads" not in dataset.tables:
        return False
    quads, valid = dataset.tables["quads"][ids], dataset.tables["quad_valid"][ids].bool()
    if not bool(valid.any()):
        return False
    aspects = torch.full(valid.shape, torch.nan)
    aspects[valid] = aspects_of(quads[valid], upright=False).float()
    chosen = ids[_choose(valid, aspects, quads)]
    batch = dict(dataset.batch(chosen))
    places = torch.arange(valid.numel()).reshape(valid.shape)  # a name for each place
    index = dataset.tables["quad_patch"][ids]
    names = [
        f"{dataset.names[patch]} {aspect:.2f}"
        for patch, aspect in zip(index.flatten().tolist(), aspects.flatten().tolist(), strict=True)
    ]
    rows = (chosen[:, None] == ids).int().argmax(1)
    batch |= {"quad_patch": places[rows]}
    titles = [Path(str(dataset.paths[i])).name for i in chosen.tolist()]
    title = _title(dataset, index, valid, aspects, sizes)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_boxes(path, batch | {"titles": titles}, dataset.class_names, names, columns=3, title=title)
    return True


def _choose(valid: Tensor, aspects: Tensor, quads: Tensor) -> Tensor:
    """Return the rows of the extreme places, then the first others with a place."""
    areas = torch.where(valid, quad_area(quads).float(), torch.nan)
    rows: dict[int, None] = {}
    for values in (aspects, areas):
        for sign in (1, -1):
            extreme = (sign * values).nan_to_num(torch.inf).amin(1).argmin()
            rows[int(extreme)] = None
    for row in valid.any(1).nonzero()[:, 0].tolist():
        rows.setdefault(row)
    return torch.tensor(list(rows)[:_MOST_IMAGES])


def _title(
    dataset: TargetSet, index: Tensor, valid: Tensor, aspects: Tensor, sizes: Mapping[str, tuple[int, int]]
) -> str:
    """Write a line for each patch: its width over its height, and those of its places."""
    lines = ["width over height of the patches and of their places"]
    for patch, name in enumerate(dataset.names[:_MOST_LINES]):
        own = aspects[valid & (index == patch)]
        shape = f"{sizes[name][1] / sizes[name][0]:.2f}" if name in sizes else "unknown"
        spread = f" {own.min():.2f} to {own.max():.2f}, median {own.median():.2f}" if len(own) else ""
        lines.append(f"{clip_name(name, 20)}: patch {shape}; {len(own)} places{spread}")
    if (left := len(dataset.names) - _MOST_LINES) > 0:
        lines.append(f"and {left} more patches")
    return "\n".join(lines)
