"""Compare a table with the rows that its evaluation draws: their number, images, keys and samples."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch

from fpatch.data import Dataset
from fpatch.data import rows as rows_of
from fpatch.evaluation.blocks import blocks
from fpatch.evaluation.grid import AXIS_PREFIX, set_cell
from fpatch.evaluation.replaying import drawn, same_bits
from fpatch.graph.pipeline import Pipeline

Table = Mapping[str, np.ndarray]
"""Columns of equal length by name."""
_MANY = 100
"""A record that asks for more than this multiple of its table was edited; its rows are not drawn."""


class Expected(NamedTuple):
    """The rows that an evaluation draws, in order.

    Attributes:
        image_id: The images.
        draw: The number of each use of an image.
        cell: The number of the cell of a grid; 0 without one.
        cells: The values of each cell, by path.
    """

    image_id: np.ndarray
    draw: np.ndarray
    cell: np.ndarray
    cells: list[dict[str, float]]


def expected_rows(
    dataset: Dataset, num_draws: int, grid: Mapping[str, Sequence[float]] | None = None
) -> Expected:
    """Return the rows that an evaluation of a data set draws."""
    image_id, draw = (column.numpy() for column in rows_of(dataset.image_ids, num_draws))
    values = itertools.product(*(grid or {}).values())
    cells = [dict(zip(grid or {}, value, strict=True)) for value in values]
    number = np.repeat(np.arange(len(cells)), len(image_id))
    return Expected(np.tile(image_id, len(cells)), np.tile(draw, len(cells)), number, cells)


def axes_of(table: Table) -> dict[str, list[float]]:
    """Return the axes of a grid's table and their values, in order."""
    axes = {n.removeprefix(AXIS_PREFIX): c for n, c in table.items() if n.startswith(AXIS_PREFIX)}
    return {path: list(dict.fromkeys(column.tolist())) for path, column in axes.items()}


def missing_rows(
    table: Table, dataset: Dataset, num_draws: int, grid: Mapping[str, Sequence[float]] | None = None
) -> list[str]:
    """Return a sentence if a table does not hold the expected number of rows."""
    found = len(table["image_id"])
    wanted = len(dataset.image_ids) * num_draws * math.prod(len(axis) for axis in (grid or {}).values())
    if found == wanted:
        return []
    lacking = ""
    if 0 < wanted <= _MANY * found:
        expected = expected_rows(dataset, num_draws, grid)
        drawn, there = (
            Counter(zip(image_id.tolist(), draw.tolist(), strict=True))
            for image_id, draw in ((expected.image_id, expected.draw), (table["image_id"], table["draw"]))
        )
        lacking = ", ".join(f"image {i} draw {d}" for i, d in list((drawn - there).keys())[:3])
    what = f"; it lacks {lacking}" if lacking else ""
    return [f"the table has {found} rows, but its evaluation draws {wanted}{what}"]


def compare_drawn(
    table: Table,
    expected: Expected,
    chosen: Sequence[int],
    pipeline: Pipeline,
    dataset: Dataset,
    key: torch.Tensor,
    block: int,
) -> tuple[dict[int, list[str]], list[str]]:
    """Draw rows again from the key, and compare every column that is not a result.

    Returns:
        A sentence per row and column that differs, and sentences about the table as a whole.
    """
    said: dict[int, list[str]] = {}
    moved: dict[int, tuple[str, str]] = {}
    missing: set[str] = set()
    for rows, columns in _draw(expected, chosen, pipeline, dataset, key, block):
        for name, found in columns.items():
            if name not in table:
                missing.add(name)
                continue
            logged = table[name][rows]
            if name == "path":
                moved |= {r: _heads(a, b) for r, a, b in zip(rows.tolist(), logged, found, strict=True)}
                continue
            for i in np.flatnonzero(~same_bits(logged, found)):
                what = f"{name}: {str(logged[i])[:12]} was logged, {str(found[i])[:12]} is drawn"
                said.setdefault(int(rows[i]), []).append(what)
    common = Counter(moved.values()).most_common(1)[0][0] if moved else ("", "")
    for row, heads in moved.items():
        if heads != common:
            said.setdefault(row, []).append(f"path: {table['path'][row]} is not the image of the row")
    return said, [f"the table lacks the column {name!r}" for name in sorted(missing)]


def _draw(
    expected: Expected,
    chosen: Sequence[int],
    pipeline: Pipeline,
    dataset: Dataset,
    key: torch.Tensor,
    block: int,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Draw the chosen rows, cell by cell; rows whose image cannot be read are left out."""
    picked = np.asarray(chosen, dtype=np.int64)
    for number, cell in enumerate(expected.cells):
        own = picked[expected.cell[picked] == number]
        for part in blocks(len(own), block):
            rows = own[part]
            ids, draw = (torch.from_numpy(c[rows]) for c in (expected.image_id, expected.draw))
            try:
                columns = drawn(
                    pipeline, dataset, key, ids, draw, (lambda s, c=cell: set_cell(s, c)) if cell else None
                )
            except (ValueError, OSError):
                continue  # the replay names the image
            axes = {f"{AXIS_PREFIX}{path}": np.full(len(rows), value) for path, value in cell.items()}
            yield rows, columns | axes


def _heads(logged: Any, found: Any) -> tuple[str, str]:
    """Return the different beginnings of two paths, which are equal for all images if a folder has moved."""
    a, b = PurePath(str(logged)).parts, PurePath(str(found)).parts
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return "/".join(a), "/".join(b)
