"""Exhaustive evaluation: every photograph under every combination of chosen sampled values.

A random sample says how a patch does on the whole; a grid says where it fails. Everything that is not on the
grid is drawn as ever, and by the same keys in every cell, so that cells differ in what the grid says alone.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fpatch import random
from fpatch.conditions import NONE, PATCH, Patches, make_conditions
from fpatch.core.checks import nearest
from fpatch.core.progress import Report
from fpatch.core.types import Params, Sample
from fpatch.data import Dataset
from fpatch.diagnosis import diagnose
from fpatch.evaluation import Evaluation, evaluate
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import override
from fpatch.pictures import make_figure
from fpatch.rates import Success, effects, success
from fpatch.rerun import logged_rows
from fpatch.run_evaluation import Trained, evaluation_key, load_trained, table_name
from fpatch.runs import Run
from fpatch.viz import HeatMap, plot_curves, plot_heat_maps

_PREFIX = "grid/"
_PICTURED = 3
"""Cells at either end of which there is an image."""

Grid = Mapping[str, Sequence[float]]
"""Values by the path of what is sampled, such as {"camera/exposure/stops": [-1.0, 0.0, 1.0]}."""


class Cell(NamedTuple):
    """One combination of values.

    Attributes:
        values: By path.
        success: Rates of its rows.
        rows: Which rows of the table they are.
    """

    values: dict[str, float]
    success: Success
    rows: np.ndarray


def stratify(
    pipeline: Pipeline,
    patch_params: Params,
    dataset: Dataset,
    key: Tensor,
    grid: Grid,
    *,
    num_draws: int = 1,
    block: int = 16,
    conditions: Mapping[str, Patches] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate in every cell of a grid.

    Args:
        pipeline: Of the evaluated phase.
        patch_params: What was trained.
        dataset: The photographs.
        key: What the rest is drawn from.
        grid: Values of at least one path; the last one changes fastest.
        num_draws: Samples per photograph and cell.
        block: Rows that run together.
        conditions: As for `fpatch.evaluate`.
        progress: Called with the rows done and their total.

    Returns:
        An evaluation whose table has the rows of all cells in order, and a column `grid/<path>` per axis.

    Raises:
        ValueError: For an unknown path, an axis without values or with one twice, or a stage that would be
            skipped in some rows whatever its value.
    """
    _check_grid(grid)
    cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    count = len(dataset.image_ids) * num_draws
    tables = []
    for i, cell in enumerate(cells):

        def report(done: int, _: int, before: int = i * count) -> None:
            if progress is not None:
                progress(before + done, len(cells) * count)

        result = evaluate(
            pipeline,
            patch_params,
            dataset,
            key,
            num_draws=num_draws,
            block=block,
            conditions=conditions,
            edit=lambda sample, cell=cell: _place(sample, cell),
            progress=report,
        )
        axes = {f"{_PREFIX}{path}": np.full(count, value) for path, value in cell.items()}
        tables.append(result.table | axes)
    table = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    return Evaluation(table, result.conditions, {})


def cells_of(
    table: Mapping[str, np.ndarray], metric: str = "found", axes: Iterable[str] | None = None
) -> list[Cell]:
    """The cells of a stratified table, in order.

    Args:
        table: Of `stratify`.
        metric: The boolean metric whose failure is a success of the patch.
        axes: Some of the paths: rows that differ in the others only are counted together. None: all.

    Raises:
        ValueError: If the table has no such axis.
    """
    known = [name.removeprefix(_PREFIX) for name in table if name.startswith(_PREFIX)]
    if not known:
        raise ValueError("cells_of: the table has no axis; take one that `stratify` or `fpatch grid` made")
    chosen = known if axes is None else list(axes)
    for path in chosen:
        if path not in known:
            raise ValueError(f"cells_of: the table has no axis {path!r}; {nearest(path, known)}")
    values = np.stack([table[f"{_PREFIX}{path}"] for path in chosen], axis=1)
    different, first, number = np.unique(values, axis=0, return_index=True, return_inverse=True)
    cells = []
    for i in np.argsort(first):
        rows = np.flatnonzero(number.reshape(-1) == i)
        part = {name: column[rows] for name, column in table.items()}
        cells.append(Cell(dict(zip(chosen, different[i].tolist(), strict=True)), success(part, metric), rows))
    return cells


