"""Target sets: photographs with the places where patches go, and the objects on them, from CSV files."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from fpatch.core.checks import check_choice, check_number, nearest
from fpatch.data.csv_tables import read_objects, read_placements
from fpatch.data.images import (
    decode_picture,
    fit,
    image_digest,
    letterbox,
    move_boxes,
    move_points,
    read_bytes,
)

_SAFE_QUAD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
_SAFE_BOX = torch.tensor([0.0, 0.0, 1.0, 1.0])
_NO_INDEX = torch.tensor(0)
_MAX_THREADS = 8


@runtime_checkable
class Dataset(Protocol):
    """A source of photographs, as the loader, training and evaluation see it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Patches; `quad_patch` indexes them."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of objects; `labels` indexes them. Empty without ground truth."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every scene, in pixels."""
        ...

    @property
    def image_ids(self) -> Int64[Tensor, "n"]:
        """The photographs of this view, by ids that all views share."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The file of every photograph of all views, by id."""
        ...

    def split(self, name: str) -> "Dataset":
        """The view of one split: the same names, sizes and ids."""
        ...

    def batch(
        self,
        image_ids: Int64[Tensor, "b"] | Sequence[int],
        draw: Int64[Tensor, "b"] | Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """The named photographs; see `TargetSet.batch`."""
        ...

    def digest(self, image_id: int) -> str:
        """SHA-256 of a photograph as it is shown."""
        ...


def draws(image_ids: Int64[Tensor, "b"]) -> Int64[Tensor, "b"]:
    """How often each photograph stands earlier in the batch: 0 at its first use, then 1, 2 and so on."""
    order = torch.argsort(image_ids, stable=True)
    ranked = image_ids[order]
    counts = torch.empty_like(image_ids)
    counts[order] = torch.arange(len(ranked)) - torch.searchsorted(ranked, ranked)
    return counts


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Photographs of one size with their placements, and objects if known; made by `targets`.

    A view (`split`, `select`) shares everything with the whole but `image_ids`. All that is indexed by a
    photograph is indexed by its id: its place among all images of the placements file.

    Attributes:
        names: Patches, in the order that `quad_patch` indexes.
        class_names: Classes, in the order that `labels` indexes; empty without an objects file.
        size: Height and width of the scenes, in pixels.
        image_ids: The photographs of this view that show at least one of the patches.
        paths: File of every photograph.
        splits: Split of every photograph.
        source: The placements file.
        tables: What `batch` returns beside the scene, for every photograph.
        photographs: Reads the scenes.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    size: tuple[int, int]
    image_ids: Int64[Tensor, "n"] = field(repr=False)
    paths: tuple[Path, ...] = field(repr=False)
    splits: tuple[str, ...] = field(repr=False)
    source: Path
    tables: dict[str, Tensor] = field(repr=False)
    photographs: "_Photographs" = field(repr=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def k(self) -> int:
        """Placements per photograph, the absent ones included."""
        return self.tables["quads"].shape[1]

    @property
    def m(self) -> int:
        """Objects per photograph, the absent ones included; 0 without an objects file."""
        return self.tables["boxes"].shape[1] if "boxes" in self.tables else 0

    def split(self, name: str) -> "TargetSet":
        """The photographs of one split.

        Raises:
            ValueError: There is none.
        """
        counts = Counter(self.splits[i] for i in self.image_ids.tolist())
        if name not in counts:
            found = ", ".join(f"{split} ({count})" for split, count in counts.items())
            raise ValueError(
                f"{self.source}: no {name} rows for the patches {', '.join(self.names)}; photographs by "
                f"split: {found}; correct the column 'split', or ask for another split (in a study, [data] "
                "names them, and validation = false does without one)"
            )
        return self.select([i for i in self.image_ids.tolist() if self.splits[i] == name])

    def select(self, image_ids: Int64[Tensor, "n"] | Sequence[int]) -> "TargetSet":
        """Some of the photographs, in the order given.

        Raises:
            ValueError: An id that is not in this view, a repeated one, or none at all.
        """
        ids = self._check_ids(image_ids)
        if len(repeated := ids[draws(ids) > 0]):
            raise ValueError(f"select: image_ids must be distinct, got {repeated[0]} twice; leave one out")
        return replace(self, image_ids=ids)

    def batch(
        self,
        image_ids: Int64[Tensor, "b"] | Sequence[int],
        draw: Int64[Tensor, "b"] | Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Photographs and what is known of them.

        Args:
            image_ids: Any of this view, also repeatedly.
            draw: The how-many-th use of each under one key; by default counted within the batch.
            device: Where the scenes go, as bytes. All else is small and stays on the host, where samples are
                drawn from it; a step sends it after them.

        Returns:
            `scene` [b, 3, h, w] in 0..1, `image_id` and `draw` [b]; `quads` [b, k, 4, 2] in pixels of the
            scene, clockwise from the top left, `quad_patch` and `quad_valid` [b, k]; with an objects file
            `boxes` [b, m, 4] as xmin, ymin, xmax, ymax, `labels` and `box_valid` [b, m], and where every
            photograph has an object `target` [b], the label of its first one. An absent placement or object
            is a unit square at the origin, not valid.

        Raises:
            FileNotFoundError: A photograph has been removed.
            ValueError: An id that is not in this view, a repeated (image_id, draw), an unreadable photograph.
        """
        ids = self._check_ids(image_ids)
        draw = draws(ids) if draw is None else torch.as_tensor(draw, dtype=torch.int64).cpu()
        if draw.shape != ids.shape or draw.min() < 0:
            raise ValueError(
                f"batch: draw must be {len(ids)} counts >= 0, one per image_id, got {draw.tolist()}"
            )
        pairs, counts = torch.stack([ids, draw], dim=1).unique(dim=0, return_counts=True)
        if len(repeated := pairs[counts > 1]):
            raise ValueError(
                f"(image_id, draw) must be distinct, got {tuple(repeated[0].tolist())} twice; both rows "
                "would get one sample: number the uses of a photograph by draw"
            )
        values = {"image_id": ids, "draw": draw} | {name: table[ids] for name, table in self.tables.items()}
        scene = _send(self.photographs(ids.tolist(), device), device).float()
        # by a tensor, because a GPU multiplies by the inverse of a number, which rounds twice
        return {"scene": scene.div_(torch.full((), 255.0, device=scene.device)), **values}

    def digest(self, image_id: int) -> str:
        """SHA-256 of the photograph's file, as it was when the pixels that are held were read."""
        return self.photographs.digest(int(self._check_ids([image_id])))

    @functools.cached_property
    def _shown(self) -> Bool[Tensor, "all"]:
        """Whether a photograph is in this view, by id."""
        shown = torch.zeros(len(self.paths), dtype=torch.bool)
        shown[self.image_ids] = True
        return shown

    def _check_ids(self, image_ids: Int64[Tensor, "n"] | Sequence[int]) -> Int64[Tensor, "n"]:
        ids = torch.as_tensor(image_ids).cpu()
        if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"image_ids must be one or more ids, whole numbers in a row, got {ids.tolist()}")
        ids = ids.long()
        known = (ids >= 0) & (ids < len(self.paths))
        if len(foreign := ids[~(known & self._shown[ids.clamp(0, len(self.paths) - 1)])]):
            raise ValueError(
                f"image_ids must be among the {len(self)} of this view of {self.source}, got {foreign[0]}; "
                "take them from its .image_ids, or use the whole set instead of a split"
            )
        return ids


def targets(
    placements: str | os.PathLike[str],
    objects: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int],
    root: str | os.PathLike[str] | None = None,
    patches: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    outside_frac: float = 0.0,
    resident: Literal["device", "host", "disk"] = "host",
) -> TargetSet:
    """Read a target set and check all of it; pixels are read when they are first needed.

    Convention: coordinates are pixels of the photograph as it is seen (EXIF applied), (0, 0) the outer corner
    of the first pixel. Corners run clockwise: upper left, upper right, lower right, lower left of the upright
    patch. A mirrored quad, a patch seen from behind, is taken for wrong corner order and refused. Columns are
    found by name, further ones are ignored. A photograph belongs to one split.

    Args:
        placements: CSV with `image`, `patch`, `split`, and `ulx uly urx ury lrx lry llx lly` (corners) or
            `xmin ymin xmax ymax` (upright rectangles).
        objects: CSV with `image`, `label`, `xmin`, `ymin`, `xmax`, `ymax`, `split`; rows on photographs
            without a placement are checked and left out.
        size: Height and width that every photograph is letterboxed to, in pixels.
        root: Folder that relative paths in the files start from; by default that of each file.
        patches: Patches to use, in this order; by default all, as they appear. Photographs that show none of
            them keep their ids and are in no view.
        classes: Classes in the order of the victim's labels; by default as they appear.
        outside_frac: How far a coordinate may lie outside the photograph, as a fraction of its side.
        resident: Keep each scene as bytes once it is read, in memory ("host") or on the device that it was
            first asked for on ("device"); or read it at every use ("disk").

    Raises:
        FileNotFoundError: A CSV is missing.
        ValueError: Everything that is wrong with a file, by line and column.
    """
    if len(size) != 2 or min(size) < 1 or any(side % 1 for side in size):
        raise ValueError(f"targets: size must be (height, width) in whole pixels, at least 1, got {size!r}")
    check_number("targets: outside_frac", outside_frac, 0.0)
    check_choice("targets: resident", resident, ("device", "host", "disk"))
    for option, chosen in (("patches", patches), ("classes", classes)):
        if chosen is not None and (isinstance(chosen, str) or not 0 < len(set(chosen)) == len(chosen)):
            raise ValueError(
                f"targets: {option} must be a list of one or more distinct names, got {chosen!r}"
            )
    size_hw = (int(size[0]), int(size[1]))
    source = Path(placements)
    rows = read_placements(source, Path(root or source.parent), outside_frac)
    names = tuple(dict.fromkeys(patches or rows.patches))
    if lacking := [name for name in names if name not in rows.patches]:
        each = "; ".join(f"{name!r} ({nearest(name, set(rows.patches))})" for name in lacking)
        raise ValueError(f"{source}: no rows for the patches {each}; correct patches, or add rows")
    index = {path: i for i, path in enumerate(rows.sizes_hw)}
    fits = [fit(image_hw, size_hw) for image_hw in rows.sizes_hw.values()]
    scale = torch.tensor([scale_xy for scale_xy, _ in fits], dtype=torch.float64)[:, None]
    offset = torch.tensor([offset_xy for _, offset_xy in fits], dtype=torch.float64)[:, None]

    kept = [row for row, patch in enumerate(rows.patches) if patch in names]
    owner = torch.tensor([index[rows.images[row]] for row in kept])
    quads = move_points(torch.from_numpy(rows.quads[kept]), scale[owner], offset[owner]).float()
    patch = torch.tensor([names.index(rows.patches[row]) for row in kept])
    columns = {"quads": (quads, _SAFE_QUAD), "quad_patch": (patch, _NO_INDEX)}
    tables = _by_photograph(owner, len(index), columns, "quad_valid")
    image_ids = owner.unique()

    splits = dict(zip(rows.images, rows.splits, strict=True))
    class_names = ()
    if objects is not None:
        source_objects = Path(objects)
        found = read_objects(
            source_objects, Path(root or source_objects.parent), outside_frac, splits, rows.sizes_hw, classes
        )
        class_names = tuple(dict.fromkeys(classes or found.labels))
        kept = [row for row, image in enumerate(found.images) if image in index]
        if not kept:
            raise ValueError(
                f"{source_objects}: no row is on a photograph of {source}; give both files the same root"
            )
        owner = torch.tensor([index[found.images[row]] for row in kept])
        boxes = move_boxes(torch.from_numpy(found.boxes[kept]), scale[owner], offset[owner]).float()
        labels = torch.tensor([class_names.index(found.labels[row]) for row in kept])
        columns = {"boxes": (boxes, _SAFE_BOX), "labels": (labels, _NO_INDEX)}
        tables |= _by_photograph(owner, len(index), columns, "box_valid")
        if bool(tables["box_valid"][image_ids].any(1).all()):  # what a classifier should say of each
            tables["target"] = tables["labels"][:, 0]
    return TargetSet(
        names=names,
        class_names=class_names,
        size=size_hw,
        image_ids=image_ids,
        paths=tuple(index),
        splits=tuple(splits[path] for path in index),
        source=source,
        tables=tables,
        photographs=_Photographs(rows.sizes_hw, size_hw, resident),
    )


def _by_photograph(
    owner: Int64[Tensor, "r"], num: int, columns: dict[str, tuple[Tensor, Tensor]], valid: str
) -> dict[str, Tensor]:
    """Spread rows over the photographs that own them, [num, k, ...], the rest filled with a safe value."""
    slot = draws(owner)
    k = int(slot.max()) + 1
    tables = {}
    for name, (values, safe) in (columns | {valid: (torch.tensor(True), torch.tensor(False))}).items():
        tables[name] = safe.expand(num, k, *safe.shape).clone()
        tables[name][owner, slot] = values
    return tables


def _send(value: Tensor, device: torch.device | str | None) -> Tensor:
    """To a device; to a GPU from locked memory, so that only the stream that copies waits for it."""
    if value.device.type == "cpu" and torch.device(device or "cpu").type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


class _Photographs:
    """Scenes as bytes, by id: decoded and letterboxed in threads, and kept where they are resident."""

    def __init__(
        self,
        sizes_hw: dict[Path, tuple[int, int]],
        size: tuple[int, int],
        resident: Literal["device", "host", "disk"],
    ) -> None:
        self.paths, self.sizes_hw = tuple(sizes_hw), tuple(sizes_hw.values())
        self.size, self.resident = size, resident
        self.held: dict[int, tuple[UInt8[Tensor, "3 h w"], str]] = {}

    def __call__(
        self, image_ids: Sequence[int], device: torch.device | str | None
    ) -> UInt8[Tensor, "b 3 h w"]:
        """In memory, or on the device if they are resident there."""
        missing = [i for i in dict.fromkeys(image_ids) if i not in self.held]
        read = {}
        if missing:
            with ThreadPoolExecutor(min(_MAX_THREADS, len(missing), os.cpu_count() or 1)) as pool:
                read = dict(zip(missing, pool.map(self._read, missing), strict=True))
        if self.resident == "device":  # a copy that waits until it is complete: any stream may read it later
            read = {i: (scene.to(device), digest) for i, (scene, digest) in read.items()}
        if self.resident != "disk":
            self.held.update(read)
        found = [read[i][0] if i in read else self.held[i][0] for i in image_ids]
        return torch.stack([scene.to(device) for scene in found] if self.resident == "device" else found)

    def digest(self, image_id: int) -> str:
        return self.held[image_id][1] if image_id in self.held else image_digest(self.paths[image_id])

    def _read(self, image_id: int) -> tuple[UInt8[Tensor, "3 h w"], str]:
        path = self.paths[image_id]
        data = read_bytes(path)
        image = decode_picture(data, path)
        if (image.height, image.width) != self.sizes_hw[image_id]:
            raise ValueError(
                f"{path}: the photograph is {[image.height, image.width]} px, but its header said "
                f"{list(self.sizes_hw[image_id])}; it was changed, or its EXIF stands behind the pixels: "
                "save it again and start again"
            )
        return letterbox(image, self.size)[0], hashlib.sha256(data).hexdigest()
