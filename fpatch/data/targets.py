"""The reader of target sets: CSV files of placements and objects to a `TargetSet`."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from fpatch.core.checks import check_choice, check_number, nearest
from fpatch.core.plain import plain_torch
from fpatch.data.classes import Classes, read_classes
from fpatch.data.csv_tables import Objects, Placements, read_objects, read_placements
from fpatch.data.images import fit, move_boxes, move_points
from fpatch.data.scenes import Scenes
from fpatch.data.target_set import TargetSet, draws

_SAFE_QUAD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
_SAFE_BOX = torch.tensor([0.0, 0.0, 1.0, 1.0])
_NO_INDEX = torch.tensor(0)


_logger = logging.getLogger(__name__)

MOST_SIDE = 16_384
"""The longest side of a scene, in pixels."""


@plain_torch()
def targets(
    placements: str | os.PathLike[str],
    objects: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int],
    root: str | os.PathLike[str] | None = None,
    patches: Sequence[str] | None = None,
    classes: Classes | None = None,
    outside_frac: float = 0.0,
    resident: Literal["device", "host", "disk"] = "host",
) -> TargetSet:
    """Read and check the CSV files of a target set; images are read at their first use.

    Columns are found by name, and further columns are ignored. An image belongs to one split.

    Convention:
        Coordinates are pixels of the original image as displayed (EXIF applied). (0, 0) is the outer corner
        of the first pixel. Corners run clockwise: upper left, upper right, lower right, lower left of the
        upright patch. A mirrored quad, a patch seen from behind, counts as a wrong order of corners and is
        refused.

    Args:
        placements: CSV with `image`, `patch`, `split`, and `ulx uly urx ury lrx lry llx lly` (corners) or
            `xmin ymin xmax ymax` (upright rectangles).
        objects: CSV with `image`, `label`, `xmin`, `ymin`, `xmax`, `ymax`, `split`. Rows on images without a
            placement are checked and left out.
        size: Height and width of the letterboxed scenes, in pixels.
        root: The folder of relative image paths; by default that of each file. An image of an absolute path
            that is not there is looked for in it by the last parts of the path.
        patches: The patches to use, in this order; by default all, in the order of the file. Images that show
            none of them keep their ids and are in no view.
        classes: The classes, in the order of the victim's labels; a text file with a name per line; or the
            number of classes without names. By default labels are numbered as they appear in the file, and
            a warning says so.
        outside_frac: The allowed distance of a coordinate outside the image, as a fraction of the side.
        resident: The place where scenes are kept as bytes after their first use: memory ("host"), the device
            of their first use ("device"), or nowhere ("disk").

    Raises:
        FileNotFoundError: If a CSV file does not exist.
        ValueError: If an option or a file is invalid; the message lists all problems of a file, by line and
            column.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from fpatch import data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(Path(folder, "car.png"))
        ...     rows = ["image,patch,split,xmin,ymin,xmax,ymax", "car.png,hood,train,10,10,20,20"]
        ...     _ = Path(folder, "placements.csv").write_text(chr(10).join(rows))
        ...     batch = data.targets(Path(folder, "placements.csv"), size=(60, 80)).batch([0])
        >>> batch["scene"].shape, batch["quads"][0, 0].tolist()
        (torch.Size([1, 3, 60, 80]), [[20.0, 20.0], [40.0, 20.0], [40.0, 40.0], [20.0, 40.0]])
    """
    size_hw = _check_size(size)
    check_number("targets: outside_frac", outside_frac, 0.0)
    check_choice("targets: resident", resident, ("device", "host", "disk"))
    _check_patches(patches)
    class_names = None if classes is None else read_classes("targets: classes", classes)
    source = Path(placements)
    placed = read_placements(source, Path(root or source.parent), outside_frac)
    names = _choose_patches(placed, patches, source)
    images = _Images.fit(placed.sizes_hw, size_hw)
    tables = _placement_tables(placed, names, images)
    image_ids = tables["quad_valid"].any(1).nonzero().flatten()

    splits = dict(zip(placed.images, placed.splits, strict=True))
    if objects is not None:
        folder = Path(root or Path(objects).parent)
        found = read_objects(Path(objects), folder, outside_frac, splits, placed.sizes_hw, class_names)
        class_names = class_names or _number_labels(Path(objects), found.labels)
        if not any(image in images.index for image in found.images):
            raise ValueError(f"{Path(objects)}: no row is on an image of {source}; give both files one root")
        tables |= _object_tables(found, class_names, images)
        if bool(tables["box_valid"][image_ids].any(1).all()):  # the true class for a classifier
            tables["target"] = tables["labels"][:, 0]
    return TargetSet(
        names=names,
        class_names=(class_names or ()) if objects is not None else (),
        size=size_hw,
        image_ids=image_ids,
        paths=tuple(images.index),
        splits=tuple(splits[path] for path in images.index),
        source=source,
        tables=tables,
        scenes=Scenes(placed.sizes_hw, size_hw, resident),
        root=Path(os.path.normpath(root or source.parent)),
    )


def _check_size(size: Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        raise ValueError(f"targets: size must be (height, width), got {size}; for a square, ({size}, {size})")
    sides = list(size) if isinstance(size, Sequence) else []
    if len(sides) != 2 or not all(1 <= side <= MOST_SIDE and not side % 1 for side in sides):
        raise ValueError(
            f"targets: size must be (height, width) in whole pixels, from 1 to {MOST_SIDE} each, got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def _check_patches(patches: Sequence[str] | None) -> None:
    if patches is None:
        return
    if isinstance(patches, str) or not patches:
        raise ValueError(f"targets: patches must be a list of one or more names, got {patches!r:.120}")
    if twice := next((name for name, count in Counter(patches).items() if count > 1), None):
        raise ValueError(f"targets: patches must be distinct names, got {twice!r} twice; leave one out")


def _number_labels(path: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Number the labels as they appear, and say so: a victim numbers its classes by its own order."""
    names = tuple(dict.fromkeys(labels))
    if len(names) > 1:
        shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:5]))
        _logger.warning(
            "%s: labels are numbered in the order in which they appear: %s%s; give classes in the order of "
            "the victim's labels", path, shown, ", ..." if len(names) > 5 else "",
        )  # fmt: skip
    return names


