"""Replay: run logged rows again from their logged samples alone, and report every difference."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fpatch.core.checks import check_number, nearest
from fpatch.core.types import Batch, Sample, Values
from fpatch.data import Dataset
from fpatch.evaluation.blocks import blocks, complete, find_device, measure
from fpatch.evaluation.columns import (
    ANSWER,
    LABEL,
    goal_columns,
    is_finite_column,
    metric_names,
    result_columns,
    row_digests,
)
from fpatch.evaluation.conditions import Patches
from fpatch.evaluation.coverage import IMAGE, OBJECT
from fpatch.evaluation.evaluation import describe_rows
from fpatch.evaluation.growing import Growing
from fpatch.graph.drawable import check_placed
from fpatch.graph.functions import replayed
from fpatch.graph.keys import row_keys
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import from_columns, to_columns

_PREFIX = "sample/"


class Replay(NamedTuple):
    """The result of a replay.

    Attributes:
        rows: Indices in the logged table of the rows that were rerun.
        columns: The results of the rows whose image can be read, in columns like the logged ones.
        differences: For each row that differs, a sentence per column.
        largest: The largest difference of a number.
    """

    rows: np.ndarray
    columns: dict[str, np.ndarray]
    differences: dict[int, list[str]]
    largest: float


def replay(
    pipeline: Pipeline,
    conditions: Mapping[str, Patches],
    dataset: Dataset,
    table: Mapping[str, np.ndarray],
    rows: Sequence[int] | None = None,
    *,
    block: int = 16,
    edit: Callable[[Sample], Sample] | None = None,
    keep: Sequence[str] = (),
    on_block: Callable[[np.ndarray, Mapping[str, Values]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Rerun rows of a table and compare samples, original images, composed images and results.

    Samples come from the table's columns, never from a key. A row whose original image cannot be read counts
    as different, and is not among the columns.

    Args:
        pipeline: The pipeline of the evaluated phase.
        conditions: The patches shown.
        dataset: The original images.
        table: The `table` of an evaluation: columns by name.
        rows: Indices of rows, in any order; None: all.
        block: Rows that run together, as recorded.
        edit: A function of every sample, such as one that calls `override`, for a counterfactual; its effect
            is the difference.
        keep: Names of further values [n, ...] for `on_block`, such as "image".
        on_block: Called after every block with its row indices and its results, as `measure` returns them.
        progress: Called with the rows done and their total.

    Raises:
        ValueError: If a row does not exist, or the table lacks samples.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate, random, replay
        >>> from fpatch.demo.tiny import tiny_study
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        >>> result = evaluate(test, test.init(random.key(0)), scenes, random.key(1), num_draws=2)
        >>> again = replay(test, result.conditions, scenes, result.table)
        >>> again.rows.tolist(), again.differences, again.largest
        ([0, 1, 2, 3, 4, 5, 6, 7], {}, 0.0)
    """
    check_number("replay: block", block, 1)
    total = len(table["image_id"])
    chosen = np.arange(total) if rows is None else np.asarray(rows, dtype=np.int64)
    if outside := [int(r) for r in chosen if not 0 <= r < total]:
        raise ValueError(f"replay: row {outside[0]} does not exist; the table has rows 0 to {total - 1}")
    columns, done = Growing(len(chosen)), Growing(len(chosen))
    differences: dict[int, list[str]] = {}
    largest = 0.0
    device = find_device(pipeline, conditions)
    for part in blocks(len(chosen), block):
        unreadable = _find_unreadable(dataset, table["image_id"][chosen[part]].tolist(), device)
        is_lost = np.isin(table["image_id"][chosen[part]], list(unreadable))
        for row in chosen[part][is_lost].tolist():
            differences[row] = [unreadable[int(table["image_id"][row])]]
        picked = chosen[part][~is_lost]
        if len(picked):
            sample, batch = logged_rows(dataset, table, picked, device)
            digests = row_digests(to_columns(sample if edit is None else edit(sample)))
            sample = replayed(pipeline, sample) if edit is None else edit(sample)
            if edit is not None:
                check_placed(pipeline, sample, batch)
            results = measure(pipeline, conditions, sample, batch, block, keep)
            found = result_columns(results, metric_names(pipeline))
            found |= goal_columns(pipeline, dataset.class_names, len(picked))
            found["photograph"] = np.array([dataset.digest(i) for i in batch["image_id"].tolist()])
            found["sample"] = digests
            for row, sentence, gap in compare(table, found, picked):
                differences.setdefault(row, []).append(sentence)
                largest = max(largest, gap)
            columns.add(found)
            if on_block is not None:
                on_block(picked, results)
        done.add({"row": chosen[part]})
        if progress is not None:
            progress(part.stop, len(chosen))
    return Replay(done.columns().get("row", chosen), columns.columns(), differences, largest)


