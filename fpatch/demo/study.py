"""`fpatch demo`: render scenes, train victims, then train and evaluate a study on each, and measure more.

The demo adds data, victims and three measurements of the trained patch to a study: success against the score
threshold, success against area, and the rendered trial. In the rendered trial the renderer paints the patch
on the truck, and the implant takes no part.
"""

import json
import os
import string
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fpatch.core.progress import Progress
from fpatch.core.tree import to_device
from fpatch.core.types import Sample
from fpatch.data import TargetSet, targets, write_image
from fpatch.demo import victim as victim_module
from fpatch.demo.victim import save_victim, train_victim
from fpatch.demo.world.scenes import SIZES_HW, cached_scenes, digest, render_textured
from fpatch.evaluation.conditions import NONE, PATCH, TITLES
from fpatch.evaluation.evaluation import Evaluation, evaluate
from fpatch.evaluation.rates import Success, success, threshold_curve
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import override
from fpatch.metrics import Rate, average_precision
from fpatch.ops.geometry import box_area, quad_area
from fpatch.runs.evaluating import Trained, load_trained
from fpatch.runs.folder import Run
from fpatch.study.splits import evaluation_key
from fpatch.study.study import Study
from fpatch.viz import Panel, plot_curves, side_by_side

THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(17))
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


class Result(NamedTuple):
    """The results of one victim and of the patch trained against it."""

    run: Run
    study: Study
    rates: Success
    precision: dict[str, float]
    clean_precision: float
    area: dict[str, list[Rate]]
    shares: list[float]


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
        [victim_module], scenes=scenes.name, seed=seed, steps=size.victim_steps, torch=torch.__version__,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    path = cache / f"victim-{tag}.safetensors"
    if not path.is_file():
        data = open_scenes(scenes, size).split("train")
        batch = data.batch(data.image_ids)
        images = (batch["scene"] * 255).round().byte()
        model = train_victim(
            images, batch["boxes"], batch["labels"], batch["box_valid"], seed, size.victim_steps,
            progress=lambda i, n: on_progress(f"training {name.removeprefix('demo-')}", i, n, ""),
        )  # fmt: skip
        save_victim(path, model)
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
    text = string.Template(files("fpatch.demo").joinpath("demo.toml").read_text()).substitute(
        name=name, seed=seed, scenes=scenes, weights=weights, height=height, width=width,
        num_steps=size.num_steps, every=size.num_steps // 3, runs=runs.resolve(), mlflow=json.dumps(mlflow),
    )  # fmt: skip
    path = runs / f"{name}.toml"
    path.write_text(text)
    return path


def look_closer(folder: Path, scenes: Path, size: Size, on_progress: Progress) -> Result:
    """Measure a run further: AP, curves over thresholds and area, and the rendered trial."""
    with load_trained(folder) as trained:
        return _look_closer(trained, scenes, size, on_progress)


def _look_closer(trained: Trained, scenes: Path, size: Size, on_progress: Progress) -> Result:
    run, study, test = trained.run, trained.study, trained.dataset
    conditions = to_device(run.load_conditions("test"), study.place)
    table = run.load_table("test")
    measure = partial(_measure, trained, conditions, on_progress)

    same = measure(test, "average precision", tuple(conditions))
    precision = {name: _precision(values) for name, values in same.kept.items()}
    camera = [path for path in trained.pipeline if path.startswith("camera/")]
    clean = measure(test, "without the camera", (PATCH, NONE), pipeline=trained.pipeline.without(*camera))

    with _painted_scenes(scenes, size, conditions[PATCH]["patch"], on_progress) as painted:
        rendered = measure(painted, "rendered trial", (PATCH, NONE))
    table |= {
        f"{metric}/rendered": rendered.table[f"{metric}/{NONE}"]
        for metric in ("found", "displaced", "best_score")
    }
    precision["rendered"] = _precision(rendered.kept[NONE])
    rates = success(table)

    parts = [
        success(measure(test, f"side {side:g} of the panel", (PATCH, NONE, "noise"), side).table)
        for side in size.sides
    ]
    area = {name: [found.rates[name] for found in parts] for name in (PATCH, "noise")}
    shares = [side**2 * covered_share(test) for side in size.sides]
    result = Result(run, study, rates, precision, _precision(clean.kept[NONE]), area, shares)
    save_figures(result, table, same, rendered, test.class_names)
    run.write_json("tables/demo.json", to_json(result))
    return result