def _choose_patches(placed: Placements, patches: Sequence[str] | None, source: Path) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(patches or placed.patches))
    if lacking := [name for name in names if name not in placed.patches]:
        each = "; ".join(f"{name!r} ({nearest(name, set(placed.patches))})" for name in lacking)
        raise ValueError(f"{source}: no rows for the patches {each}; correct patches, or add rows")
    return names


class _Images(NamedTuple):
    """The ids of the images by path, and the letterbox of each."""

    index: dict[Path, int]
    scale_xy: Float64[Tensor, "n 1 2"]
    offset_xy: Float64[Tensor, "n 1 2"]

    @staticmethod
    def fit(sizes_hw: dict[Path, tuple[int, int]], size_hw: tuple[int, int]) -> "_Images":
        fits = [fit(image_hw, size_hw) for image_hw in sizes_hw.values()]
        return _Images(
            {path: i for i, path in enumerate(sizes_hw)},
            torch.tensor([scale_xy for scale_xy, _ in fits], dtype=torch.float64)[:, None],
            torch.tensor([offset_xy for _, offset_xy in fits], dtype=torch.float64)[:, None],
        )

    def spread(
        self, owner: Int64[Tensor, "r"], columns: dict[str, tuple[Tensor, Tensor]], valid: str
    ) -> dict[str, Tensor]:
        """Spread rows over the images that own them, [n, k, ...]; a safe value fills the rest."""
        slot = draws(owner)
        k = int(slot.max()) + 1
        tables = {}
        for name, (values, safe) in (columns | {valid: (torch.tensor(True), torch.tensor(False))}).items():
            tables[name] = safe.expand(len(self.index), k, *safe.shape).clone()
            tables[name][owner, slot] = values
        return tables


def _placement_tables(placed: Placements, names: tuple[str, ...], images: _Images) -> dict[str, Tensor]:
    """Make `quads`, `quad_patch` and `quad_valid`, by image id."""
    kept = [row for row, patch in enumerate(placed.patches) if patch in names]
    owner = torch.tensor([images.index[placed.images[row]] for row in kept])
    corners = torch.from_numpy(placed.quads[kept])
    quads = move_points(corners, images.scale_xy[owner], images.offset_xy[owner]).float()
    patch = torch.tensor([names.index(placed.patches[row]) for row in kept])
    return images.spread(
        owner, {"quads": (quads, _SAFE_QUAD), "quad_patch": (patch, _NO_INDEX)}, "quad_valid"
    )


def _object_tables(found: Objects, class_names: tuple[str, ...], images: _Images) -> dict[str, Tensor]:
    """Make `boxes`, `labels` and `box_valid`, by image id."""
    kept = [row for row, image in enumerate(found.images) if image in images.index]
    owner = torch.tensor([images.index[found.images[row]] for row in kept])
    corners = torch.from_numpy(found.boxes[kept])
    boxes = move_boxes(corners, images.scale_xy[owner], images.offset_xy[owner]).float()
    labels = torch.tensor([class_names.index(found.labels[row]) for row in kept])
    return images.spread(owner, {"boxes": (boxes, _SAFE_BOX), "labels": (labels, _NO_INDEX)}, "box_valid")
