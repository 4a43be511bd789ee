"""The data and the victims of `fpatch demo`, and the study of each victim.

Scenes and victims are kept in a cache, by digests of the code and the settings that make them.
"""

import json
import os
import string
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from fpatch.core.progress import Progress
from fpatch.data import TargetSet, targets
from fpatch.demo import training as training_module
from fpatch.demo import victim as victim_module
from fpatch.demo.training import train_detector
from fpatch.demo.victim import save_victim
from fpatch.demo.world.scenes import SIZES_HW, cached_scenes, digest

SIDES = (0.5, 0.65, 0.8, 1.0)
"""Sides of the patch relative to the panel, for success against area."""


@dataclass(frozen=True)
class Size:
    """Numbers of scenes, victims, steps and measurements."""

    splits: Mapping[str, int]
    sizes_hw: tuple[tuple[int, int], ...]
    victim_steps: int
    num_victims: int
    num_steps: int
    sides: tuple[float, ...]


FULL = Size({"train": 2400, "validation": 64, "test": 300}, SIZES_HW, 400, 2, 300, SIDES)
QUICK = Size({"train": 1000, "validation": 32, "test": 150}, ((96, 96),), 250, 1, 150, ())


def cache_folder() -> Path:
    """Return the folder of kept scenes and victims, made if absent."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fpatch"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def prepare_scenes(size: Size, seed: int, on_progress: Progress) -> Path:
    """Return the folder of the rendered scenes; the cache keeps them.

    Example:
        >>> import dataclasses, os, tempfile
        >>> from unittest import mock
        >>> from fpatch.core.progress import silent
        >>> from fpatch.demo.study import QUICK, cache_folder, cached_scenes, prepare_scenes
        >>> size = dataclasses.replace(QUICK, splits={"test": 2})
        >>> with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        ...     kept = cached_scenes(cache_folder(), 7, size.splits, size.sizes_hw, workers=1)
        ...     prepare_scenes(size, 7, silent) == kept, sorted(path.name for path in kept.iterdir())
        (True, ['images', 'objects.csv', 'placements.csv', 'scenes.json'])
    """

    def rendering(done: int, total: int) -> None:
        on_progress("rendering scenes", done, total, "")

    return cached_scenes(cache_folder(), seed, size.splits, size.sizes_hw, progress=rendering)


def prepare_study(
    runs: Path,
    name: str,
    scenes: Path,
    size: Size,
    mlflow: str | bool,
    seed: int,
    number: int,
    on_progress: Progress,
) -> Path:
    """Write the study of a patch against its victim; the cache keeps trained victims.

    Args:
        runs: The folder of the study's file and of its runs.
        name: The name of the study.
        scenes: The folder of the scenes of both trainings.
        size: The size of the demo.
        mlflow: Tracking URI; true for a local SQLite file, false for none.
        seed: The seed of the patch.
        number: The number of the victim; its seed is `seed + number`.
        on_progress: Called with the progress of each task.

    Example:
        >>> import dataclasses, os, tempfile
        >>> from unittest import mock
        >>> from fpatch.core.progress import silent
        >>> from fpatch.demo.study import QUICK, prepare_study
        >>> from fpatch.demo.world.scenes import write_scenes
        >>> size = dataclasses.replace(QUICK, splits={"train": 4}, sizes_hw=((48, 48),), victim_steps=2)
        >>> with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        ...     scenes = write_scenes(f"{folder}/scenes", 7, size.splits, size.sizes_hw, workers=1)
        ...     study = prepare_study(scenes.parent / "runs", "demo", scenes, size, False, 0, 0, silent)
        ...     study.name, study.read_text().count("tiny_detector")
        ('demo.toml', 1)
    """
    weights = cached_victim(cache_folder(), scenes, size, seed + number, name, on_progress)
    return write_study(runs, name, scenes, weights, size, mlflow, seed)


def cached_victim(cache: Path, scenes: Path, size: Size, seed: int, name: str, on_progress: Progress) -> Path:
    """Return the weights of a victim trained on these scenes; the cache keeps them."""
    tag = digest(
        [victim_module, training_module], scenes=scenes.name, seed=seed, steps=size.victim_steps,
        torch=torch.__version__, threads=torch.get_num_threads(),
    )  # fmt: skip
    path = cache / f"victim-{tag}.safetensors"
    if not path.is_file():
        task = f"training {name.removeprefix('demo-')}"
        data = open_scenes(scenes, size).split("train")
        save_victim(path, train_detector(data, seed, size.victim_steps, on_progress=on_progress, task=task))
    return path


def open_scenes(scenes: Path, size: Size, painted: Path | None = None) -> TargetSet:
    """Read the rendered scenes as a target set.

    Args:
        scenes: The folder of the scenes.
        size: The size of the demo.
        painted: A folder with other renderings of some scenes. Images keep their ids and therefore their
            draws, so the same cameras see the painted truck.

    Example:
        >>> import dataclasses, tempfile
        >>> from fpatch.demo.study import QUICK, open_scenes
        >>> from fpatch.demo.world.scenes import write_scenes
        >>> size = dataclasses.replace(QUICK, splits={"test": 4})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scenes = write_scenes(f"{folder}/scenes", 7, size.splits, size.sizes_hw, workers=1)
        ...     dataset = open_scenes(scenes, size)
        ...     dataset.names, dataset.class_names, dataset.batch(dataset.image_ids)["scene"].shape
        (('side', 'rear'), ('truck',), torch.Size([4, 3, 96, 96]))
    """
    if painted is not None:
        for image in (scenes / "images").iterdir():
            if not (painted / "images" / image.name).exists():
                (painted / "images" / image.name).symlink_to(image.resolve())
    return targets(
        scenes / "placements.csv",
        scenes / "objects.csv",
        size=size.sizes_hw[0],
        root=painted,
        patches=("side", "rear"),
    )


def write_study(
    runs: Path, name: str, scenes: Path, weights: Path, size: Size, mlflow: str | bool, seed: int
) -> Path:
    """Write the study file, from which `fpatch train` repeats the training of the demo."""
    runs.mkdir(parents=True, exist_ok=True)
    height, width = size.sizes_hw[0]
    text = string.Template(files("fpatch.demo").joinpath("demo.toml").read_text("utf-8")).substitute(
        name=name, seed=seed, scenes=scenes, weights=weights, height=height, width=width,
        num_steps=size.num_steps, every=size.num_steps // 3, runs=runs.resolve(), mlflow=json.dumps(mlflow),
    )  # fmt: skip
    path = runs / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path
