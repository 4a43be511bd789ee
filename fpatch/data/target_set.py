"""Target sets: images with placements of patches and objects, read as batches."""

import functools
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from fpatch.core.checks import check_kind, shown
from fpatch.core.plain import plain_torch
from fpatch.data.scenes import Scenes


@runtime_checkable
class Dataset(Protocol):
    """A source of images for the loader, training and evaluation; `TargetSet` is one.

    Example:
        >>> import tempfile
        >>> from fpatch import data
        >>> from fpatch.demo.tiny import tiny_study
        >>> isinstance(tiny_study(tempfile.mkdtemp()).data.open(), data.Dataset)
        True
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The patches; `quad_patch` indexes them."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of objects; `labels` indexes them. Empty without ground truth."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every scene, in pixels."""
        ...

    @property
    def image_ids(self) -> Int64[Tensor, "n"]:
        """The images of this view, by ids that all views share."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The file of every image of all views, by id."""
        ...

    def split(self, name: str) -> "Dataset":
        """Return the view of one split, with the same names, sizes and ids."""
        ...

    def batch(
        self,
        image_ids: Int64[Tensor, "b"] | Sequence[int],
        draw: Int64[Tensor, "b"] | Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Return a batch of images; see `TargetSet.batch`."""
        ...

    def digest(self, image_id: int) -> str:
        """Return the SHA-256 of an image's file, or of its pixels."""
        ...


def check_dataset(field: str, dataset: Any) -> None:
    """Check that an argument is a `Dataset`.

    Raises:
        ValueError: If it is not, with what it is and how to make one.
    """
    way_out = "read one by fpatch.data.targets, or give yours the attributes of fpatch.data.Dataset"
    check_kind(field, dataset, Dataset, way_out)


def draws(image_ids: Int64[Tensor, "b"]) -> Int64[Tensor, "b"]:
    """Number the uses of each image in a batch: 0 at its first use, then 1, 2 and so on.

    Example:
        >>> import torch
        >>> from fpatch import data
        >>> data.draws(torch.tensor([7, 4, 7, 7]))
        tensor([0, 0, 1, 2])
    """
    order = torch.argsort(image_ids, stable=True)
    ranked = image_ids[order]
    counts = torch.empty_like(image_ids)
    counts[order] = torch.arange(len(ranked)) - torch.searchsorted(ranked, ranked)
    return counts


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Images of one size with their placements and, if known, objects; made by `targets`.

    A view (`split`, `select`) shares everything but `image_ids` with the whole set. The id of an image is its
    index among all images of the placements file.

    Attributes:
        names: The patches; `quad_patch` indexes them.
        class_names: The classes; `labels` indexes them. Empty without an objects file.
        size: Height and width of the scenes, in pixels.
        image_ids: The images of this view that show at least one of the patches.
        paths: The file of every image, by id.
        splits: The split of every image, by id.
        source: The placements file.
        tables: The other entries of a batch, by image id.
        scenes: Reads and keeps the scenes.
        root: The folder of relative image paths.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> scenes = tiny_study(tempfile.mkdtemp()).data.open()
        >>> scenes.names, scenes.k, scenes.split("train").image_ids
        (('tag',), 1, tensor([0, 1]))
        >>> len(scenes), scenes[0]["quads"].shape
        (8, torch.Size([1, 4, 2]))
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    size: tuple[int, int]
    image_ids: Int64[Tensor, "n"] = field(repr=False)
    paths: tuple[Path, ...] = field(repr=False)
    splits: tuple[str, ...] = field(repr=False)
    source: Path
    tables: dict[str, Tensor] = field(repr=False)
    scenes: Scenes = field(repr=False)
    root: Path = Path()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one image of this view as `batch` does, without the axis of rows.

        `torch.utils.data.DataLoader(targets)` joins such rows to the batches of `batch`.

        Raises:
            IndexError: If the view has fewer images.
            TypeError: If the index is no whole number.
        """
        if isinstance(index, slice):
            raise TypeError(
                "targets[index] is one image; a view of some is targets.select(targets.image_ids[:5])"
            )
        if isinstance(index, str):
            raise TypeError(f"targets[{index!r}]: an image has a number; a split is targets.split({index!r})")
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"there are {len(self)} images in this view, got index {place}")
        return {name: value[0] for name, value in self.batch(self.image_ids[place].reshape(1)).items()}

    @functools.cached_property
    def image_names(self) -> tuple[str, ...]:
        """The path of every image by id, relative to `root`; absolute outside it."""
        return tuple(
            (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()
            for path in self.paths
        )

    @property
    def k(self) -> int:
        """Placements per image, absent ones included."""
        return self.tables["quads"].shape[1]

    @property
    def m(self) -> int:
        """Objects per image, absent ones included; 0 without an objects file."""
        return self.tables["boxes"].shape[1] if "boxes" in self.tables else 0

    def split(self, name: str) -> "TargetSet":
        """Return the view of one split.

        Raises:
            ValueError: If no image of this view is in the split.
        """
        counts = Counter(self.splits[i] for i in self.image_ids.tolist())
        if name not in counts:
            found = ", ".join(f"{split} ({count})" for split, count in counts.items())
            raise ValueError(
                f"{self.source}: no {name} rows for the patches {', '.join(self.names)}; images by "
                f"split: {found}; correct the column 'split', or ask for another split (in a study, [data] "
                "names them, and validation = false trains without one)"
            )
        return self.select([i for i in self.image_ids.tolist() if self.splits[i] == name])

    def select(self, image_ids: Int64[Tensor, "n"] | Sequence[int]) -> "TargetSet":
        """Return a view of some images, in the given order.

        Raises:
            ValueError: If there is no id, or an id is repeated or not in this view.
        """
        ids = self._check_ids(image_ids)
        if len(repeated := ids[draws(ids) > 0]):
            raise ValueError(f"select: image_ids must be distinct, got {repeated[0]} twice; leave one out")
        return replace(self, image_ids=ids)

    @plain_torch()
    def batch(
        self,
        image_ids: Int64[Tensor, "b"] | Sequence[int],
        draw: Int64[Tensor, "b"] | Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Return a batch of images with their placements and objects.

        Args:
            image_ids: Ids of this view, also repeated.
            draw: The number of each use of an image under one key; by default counted within the batch.
            device: The device of the scenes, which are copied as bytes. The other entries are small and stay
                on the host, where samples are drawn from them.

        Returns:
            `scene` [b, 3, h, w] in 0..1, `image_id` and `draw` [b]; `quads` [b, k, 4, 2] in pixels of the
            scene, clockwise from the top left, `quad_patch` and `quad_valid` [b, k]. With an objects file,
            `boxes` [b, m, 4] as xmin, ymin, xmax, ymax, `labels` and `box_valid` [b, m]. If every image has
            an object, `target` [b] is the label of its first one. An absent placement or object is a unit
            square at the origin, not valid.

        Raises:
            FileNotFoundError: If a file does not exist any more.
            ValueError: If an id is not in this view, an (image_id, draw) is repeated, or a file cannot be
                read.
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
                "would get one sample: number the uses of an image by draw"
            )
        values = {"image_id": ids, "draw": draw} | {name: table[ids] for name, table in self.tables.items()}
        scene = _send(self.scenes(ids.tolist(), device), device).float()
        # divide by a tensor, because a GPU multiplies by the inverse of a number, which rounds twice
        return {"scene": scene.div_(torch.full((), 255.0, device=scene.device)), **values}

    def digest(self, image_id: int) -> str:
        """Return the SHA-256 of an image's file: of the content that was read, if its scene is kept."""
        return self.scenes.digest(int(self._check_ids([image_id])))

    @functools.cached_property
    def _shown(self) -> Bool[Tensor, "all"]:
        """Return the mask of the images in this view, by id."""
        shown = torch.zeros(len(self.paths), dtype=torch.bool)
        shown[self.image_ids] = True
        return shown

    def _check_ids(self, image_ids: Int64[Tensor, "n"] | Sequence[int]) -> Int64[Tensor, "n"]:
        try:
            ids = torch.as_tensor(image_ids).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"image_ids must be one or more ids, whole numbers in a row, got {shown(image_ids)}; "
                "targets.paths holds the file of each"
            ) from None
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


def _send(value: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy to a device; to a GPU from locked memory, so that only the copying stream waits."""
    if value.device.type == "cpu" and torch.device(device or "cpu").type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