def stratify_run(
    folder: str | Path,
    grid: Grid,
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    report: Report = lambda task, done, total, note: None,
    resources: Mapping[str, Any] | None = None,
) -> tuple[Run, list[Cell]]:
    """Evaluate a run's patch, no patch and noise in every cell, and add table and figures to its folder.

    `tables/<split>-grid` can be replayed like any other; `figures/<split>-grid.png` holds heat maps of all
    pairs of axes (curves, for one axis), and `figures/<split>-grid-cells.png` images of the weakest and
    strongest cells.

    Args:
        folder: The run.
        grid: Values by path.
        split: Which split of the study's data.
        checkpoint: Name of a checkpoint.
        report: Told of progress.
        resources: Live objects by "path/setting" of the pipeline.
    """
    with load_trained(folder, split, checkpoint, resources) as trained:
        run, study = trained.run, trained.study
        key = evaluation_key(study, split)
        made = make_conditions(trained.pipeline, trained.params, random.fold_in(key, "control"))
        result = stratify(
            trained.pipeline,
            trained.params,
            trained.dataset,
            key,
            grid,
            num_draws=study.evaluate.num_draws,
            block=study.evaluate.block,
            conditions={name: made[name] for name in (PATCH, NONE, "noise")},
            progress=lambda done, total: report(f"grid ({split})", done, total, ""),
        )
        name = f"{table_name(split, checkpoint)}-grid"
        cells = cells_of(result.table, study.evaluate.metric)
        with run.locked():
            run.save_evaluation(name, result, study.execution(study.evaluate.block))
            _plot(run.path(f"figures/{name}.png"), result.table, study.evaluate.metric)
            run.write_image(f"figures/{name}-cells.png", _picture_cells(trained, result.table, cells))
    return run, cells


def _plot(path: Path, table: Mapping[str, np.ndarray], metric: str) -> None:
    axes = [name.removeprefix(_PREFIX) for name in table if name.startswith(_PREFIX)]
    if len(axes) == 1:
        cells = cells_of(table, metric)
        curves = {c: [cell.success.rates[c] for cell in cells] for c in cells[0].success.rates}
        plot_curves(path, {axes[0]: ([cell.values[axes[0]] for cell in cells], curves)})
        return
    panels = []
    for y, x in itertools.combinations(axes, 2):
        rates = {tuple(c.values.values()): c.success.rates[PATCH] for c in cells_of(table, metric, (y, x))}
        ys, xs = (list(dict.fromkeys(table[f"{_PREFIX}{path}"].tolist())) for path in (y, x))
        panels.append(HeatMap((x, xs), (y, ys), [[rates.get((v, u)) for u in xs] for v in ys]))
    plot_heat_maps(path, panels)


def _picture_cells(trained: Trained, table: Mapping[str, np.ndarray], cells: Sequence[Cell]) -> Tensor:
    """Images of the weakest and the strongest cells: in each, the row with the median effect."""
    counted = [cell for cell in cells if cell.success.rates[PATCH].count] or list(cells)
    ordered = sorted(counted, key=lambda cell: cell.success.rates[PATCH].value)
    chosen = ordered if len(ordered) <= 2 * _PICTURED else ordered[:_PICTURED] + ordered[-_PICTURED:]
    rows, captions = [], []
    for cell in chosen:
        order = cell.rows[np.argsort(effects(table, trained.study.evaluate.metric)[cell.rows], kind="stable")]
        rows.append(int(order[len(order) // 2]))
        values = ", ".join(f"{path.rpartition('/')[2]} {value:g}" for path, value in cell.values.items())
        captions.append(f"{values}: {100 * cell.success.rates[PATCH].value:.0f} %")
    sample, batch = logged_rows(trained.dataset, table, np.array(rows), trained.study.place)
    diagnosis = diagnose(trained.pipeline, trained.params, sample, batch, "test")
    return make_figure(trained.study, diagnosis, trained.dataset.class_names, captions)


def _place(sample: Sample, cell: Mapping[str, float]) -> Sample:
    """The sample in a cell; what a stage skips at random cannot be stratified."""
    placed = override(sample, cell)
    for path in cell:
        name = next(n for n in placed if path.startswith(f"{n}/"))
        on, node = f"{name}/on", cast("Mapping[str, Tensor]", placed[name])
        if on not in cell and "on" in node and not bool(torch.all(node["on"])):
            raise ValueError(
                f"grid: {path!r} does nothing in rows that skip its stage (p < 1); "
                f"add {on!r} = [1] to the grid"
            )
    return placed


def _check_grid(grid: Grid) -> None:
    if not grid:
        raise ValueError("grid: there must be at least one path with values")
    for path, values in grid.items():
        if len(values) == 0 or len(set(values)) < len(values) or not all(map(math.isfinite, values)):
            raise ValueError(f"grid: {path!r} must have different finite values, got {list(values)}")
