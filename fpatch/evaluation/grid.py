"""Grids: every image under every combination of chosen sampled values.

A random sample shows how well a patch does overall, and a grid shows where it fails. All other values are
drawn from the same keys in every cell, so that cells differ in the values of the grid alone.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fpatch.core.checks import nearest, shown
from fpatch.core.types import Params, Sample
from fpatch.data import Dataset
from fpatch.evaluation.conditions import Patches
from fpatch.evaluation.evaluation import Evaluation, evaluate
from fpatch.evaluation.growing import Growing
from fpatch.evaluation.rates import Success, success
from fpatch.graph.drawable import check_drawable
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import override

AXIS_PREFIX = "grid/"


Grid = Mapping[str, Sequence[float]]
"""Values by the path of a sampled value, such as {"camera/exposure/stops": [-1.0, 0.0, 1.0]}."""


class Cell(NamedTuple):
    """One combination of values.

    Attributes:
        values: The values by path.
        success: The rates of its rows.
        rows: The indices of its rows in the table.
    """

    values: dict[str, float]
    success: Success
    rows: np.ndarray


def evaluate_grid(
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
        pipeline: The pipeline of the evaluated phase.
        patch_params: The trained parameters.
        dataset: The images.
        key: The key of all other sampled values.
        grid: Values of at least one path; the last path changes fastest.
        num_draws: Samples per image and cell.
        block: Rows that run together.
        conditions: As for `fpatch.evaluate`.
        progress: Called with the rows done and their total.

    Returns:
        An evaluation whose table has the rows of all cells in order, and a column `grid/<path>` per axis.

    Raises:
        ValueError: If a path is unknown, an axis has no values or repeats one, or a stage of the grid is
            skipped in some rows.

    Example:
        >>> import tempfile
        >>> from fpatch import random
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.evaluation.grid import evaluate_grid
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        >>> params = test.init(random.key(0))
        >>> result = evaluate_grid(test, params, scenes, random.key(1), {"exposure/stops": [-2.0, 0.0]})
        >>> result.table["grid/exposure/stops"].tolist()
        [-2.0, -2.0, -2.0, -2.0, 0.0, 0.0, 0.0, 0.0]
        >>> result.table["found/none"].tolist()
        [False, False, False, False, True, True, True, True]
    """
    _check_grid(grid)
    check_drawable(pipeline, grid)
    cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    count = len(dataset.image_ids) * num_draws
    table = Growing(len(cells) * count)
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
            edit=lambda sample, cell=cell: set_cell(sample, cell),
            progress=report,
        )
        axes = {f"{AXIS_PREFIX}{path}": np.full(count, value) for path, value in cell.items()}
        table.add(result.table | axes)
    return Evaluation(table.columns(), result.conditions, {})


def cells_of(
    table: Mapping[str, np.ndarray], metric: str = "found", axes: Iterable[str] | None = None
) -> list[Cell]:
    """Return the cells of a grid's table, in order.

    Args:
        table: The table of `evaluate_grid`.
        metric: The boolean metric whose failure is a success of the patch.
        axes: The paths that tell cells apart; cells are pooled over the others. None: all.

    Raises:
        ValueError: If the table has no such axis.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.grid import cells_of
        >>> table = {"image_id": np.arange(4), "grid/light/stops": np.array([-1.0, -1.0, 0.0, 0.0])}
        >>> table |= {"found/none": np.ones(4, bool), "found/patch": np.array([False, False, False, True])}
        >>> [(cell.values, cell.success.rates["patch"].value) for cell in cells_of(table)]
        [({'light/stops': -1.0}, 1.0), ({'light/stops': 0.0}, 0.5)]
    """
    known = [name.removeprefix(AXIS_PREFIX) for name in table if name.startswith(AXIS_PREFIX)]
    if not known:
        raise ValueError(
            "cells_of: the table has no axis; give one that `evaluate_grid` or `fpatch grid` made"
        )
    chosen = known if axes is None else list(axes)
    for path in chosen:
        if path not in known:
            raise ValueError(f"cells_of: the table has no axis {path!r}; {nearest(path, known)}")
    values = np.stack([table[f"{AXIS_PREFIX}{path}"] for path in chosen], axis=1)
    different, first, number = np.unique(values, axis=0, return_index=True, return_inverse=True)
    cells = []
    for i in np.argsort(first):
        rows = np.flatnonzero(number.reshape(-1) == i)
        part = {name: column[rows] for name, column in table.items()}
        cells.append(Cell(dict(zip(chosen, different[i].tolist(), strict=True)), success(part, metric), rows))
    return cells


def by_rate(cell: Cell) -> tuple[bool, float]:
    """Return the key that sorts cells from the weakest success to the strongest, those without one last.

    Without a patch it is the share that is right.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.grid import by_rate, cells_of
        >>> table = {"image_id": np.arange(2), "grid/light/stops": np.array([0.0, 1.0])}
        >>> table |= {"found/none": np.array([True, False]), "found/patch": np.array([False, False])}
        >>> [by_rate(cell) for cell in cells_of(table)]
        [(False, 1.0), (True, 0.0)]
    """
    rate = cell.success.main.value
    return math.isnan(rate), 0.0 if math.isnan(rate) else rate


def set_cell(sample: Sample, cell: Mapping[str, float]) -> Sample:
    """Set the values of a cell in a sample; refuse a stage that is skipped at random."""
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
        with np.errstate(over="ignore"):
            drawn = {float(np.float32(value)) for value in values}  # a sample holds float32
        if len(values) == 0 or len(drawn) < len(values) or not all(map(math.isfinite, drawn)):
            raise ValueError(f"grid: {path!r} must have different finite values, got {shown(list(values))}")
    if (count := math.prod(map(len, grid.values()))) > _MOST_CELLS:
        raise ValueError(f"grid: there must be at most {_MOST_CELLS} cells, got {count}; give fewer values")


_MOST_CELLS = 10_000
