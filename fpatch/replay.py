"""Run logged rows again, from their logged samples and nothing else, and say what differs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fpatch.checks import nearest
from fpatch.columns import from_columns
from fpatch.data import Dataset
from fpatch.evaluate import Patches, blocks, measure, result_columns
from fpatch.pipeline import Pipeline

_PREFIX = "sample/"


class Replay(NamedTuple):
    """What came out.

    Attributes:
        rows: Numbers of the rows in the logged table.
        columns: The results, as columns like the logged ones.
        differences: Per row that differs, a sentence per column.
    """

    rows: np.ndarray
    columns: dict[str, np.ndarray]
    differences: dict[int, list[str]]


def replay(
    pipeline: Pipeline,
    conditions: Mapping[str, Patches],
    dataset: Dataset,
    table: Mapping[str, np.ndarray],
    rows: Sequence[int] | None = None,
    *,
    block: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Rerun rows of a table and compare photographs, composed images and results.

    Samples come from the table's columns, never from a key.

    Args:
        pipeline: Of the evaluated phase.
        conditions: The patches that were shown.
        dataset: Where the photographs are.
        table: Columns of `fpatch.evaluate.Evaluation`.
        rows: Which, in any order; None for all.
        block: Rows that run together, as recorded.
        progress: Called with the rows done and their total.

    Raises:
        ValueError: If a row does not exist, or the table lacks samples.
    """
    total = len(table["image_id"])
    chosen = np.arange(total) if rows is None else np.asarray(rows, dtype=np.int64)
    if outside := [int(r) for r in chosen if not 0 <= r < total]:
        raise ValueError(f"replay: row {outside[0]} does not exist; the table has rows 0 to {total - 1}")
    samples = {n.removeprefix(_PREFIX): c for n, c in table.items() if n.startswith(_PREFIX)}
    parts: list[dict[str, np.ndarray]] = []
    differences: dict[int, list[str]] = {}
    for part in blocks(len(chosen), block):
        picked = chosen[part]
        ids, draw = (torch.from_numpy(table[n][picked].astype(np.int64)) for n in ("image_id", "draw"))
        sample = from_columns({name: column[picked] for name, column in samples.items()})
        batch = dataset.batch(ids, draw)
        columns = result_columns(measure(pipeline, conditions, sample, batch, block))
        columns["photograph"] = np.array([dataset.digest(i) for i in ids.tolist()])
        for row, found in compare(table, columns, picked):
            differences.setdefault(row, []).append(found)
        parts.append(columns)
        if progress is not None:
            progress(part.stop, len(chosen))
    merged = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else {}
    return Replay(chosen, merged, differences)


def compare(
    table: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray], rows: Iterable[int]
) -> Iterable[tuple[int, str]]:
    """What is not bit for bit as it was logged: row and sentence."""
    picked = np.asarray(list(rows))
    for name, found in columns.items():
        if name not in table:
            raise ValueError(f"replay: the table has no column {name!r}; {nearest(name, table)}")
        logged = table[name][picked]
        same = logged == found
        if logged.dtype.kind == "f":
            same |= np.isnan(logged) & np.isnan(found)
        for i in np.flatnonzero(~same):
            if logged.dtype.kind in "fib":
                gap = abs(float(logged[i]) - float(found[i]))
                yield int(picked[i]), f"{name}: {logged[i]!s} was logged, {found[i]!s} came out (differs by {gap:.3g})"
            else:
                yield int(picked[i]), f"{name}: {str(logged[i])[:12]} was logged, {str(found[i])[:12]} came out"