def logged_rows(
    dataset: Dataset,
    table: Mapping[str, np.ndarray],
    rows: np.ndarray | slice,
    device: torch.device | str | None = None,
) -> tuple[Sample, Batch]:
    """Read the samples of some rows from a table, and their images from the data; scenes go to a device.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate, random
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.evaluation.replaying import logged_rows
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        >>> result = evaluate(test, test.init(random.key(0)), scenes, random.key(1))
        >>> sample, batch = logged_rows(scenes, result.table, slice(0, 2))
        >>> sample["exposure"]["stops"].shape, batch["scene"].shape, batch["draw"]
        (torch.Size([2]), torch.Size([2, 3, 24, 32]), tensor([0, 0]))
    """
    columns = {n.removeprefix(_PREFIX): c[rows] for n, c in table.items() if n.startswith(_PREFIX)}
    ids, draw = (torch.from_numpy(table[n][rows].astype(np.int64)) for n in ("image_id", "draw"))
    # `dataset.batch` would refuse two rows with one image and draw; they matter for drawing alone
    return from_columns(columns), {**dataset.batch(ids, device=device), "draw": draw}


def _find_unreadable(dataset: Dataset, image_ids: Iterable[int], device: torch.device) -> dict[int, str]:
    """Find original images that are missing or broken, each with its error."""
    problems = {}
    for image_id in dict.fromkeys(image_ids):
        try:
            dataset.batch([image_id], device=device)
        except (ValueError, OSError) as error:
            problems[image_id] = f"original image: {error}"
    return problems


def compare(
    table: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray], picked: np.ndarray
) -> Iterator[tuple[int, str, float]]:
    """Yield each value that is not the logged one bit for bit: row, sentence, and numeric difference or 0."""
    results = [n for n in table if "/" in n and not n.startswith((_PREFIX, "key/", "grid/"))]
    results = [n for n in results if f"{ANSWER}/delta" not in n]
    known = {part for name in table for part in name.split("/")}
    for name in sorted(set(results) - set(columns)):
        yield from (
            (row, f"{name}: was logged, and is missing in the replay", 0.0) for row in picked.tolist()
        )
    for name, found in columns.items():
        if {ANSWER, LABEL} & set(name.split("/")) - known:
            continue  # an older version did not write the class of the object, or what a detector calls it
        if name not in table and name.startswith((IMAGE, OBJECT)):
            continue  # nor what a patch covers
        if name not in table and is_finite_column(name) and not any(map(is_finite_column, table)):
            logged = np.ones_like(found)  # a table of an earlier version, where every row counts
        elif name not in table:
            raise ValueError(f"replay: the table has no column {name!r}; {nearest(name, table)}")
        else:
            logged = table[name][picked]
        for i in np.flatnonzero(~same_bits(logged, found)):
            if logged.dtype.kind in "fib" and found.dtype.kind in "fib":
                gap = abs(float(logged[i]) - float(found[i]))
                gap = math.inf if math.isnan(gap) else gap  # a number became NaN, or the reverse
                yield int(picked[i]), f"{name}: {logged[i]!s} was logged, {found[i]!s} came out", gap
            else:
                short = f"{name}: {str(logged[i])[:12]} was logged, {str(found[i])[:12]} came out"
                yield int(picked[i]), short, 0.0


def same_bits(logged: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return where two columns are equal: numbers of one type bit for bit, so that -0 is not 0; NaN is NaN.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.replaying import same_bits
        >>> same_bits(np.array([0.0, 1.0, np.nan]), np.array([-0.0, 1.0, np.nan])).tolist()
        [False, True, True]
    """
    are_text = logged.dtype.kind in "OU" and found.dtype.kind in "OU"
    if not are_text and logged.dtype != found.dtype:
        return np.zeros(len(found), dtype=np.bool_)
    if logged.dtype.kind != "f":
        return np.asarray(logged == found, dtype=np.bool_)
    bits = f"u{logged.dtype.itemsize}"
    return (logged.view(bits) == found.view(bits)) | (np.isnan(logged) & np.isnan(found))


def drawn(
    pipeline: Pipeline,
    dataset: Dataset,
    key: Tensor,
    image_id: Tensor,
    draw: Tensor,
    conditions: Mapping[str, Patches],
    *,
    block: int = 16,
    edit: Callable[[Sample], Sample] | None = None,
) -> dict[str, np.ndarray]:
    """Draw rows again from the key of their evaluation: the columns of `evaluate` up to the results.

    Args:
        pipeline: The pipeline of the evaluated phase.
        dataset: The original images.
        key: The key of the evaluation.
        image_id: The images of the rows [n].
        draw: The number of each use of an image [n], n <= block.
        conditions: The patches shown, of which plain functions see none.
        block: Rows that run together, as recorded.
        edit: The edit of the evaluation, such as a cell of a grid.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate, random
        >>> from fpatch.data import rows
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.evaluation.replaying import drawn
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        >>> result = evaluate(test, test.init(random.key(0)), scenes, random.key(1))
        >>> again = drawn(test, scenes, random.key(1), *rows(scenes.image_ids, 1), result.conditions)
        >>> (again["sample/exposure/stops"] == result.table["sample/exposure/stops"]).tolist()
        [True, True, True, True]
    """
    batch = dataset.batch(image_id, draw)
    keys = row_keys(key, batch)
    sample = complete(pipeline, conditions, pipeline.sample(keys, batch), batch, block)
    return describe_rows(dataset, batch, keys, sample if edit is None else edit(sample))
