"""Evaluate a run in every cell of a grid, with heat maps and images of the cells.

`fpatch.evaluation.grid` measures a pipeline on a data set; this module opens the run and its study for it.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fpatch import random
from fpatch.core.display import shown
from fpatch.core.names import label
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress
from fpatch.evaluation.columns import numbers_of
from fpatch.evaluation.conditions import NONE, PATCH, TITLES, make_conditions
from fpatch.evaluation.grid import AXIS_PREFIX, Cell, Grid, by_rate, cells_of, evaluate_grid
from fpatch.evaluation.means import rows_with_object
from fpatch.evaluation.rates import RIGHT, Success, axis_label, effects
from fpatch.evaluation.replaying import logged_rows
from fpatch.evaluation.stage_views import view_stages
from fpatch.metrics import Rate
from fpatch.runs.claims import OF_GRIDS
from fpatch.runs.evaluating import Trained, load_trained
from fpatch.runs.figures import REPORT_PX, make_figure
from fpatch.runs.folder import Run
from fpatch.runs.naming import grid_name, table_name, warn_of_replaced
from fpatch.runs.tables import record_files
from fpatch.study.splits import evaluation_key
from fpatch.viz import HeatMap, plot_curves, plot_heat_maps
from fpatch.viz.names import short_paths

_PICTURED = 3
"""Cells drawn of the weakest, and of the strongest."""


@plain_torch(grad=True)
def evaluate_grid_run(
    folder: str | Path,
    grid: Grid,
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    on_progress: Progress | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> tuple[Run, list[Cell]]:
    """Evaluate a run's patch, no patch and noise in every cell, and add table and figures to its folder.

    A run without a patch is measured by what its network gets right in every cell.

    `tables/<name>` can be replayed like any other table. `figures/<name>.png` holds heat maps of all pairs of
    axes, each beside a map of the difference from noise, or curves for one axis. `figures/<name>-cells.png`
    holds images of the weakest and strongest cells. The name is that of `fpatch.runs.naming.grid_name`.

    Args:
        folder: The run folder.
        grid: Values by path.
        split: The split of the study's data.
        checkpoint: The name of a checkpoint.
        on_progress: Called with the progress; None: bars or lines on standard error.
        resources: Live objects by "path/setting" of the pipeline.
        settings: As for `evaluate_run`.
        data_root: As for `evaluate_run`.
    """
    opened = load_trained(folder, split, checkpoint, resources, settings, data_root)
    with Run.open(folder).locked(), opened as trained, shown(on_progress) as show:
        run, study = trained.run, trained.study
        key = evaluation_key(study, split)
        made = make_conditions(trained.pipeline, trained.params, random.fold_in(key, "control"))
        result = evaluate_grid(
            trained.pipeline,
            trained.params,
            trained.dataset,
            key,
            grid,
            num_draws=study.evaluate.num_draws,
            block=study.evaluate.block,
            conditions={name: made[name] for name in OF_GRIDS if name in made},
            progress=lambda done, total: show(f"grid ({split})", done, total, ""),
        )
        name = grid_name(split, checkpoint, grid, trained.settings)
        cells = cells_of(result.table, study.evaluate.metric)
        facts = trained.facts(checkpoint) | {"grid": {path: list(v) for path, v in grid.items()}}
        warn_of_replaced(run, name, facts)
        run.save_evaluation(name, result, study.execution(study.evaluate.block), **facts)
        table = table_name(split, checkpoint, trained.settings)
        title = f"{study.name}: {table}, step {trained.step}"
        _plot(run.path(f"figures/{name}.png"), result.table, study.evaluate.metric, title)
        run.write_image(f"figures/{name}-cells.png", _picture_cells(trained, result.table, cells))
        record_files(run.folder, name, [f"figures/{name}.png", f"figures/{name}-cells.png"])
    return run, cells


def _plot(path: Path, table: Mapping[str, np.ndarray], metric: str, title: str) -> None:
    axes = [name.removeprefix(AXIS_PREFIX) for name in table if name.startswith(AXIS_PREFIX)]
    cells = cells_of(table, metric)
    asked = axis_label(cells[0].success.goal, bool(cells[0].success.rates))
    if len(axes) == 1:
        curves = {c: [cell.success.shown[c] for cell in cells] for c in cells[0].success.shown}
        points = [cell.values[axes[0]] for cell in cells]
        plot_curves(path, {label(axes[0]): (points, curves)}, title, TITLES | {NONE: "no patch"}, asked)
        return
    pairs = itertools.combinations(axes, 2)
    plot_heat_maps(path, [_heat_map(table, metric, y, x) for y, x in pairs], asked, title)


def _heat_map(table: Mapping[str, np.ndarray], metric: str, y: str, x: str) -> HeatMap:
    """Make the panel of two axes: success, and its difference from the strongest control of each cell."""
    found = {tuple(c.values.values()): c.success for c in cells_of(table, metric, (y, x))}
    ys, xs = (list(dict.fromkeys(table[f"{AXIS_PREFIX}{path}"].tolist())) for path in (y, x))
    controls = list(dict.fromkeys(name for s in found.values() for name in s.over))

    def by_cell(value: Callable[[Success], Rate]) -> list[list[Rate | None]]:
        return [[value(found[v, u]) if (v, u) in found else None for u in xs] for v in ys]

    return HeatMap(
        (label(x), xs),
        (label(y), ys),
        by_cell(lambda s: s.main),
        by_cell(_over_strongest) if controls else None,
        by_cell(lambda s: s.clean) if controls else None,
        controls[0] if len(controls) == 1 else "the strongest control",
    )


def _over_strongest(rates: Success) -> Rate:
    """Return the patch's rate minus that of the control with the highest rate."""
    return rates.over[max(rates.over, key=lambda name: np.nan_to_num(rates.rates[name].value, nan=-1.0))]


def _picture_cells(trained: Trained, table: Mapping[str, np.ndarray], cells: Sequence[Cell]) -> Tensor:
    """Draw the weakest and the strongest cells, each by its row with the median effect.

    Without a patch, the row shows what is the case in most rows: right, or wrong.
    """
    counted = [cell for cell in cells if not math.isnan(cell.success.main.value)] or list(cells)
    ordered = sorted(counted, key=by_rate)
    chosen = ordered if len(ordered) <= 2 * _PICTURED else ordered[:_PICTURED] + ordered[-_PICTURED:]
    rows, captions = [], []
    metric = trained.study.evaluate.metric
    attacked = bool(cells[0].success.rates)
    main = f"{metric}/{PATCH if attacked else NONE}"
    real = rows_with_object(table, main)
    effect = effects(table, metric) if attacked else numbers_of(table, main)
    for cell in chosen:
        own = cell.rows[real[cell.rows]] if real[cell.rows].any() else cell.rows
        order = own[np.argsort(effect[own], kind="stable")]
        rows.append(int(order[len(order) // 2]))
        named = zip(short_paths(list(cell.values)), cell.values.values(), strict=True)
        values = ", ".join(f"{name} = {value:g}" for name, value in named)
        rate, word = cell.success.main.value, "success" if attacked else RIGHT
        found = "no rate" if math.isnan(rate) else f"{word}\u00a0{100 * rate:.0f}\u00a0%"
        captions.append(f"{values}, {found}")
    sample, batch = logged_rows(trained.dataset, table, np.array(rows), trained.study.place)
    views = view_stages(trained.pipeline, trained.params, sample, batch, "test")
    return make_figure(trained.study, views, trained.dataset.class_names, captions, REPORT_PX)
