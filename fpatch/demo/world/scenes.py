"""Rendered scenes on disk as a target set: images, ``placements.csv`` and ``objects.csv``.

A folder gets its final name only when it is complete. The name is a digest of the renderer's source and of
every argument, so a second run finds the folder, and a killed run leaves no folder of that name.
"""

import csv
import hashlib
import inspect
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpatch.demo.world import canvas, paints, solids, surroundings, truck
from fpatch.demo.world import render as renderer
from fpatch.demo.world.render import PANELS, render, scene_rng

SPLITS: Mapping[str, int] = {"train": 2400, "validation": 64, "test": 300}
SIZES_HW = ((128, 128), (112, 144), (144, 112))
PLACEMENT_COLUMNS = ("image", "patch", "ulx", "uly", "urx", "ury", "lrx", "lry", "llx", "lly", "split")
OBJECT_COLUMNS = ("image", "label", "xmin", "ymin", "xmax", "ymax", "split")

Progress = Callable[[int, int], None]
"""Called with the number of scenes done and the number of all."""


class _Job(NamedTuple):
    split: str
    index: int
    size_hw: tuple[int, int]


class _Record(NamedTuple):
    image: str
    split: str
    label: str
    box: list[float]
    panels: dict[str, list[float]]


def write_scenes(
    folder: str | Path,
    seed: int,
    splits: Mapping[str, int] = SPLITS,
    sizes_hw: tuple[tuple[int, int], ...] = SIZES_HW,
    textures: Mapping[str, NDArray] | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Path:
    """Render a target set; on an error no folder is left.

    Scene i of a split depends on the seed, the split's name and i only. With more than one worker the scenes
    are rendered in spawned processes, so a script that calls this needs the usual ``if __name__ ==
    "__main__"``.

    Args:
        folder: The folder to make; it must not exist.
        seed: A non-negative seed.
        splits: Number of scenes by split.
        sizes_hw: Image sizes, taken in turn.
        textures: Prints for the panels, see `fpatch.demo.world.render.render`.
        workers: Number of processes.
        progress: Called after each scene.

    Returns:
        The folder, which holds ``images/<split>-00001.png`` and so on, ``placements.csv``, ``objects.csv``
        and ``scenes.json``, the arguments from which `render_textured` renders the scenes again.

    Raises:
        FileExistsError: If the folder exists.
    """
    spec = {"seed": seed, "splits": dict(splits), "sizes_hw": [list(size) for size in sizes_hw]}
    jobs = [
        _Job(split, i, sizes_hw[i % len(sizes_hw)]) for split, count in splits.items() for i in range(count)
    ]
    with _complete(Path(folder)) as draft:
        (draft / "images").mkdir()
        records = []
        for record in _run(partial(_write_scene, draft, seed, textures), jobs, workers):
            records.append(record)
            if progress is not None:
                progress(len(records), len(jobs))
        _write_tables(draft, records)
        (draft / "scenes.json").write_text(json.dumps(spec, indent=2) + "\n", "utf-8")
    return Path(folder)


def cached_scenes(
    cache: str | Path,
    seed: int,
    splits: Mapping[str, int] = SPLITS,
    sizes_hw: tuple[tuple[int, int], ...] = SIZES_HW,
    workers: int = 2,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of these scenes in `cache`, rendered if absent; see `write_scenes`."""
    code = [solids, paints, canvas, truck, surroundings, renderer, sys.modules[__name__]]
    name = digest(code, seed=seed, splits=dict(splits), sizes_hw=sizes_hw, numpy=np.__version__)
    folder = Path(cache) / f"scenes-{name}"
    if not folder.exists():
        try:
            write_scenes(folder, seed, splits, sizes_hw, None, workers, progress)
        except OSError:
            if not folder.is_dir():  # or else another process was quicker, with the same scenes
                raise
    return folder


def render_textured(
    scenes: str | Path,
    folder: str | Path,
    split: str,
    textures: Mapping[str, NDArray],
    workers: int = 2,
    progress: Progress | None = None,
) -> Path:
    """Render the scenes of one split again with other prints on the panels, all else equal.

    Args:
        scenes: A folder that `write_scenes` made.
        folder: The folder to make; it must not exist. Image names and tables are those of `scenes`.
        split: The split to render.
        textures: Panel name to print; a panel without one keeps its own.
        workers: Number of processes, see `write_scenes`.
        progress: Called after each scene.

    Raises:
        FileNotFoundError: If `scenes` has no ``scenes.json``.
        ValueError: If it has no such split.
    """
    path = Path(scenes) / "scenes.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; render_textured needs a folder made by write_scenes")
    spec = json.loads(path.read_text("utf-8"))
    if split not in spec["splits"]:
        raise ValueError(f"split must be one of {', '.join(spec['splits'])}, got {split!r}")
    sizes_hw = tuple((height, width) for height, width in spec["sizes_hw"])
    return write_scenes(
        folder, spec["seed"], {split: spec["splits"][split]}, sizes_hw, textures, workers, progress
    )


def digest(code: Iterable[ModuleType], **arguments: object) -> str:
    """Return twelve hex digits of the source of modules and of arguments (JSON values)."""
    text = json.dumps([[inspect.getsource(module) for module in code], arguments], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write_scene(folder: Path, seed: int, textures: Mapping[str, NDArray] | None, job: _Job) -> _Record:
    rng = scene_rng(seed, zlib.crc32(job.split.encode()) << 32 | job.index)
    scene = render(rng, job.size_hw, textures)
    name = f"images/{job.split}-{job.index + 1:05}.png"
    Image.fromarray(scene.image).save(folder / name, compress_level=1)
    panels = {panel: quad.ravel().tolist() for panel, quad in scene.panels.items()}
    return _Record(name, job.split, scene.label, scene.box.tolist(), panels)


def _run(write: Callable[[_Job], _Record], jobs: list[_Job], workers: int) -> Iterator[_Record]:
    if workers == 1:
        yield from map(write, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, jobs, chunksize=16)


def _write_tables(folder: Path, records: list[_Record]) -> None:
    with (folder / "placements.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(PLACEMENT_COLUMNS)
        for record in records:
            for panel in PANELS:
                if panel in record.panels:
                    corners = [f"{value:.3f}" for value in record.panels[panel]]
                    table.writerow([record.image, panel, *corners, record.split])
    with (folder / "objects.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(OBJECT_COLUMNS)
        for record in records:
            table.writerow(
                [record.image, record.label, *(f"{value:g}" for value in record.box), record.split]
            )


@contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """Yield a draft folder, renamed to `folder` at the end or removed on an error."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
