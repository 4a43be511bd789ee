"""Figures of an evaluation: the views of its stages, and the patch beside its control."""

import logging
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from fpatch.core.types import Params
from fpatch.data import TargetSet
from fpatch.evaluation.by_class import from_json
from fpatch.evaluation.conditions import PATCH
from fpatch.evaluation.means import rows_with_object
from fpatch.evaluation.rates import axis_label, effects, success
from fpatch.evaluation.replaying import logged_rows
from fpatch.evaluation.stage_views import StageViews, view_stages
from fpatch.log import Log
from fpatch.runs.folder import Run
from fpatch.study.study import Study
from fpatch.viz.class_figure import plot_classes
from fpatch.viz.side_by_side import Panel, side_by_side

_logger = logging.getLogger(__name__)

REPORT_PX = 640
"""The width of a panel in the figures of a run folder; in the log it is half of that."""

_MOST_ROWS = 4
_PICTURED = 3
"""Rows drawn of the largest effects, and of the smallest."""


def log_stage_views(
    study: Study, step: int, views: StageViews, names: Sequence[str], log: Log, table: str
) -> None:
    """Log the views of every stage and a figure of the victim's answers, under the table's name.

    A drawing that fails is a warning: no picture is worth a training.
    """
    for path, error in views.failed.items():
        _logger.warning("%s: the drawing %r failed: %s: %s", table, path, type(error).__name__, error)
    for name, value in views.shown.items():
        full = f"{table}/{name}"
        if value.ndim == 3:
            log.images(step, {full: value})
        elif value.ndim == 0:
            log.scalars(step, {full: float(value)})
        else:
            log.histograms(step, {full: value})
    pair = "control and patched" if study.makes_patch else "answers"
    log.images(step, {f"{table}/{pair}": make_figure(study, views, names)})


def view_first_block(
    study: Study, params: Params, dataset: TargetSet, table: Mapping[str, np.ndarray], phase: str
) -> StageViews:
    """View all stages on the first block of an evaluation."""
    rows = slice(0, study.evaluate.block)
    sample, batch = logged_rows(dataset, table, rows, study.place)
    return view_stages(study.placed.at(phase), params, sample, batch, phase)


def picture_effects(
    study: Study, params: Params, dataset: TargetSet, table: Mapping[str, np.ndarray], phase: str
) -> torch.Tensor:
    """Draw the rows with the largest and the smallest effects, control beside patched image.

    Every image is drawn once: by its largest effect, or by its smallest among the last rows.
    Rows that are not finite have no effect: they are drawn where no other is there.
    """
    metric = study.evaluate.metric
    effect, goal = effects(table, metric), success(table, metric).goal
    real = rows_with_object(table, f"{metric}/{PATCH}")
    order = np.argsort(np.where(real, -effect, np.nan), kind="stable")  # NaN last
    order = order[: max(int((real & np.isfinite(effect)).sum()), 1)]
    rows = _choose_extremes(order, table["image_id"])
    sample, batch = logged_rows(dataset, table, rows, study.place)
    views = view_stages(study.placed.at(phase), params, sample, batch, phase)
    scored, sign = ("score", 1) if goal is None else (f"score of {goal!r}", -1)
    captions = [f"patch, {scored} {_change(sign * float(effect[row]))}" for row in rows]
    return make_figure(study, views, dataset.class_names, captions, REPORT_PX)


def _choose_extremes(order: np.ndarray, image_id: np.ndarray) -> np.ndarray:
    """Choose the first and the last of some ordered rows, one of each image."""
    few = min(_PICTURED, len(np.unique(image_id[order])) // 2) or 1
    chosen: list[int] = []
    for rows, count in ((order, few), (order[::-1], 2 * few)):
        for row in rows.tolist():
            if len(chosen) < count and image_id[row] not in image_id[chosen]:
                chosen.append(row)
    return np.array([*chosen[:few], *chosen[few:][::-1]])


def first_of_images(image_id: np.ndarray, count: int) -> list[int]:
    """Return the first row of each of the first images.

    Example:
        >>> import numpy as np
        >>> from fpatch.runs.figures import first_of_images
        >>> first_of_images(np.array([7, 7, 3, 7, 9]), 2)
        [0, 2]
    """
    return sorted(np.unique(image_id, return_index=True)[1].tolist())[:count]


def picture_classes(run: Run, study: str, table: str, summary: Mapping[str, Any]) -> list[str]:
    """Draw the results by class, and return the name of the file; none without matplotlib.

    Args:
        run: The run folder.
        study: The name of the study.
        table: The name of the evaluation.
        summary: Its summary, with the results of every object or of every row by class, or none.
    """
    classes = summary.get("objects", {}).get("classes") or summary.get("classes")
    if not classes or find_spec("matplotlib") is None:
        return []
    found, name = from_json(classes, summary.get("goal")), f"figures/{table}-classes.png"
    plot_classes(run.path(name), found, axis_label(found.goal, found.attacked), f"{study}: {table} by class")
    return [name]


def _change(effect: float) -> str:
    """Return the change of the score as a caption."""
    if math.isnan(effect):
        return "not finite"
    size = f"{abs(effect):.2f}"
    return "unchanged" if size == "0.00" else f"{size} {'lower' if effect > 0 else 'higher'}"


def make_figure(
    study: Study,
    views: StageViews,
    class_names: Sequence[str],
    captions: Sequence[str] | None = None,
    panel_px: int = 320,
) -> torch.Tensor:
    """Draw control and patched images side by side, with the victim's answers and the true class.

    Where the study makes no patch, each image is drawn once.

    Args:
        study: The study.
        views: The views of some rows.
        class_names: The names of the classes.
        captions: The captions of the patched images, one per row; None: "patch", for one row of each of the
            first images. Without a patch they are those of the images.
        panel_px: The width of an image.
    """
    count = len(views.patched["image"])
    if captions is None:
        image_id = views.patched.get("image_id", torch.arange(count))
        rows = first_of_images(image_id.numpy(), _MOST_ROWS)
        captions = ["patch" if study.makes_patch else "no patch"] * len(rows)
    else:
        rows = list(range(min(len(captions), count)))

    def named(label: int) -> str:
        return repr(class_names[label]) if 0 <= label < len(class_names) else f"class {label}"

    def panel(values: Mapping[str, Any], i: int, caption: str) -> Panel:
        final = values.get("detections", {}).get("final")
        if final is not None:
            truth = values["boxes"][i][values["box_valid"][i]] if "boxes" in values else None
            return Panel(values["image"][i], caption, {n: v[i] for n, v in final.items()}, truth)
        if "confidence" in values:
            truth = f"{named(int(values['label'][i]))}" if "label" in values else "the true class"
            answer = f": {named(int(values['answer'][i]))}," if "answer" in values else ":"
            caption += f"{answer} {float(values['confidence'][i]):.2f} for {truth}"
        return Panel(values["image"][i], caption)

    drawn = [
        [*([panel(views.without, i, "no patch")] if study.makes_patch else []), panel(views.patched, i, said)]
        for i, said in zip(rows, captions, strict=False)
    ]
    return side_by_side(drawn, class_names, study.evaluate.score, panel_px)
