"""Figures of an evaluation: the views of its stages, and the patch beside its control."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fpatch.core.types import Params
from fpatch.data import TargetSet
from fpatch.evaluation.rates import effects, success
from fpatch.evaluation.replaying import logged_rows
from fpatch.evaluation.stage_views import StageViews, view_stages
from fpatch.log import Log
from fpatch.study.study import Study
from fpatch.viz.side_by_side import Panel, side_by_side

_PICTURED = 3
"""Rows drawn of the largest effects, and of the smallest."""


def log_stage_views(
    study: Study, step: int, views: StageViews, names: Sequence[str], log: Log, table: str
) -> None:
    """Log the views of every stage and a figure of the victim's answers, under the table's name."""
    for name, value in views.shown.items():
        full = f"{table}/{name}"
        if value.ndim == 3:
            log.images(step, {full: value})
        elif value.ndim == 0:
            log.scalars(step, {full: float(value)})
        else:
            log.histograms(step, {full: value})
    log.images(step, {f"{table}/control and patched": make_figure(study, views, names)})


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
    """Draw the rows with the largest and the smallest effects, control beside patched image."""
    metric = study.evaluate.metric
    effect, goal = effects(table, metric), success(table, metric).goal
    order = np.argsort(-effect, kind="stable")
    few = min(_PICTURED, len(order) // 2) or 1
    rows = np.concatenate([order[:few], order[few:][-few:]])
    sample, batch = logged_rows(dataset, table, rows, study.place)
    views = view_stages(study.placed.at(phase), params, sample, batch, phase)
    scored, sign = ("score", 1) if goal is None else (f"score of {goal!r}", -1)
    captions = [f"patch, {scored} {_change(sign * float(effect[row]))}" for row in rows]
    return make_figure(study, views, dataset.class_names, captions)


def _change(effect: float) -> str:
    """Return the change of the score as a caption."""
    size = f"{abs(effect):.2f}"
    return "unchanged" if size == "0.00" else f"{size} {'lower' if effect > 0 else 'higher'}"


def _named(label: int, class_names: Sequence[str]) -> str:
    return repr(class_names[label]) if 0 <= label < len(class_names) else f"class {label}"


def make_figure(
    study: Study, views: StageViews, class_names: Sequence[str], captions: Sequence[str] = ("patch",) * 4
) -> torch.Tensor:
    """Draw control and patched images side by side, with the victim's answers; one row per caption."""

    def panel(values: Mapping[str, Any], i: int, caption: str) -> Panel:
        final = values.get("detections", {}).get("final")
        if final is not None:
            truth = values["boxes"][i][values["box_valid"][i]] if "boxes" in values else None
            return Panel(values["image"][i], caption, {n: v[i] for n, v in final.items()}, truth)
        if "confidence" in values:
            answer = f": {_named(int(values['answer'][i]), class_names)}," if "answer" in values else ":"
            caption += f"{answer} {float(values['confidence'][i]):.2f} for the true class"
        return Panel(values["image"][i], caption)

    rows = [
        [panel(views.without, i, "no patch"), panel(views.patched, i, caption)]
        for i, caption in enumerate(captions[: len(views.patched["image"])])
    ]
    return side_by_side(rows, class_names, study.evaluate.score)
