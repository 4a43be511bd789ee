"""Three measurements that `fpatch demo` adds to an evaluated run.

They are success against the score threshold, success against the area of the patch, and the rendered trial.
In the rendered trial the renderer paints the patch on the truck, and the implant takes no part.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fpatch.core.progress import Progress
from fpatch.core.tree import to_device
from fpatch.core.types import Sample
from fpatch.data import TargetSet, write_image
from fpatch.demo.study import Size, open_scenes
from fpatch.demo.world.scenes import render_textured
from fpatch.evaluation.conditions import NONE, PATCH, TITLES
from fpatch.evaluation.evaluation import Evaluation, evaluate
from fpatch.evaluation.rates import Success, success
from fpatch.evaluation.thresholds import threshold_curve
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


class Result(NamedTuple):
    """The results of one victim and of the patch trained against it."""

    run: Run
    study: Study
    rates: Success
    precision: dict[str, float]
    clean_precision: float
    area: dict[str, list[Rate]]
    shares: list[float]


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
    """Evaluate some conditions with the draws of the test split.

    Args:
        trained: The run.
        conditions: Patches by condition.
        on_progress: Called with the progress of the task.
        dataset: Scenes, as they are or painted.
        task: Name of the measurement on the progress bar.
        names: The conditions to evaluate.
        side: Side of the patch relative to the panel, in place of the drawn one.
        pipeline: In place of that of the run.
    """
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
    write_image(result.run.path("figures/demo.png"), side_by_side(rows, class_names, panel_px=480))


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