def _measure(
    trained: Trained,
    conditions: Mapping[str, Any],
    on_progress: Progress,
    dataset: TargetSet,
    task: str,
    names: tuple[str, ...],
    side: float | None = None,
    pipeline: Pipeline | None = None,
) -> Evaluation:
    """Evaluate some conditions with the draws of the test split; `side` replaces the drawn side."""
    study = trained.study

    def resized(sample: Sample) -> Sample:
        return sample if side is None else override(sample, {"implant_exactly/scale": side})

    kept = ("image", "detections", "boxes", "labels", "box_valid")
    return evaluate(
        trained.pipeline if pipeline is None else pipeline, {}, dataset, evaluation_key(study, "test"),
        block=study.evaluate.block, edit=resized, keep=kept,
        conditions={name: conditions[name] for name in names},
        progress=lambda i, n: on_progress(task, i, n, ""),
    )  # fmt: skip


@contextmanager
def _painted_scenes(
    scenes: Path, size: Size, patches: Mapping[str, torch.Tensor], on_progress: Progress
) -> Iterator[TargetSet]:
    """Render the test scenes again, with the patches painted on the truck."""
    textures = {name: patch.permute(1, 2, 0).numpy() for name, patch in patches.items()}
    with tempfile.TemporaryDirectory(prefix="fpatch-") as folder:
        root = Path(folder) / "scenes"
        render_textured(
            scenes, root, "test", textures, progress=lambda i, n: on_progress("rendering the patch", i, n, "")
        )
        yield open_scenes(scenes, size, root).split("test")


def _precision(values: Mapping[str, Any]) -> float:
    return average_precision(
        values["detections"]["final"], values["boxes"], values["labels"], values["box_valid"]
    )


def covered_share(test: TargetSet) -> float:
    """Return the share of an object's box that all patches cover, as the median over images."""
    batch = test.batch(test.image_ids)
    covered = (quad_area(batch["quads"]) * batch["quad_valid"]).sum(-1)
    return float((covered / box_area(batch["boxes"][:, 0])).median())


# -- figures and numbers -------------------------------------------------------------------------------------


def save_figures(
    result: Result,
    table: Mapping[str, np.ndarray],
    same: Evaluation,
    rendered: Evaluation,
    class_names: Sequence[str],
) -> None:
    """Draw the curves, and scenes without the patch, with the patch implanted and rendered."""
    names = [c for c in TITLES if f"best_score/{c}" in table]
    counted = [i for i, rate in enumerate(threshold_curve(table, THRESHOLDS, PATCH)) if rate.low == rate.low]
    thresholds = [THRESHOLDS[i] for i in counted]  # elsewhere too few scenes count for a curve
    panels: dict[str, Any] = {
        "score threshold": (thresholds, {c: threshold_curve(table, thresholds, c) for c in names})
    }
    if result.shares:
        panels["share of the box covered (%)"] = ([100 * s for s in result.shares], result.area)
    plot_curves(result.run.path("figures/curves.png"), panels, result.study.name, TITLES)
    fooled = np.flatnonzero(table[f"found/{NONE}"] & ~table[f"found/{PATCH}"])
    picked = [int(i) for i in (fooled if len(fooled) else np.arange(3))[:3]]
    truth = same.kept[NONE]

    def panel(values: Mapping[str, Any], i: int, caption: str) -> Panel:
        final = {n: v[i] for n, v in values["detections"]["final"].items()}
        return Panel(values["image"][i], caption, final, truth["boxes"][i][truth["box_valid"][i]])

    rows = [
        [
            panel(same.kept[NONE], i, "no patch"),
            panel(same.kept["noise"], i, "noise"),
            panel(same.kept[PATCH], i, "trained patch, implanted"),
            panel(rendered.kept[NONE], i, "trained patch, rendered"),
        ]
        for i in picked
    ]
    write_image(result.run.path("figures/demo.png"), side_by_side(rows, class_names, panel_px=256))


def to_json(result: Result) -> dict[str, Any]:
    """Return the numbers of the demo as JSON values."""
    return {
        "ap50_clean": result.clean_precision,
        "ap50": result.precision,
        "success": {c: rate._asdict() for c, rate in result.rates.rates.items()},
        "over": {c: rate._asdict() for c, rate in result.rates.over.items()},
        "area_share": result.shares,
        "area": {c: [rate._asdict() for rate in rates] for c, rates in result.area.items()},
    }
