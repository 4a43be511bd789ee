"""Columns of a table: metrics by condition, deltas of the patch, and digests of the rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fpatch.core.files import digest
from fpatch.core.tree import widen
from fpatch.core.types import Batch, Values
from fpatch.data.classes import name_class
from fpatch.evaluation.conditions import NONE, PATCH, main_condition
from fpatch.graph.pipeline import Pipeline

FINITE = "finite"
"""The metric of every group that says whether all that the others rest on is finite; see `measure`."""


def metric_names(pipeline: Pipeline) -> tuple[str, ...]:
    """Return the names that metric and loss nodes write: each holds one number per row or per object.

    Raises:
        ValueError: If a name is that of a column of its own, "finite".
    """
    measured = (n for n in pipeline.values() if n.stage.definition.role in ("loss", "metric"))
    names = tuple(dict.fromkeys(name for n in measured for name in n.writes.values()))
    if taken := [name for name in names if split_group(name)[1] == FINITE]:
        raise ValueError(
            f"evaluate: a metric cannot be called {taken[0]!r}, which the table says of every row; rename it "
            "by the node's writes"
        )
    return names


def split_group(metric: str) -> tuple[str, str]:
    """Split a metric into its group, with the slash, and its own name: ("victims/small/", "found")."""
    group, slash, own = metric.rpartition("/")
    return group + slash, own


def result_columns(results: Mapping[str, Values], metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Make the columns of rows.

    They are `<group>label`, `<metric>/<condition>` of other metrics per row, their deltas,
    `<group>finite/<condition>`, `digest/<condition>`, and the shares that each patch covers.
    """
    main = results[main_condition(results)]
    columns = {name: share.numpy() for name, share in main.get("covered", {}).items()}
    for metric in (name for name in metrics if main[name].ndim == 1):
        if split_group(metric)[1] == LABEL and not main[metric].is_floating_point():
            columns[metric] = results.get(NONE, main)[metric].cpu().numpy()
            continue
        columns |= _paired(metric, {c: _array(values[metric]) for c, values in results.items()})
    for c, values in results.items():
        columns |= {f"{group}{FINITE}/{c}": mask.numpy() for group, mask in values["finite"].items()}
    return columns | {f"digest/{c}": np.array(values["digest"]) for c, values in results.items()}


def is_finite_column(column: str) -> bool:
    """Return whether a column is `<group>finite/<condition>`.

    Example:
        >>> from fpatch.evaluation.columns import is_finite_column
        >>> is_finite_column("victims/small/finite/none"), is_finite_column("found/none")
        (True, False)
    """
    return split_group(column.rpartition("/")[0])[1] == FINITE


def finite_mask(table: Mapping[str, np.ndarray], column: str) -> np.ndarray:
    """Return the mask of the rows in which all that a column of results rests on is finite.

    A difference rests on two conditions. Tables of earlier versions do not say it: all their rows count.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.columns import finite_mask
        >>> table = {"image_id": np.arange(2), "finite/patch": np.array([True, False])}
        >>> finite_mask(table, "found/delta"), finite_mask(table, "found/none")
        (array([ True, False]), array([ True,  True]))
    """
    every = np.ones(len(table["image_id"]), dtype=bool)
    before, _, last = column.rpartition("/")
    metric, _, middle = before.rpartition("/")
    if middle == "delta":
        conditions = (PATCH, last)
    else:
        metric, conditions = before, (PATCH, NONE) if last == "delta" else (last,)
    names = (f"{split_group(metric)[0]}{FINITE}/{c}" for c in conditions)
    return np.logical_and.reduce([every, *(table[name].astype(bool) for name in names if name in table)])


def numbers_of(table: Mapping[str, np.ndarray], column: str) -> np.ndarray:
    """Return a column of results as numbers, NaN in the rows that are not finite."""
    numbers = table[column].astype(np.float64)
    return np.where(finite_mask(table, column) & np.isfinite(numbers), numbers, np.nan)


GOAL, REACHED, GOAL_SCORE = "goal", "reached", "goal_score"
"""Names of a targeted metric: its class, whether the victim answers it, and the score of that answer."""

ANSWER = "answer"
"""A metric that is a label."""

LABEL = "label"
"""A metric of integers: the true class of the object of a row, the same under every condition."""

OBJECT = "object_"
"""The prefix of metrics per object; the table of objects omits it."""


def object_columns(
    results: Mapping[str, Values], batch: Batch, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Make the columns of metrics that write [n, m]: one entry per object, row after row.

    They are `image_id`, `draw`, `object` (its place among the m), `label` (if a node writes `object_label`),
    and `<metric>/<condition>` with deltas as in `result_columns`. `object_found` becomes `found`. Places
    where `object_valid` is False without a patch are omitted. Victims with goals of their own ask about
    different objects: a place that one of them asks about is there, and `<group>has_object/<condition>` says
    for which.
    """
    main = results[main_condition(results)]
    every = {n: main[n] for n in metrics if main[n].ndim == 2}
    if not every:
        return {}
    rows, places = next(iter(every.values())).shape
    if odd := [n for n, v in every.items() if v.shape[1] != places]:
        raise ValueError(
            f"metrics per object must have the same number of objects: {odd[0]!r} has "
            f"{every[odd[0]].shape[1]}, {next(iter(every))!r} has {places}; evaluate them apart"
        )
    # several victims have the same objects: each writes them in its own group
    own = {n: split_group(n)[1].removeprefix(OBJECT) for n in every}
    valid = [n for n in every if own[n] == "valid"]
    label = next((n for n in every if own[n] == LABEL), None)
    everywhere = torch.ones(rows, places, dtype=torch.bool)
    asked = [results.get(NONE, main)[n].bool() for n in valid]
    real = torch.stack(asked).any(0) if asked else everywhere
    row, place = (index.cpu().numpy() for index in real.nonzero(as_tuple=True))
    columns = {n: batch[n].numpy()[row] for n in ("image_id", "draw")} | {"object": place}
    if label is not None:
        columns["label"] = every[label].cpu().numpy()[row, place]
    for metric in sorted(n for n in every if own[n] not in ("valid", LABEL)):
        found = {c: _array(values[metric])[row, place] for c, values in results.items()}
        columns |= _paired(split_group(metric)[0] + own[metric], found)
    if len(valid) > 1 and any(own[n] == REACHED for n in every):
        told = {(split_group(n)[0], c): v[n].bool() for n in valid for c, v in results.items()}
        columns |= {f"{g}has_object/{c}": mask.cpu().numpy()[row, place] for (g, c), mask in told.items()}
    for group in dict.fromkeys(split_group(metric)[0] for metric in every):
        columns |= {f"{group}{FINITE}/{c}": v["finite"][group].numpy()[row] for c, v in results.items()}
    return columns


def goal_columns(
    pipeline: Pipeline, class_names: Sequence[str], count: int, objects: bool = False
) -> dict[str, np.ndarray]:
    """Make the column `goal` of every targeted metric, in its group: the name of the class, in every row.

    Args:
        pipeline: The pipeline of the evaluated phase.
        class_names: The names of the classes; a class beyond them is called by its number.
        count: The number of rows.
        objects: True for the metrics of the table of objects, False for those of the table of rows.

    Raises:
        ValueError: If a node writes `found` and `reached` in different groups.
    """
    found, reached = (f"{OBJECT if objects else ''}{name}" for name in ("found", REACHED))
    columns = {}
    for path, n in pipeline.items():
        goal = getattr(n.stage.config, "goal", None)
        if "goal" in n.stage.definition.classes and goal is not None and reached in n.writes:
            name = name_class(class_names, goal)
            group = split_group(n.writes[reached])[0]
            if split_group(n.writes.get(found, reached))[0] != group:
                raise ValueError(
                    f"node {path!r} writes {found!r} as {n.writes[found]!r}, but {reached!r} as "
                    f"{n.writes[reached]!r}, so that the rate would have no goal; wire both into one group"
                )
            columns[f"{group}{GOAL}"] = np.full(count, name)
    return columns


def _paired(metric: str, by_condition: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make the columns `<metric>/<condition>`, and the patch minus each other condition."""
    columns = {f"{metric}/{c}": column for c, column in by_condition.items()}
    if split_group(metric)[1] == ANSWER or PATCH not in by_condition:
        return columns  # the difference of two labels says nothing
    numbers = {c: column.astype(np.float64) for c, column in by_condition.items()}  # also whole numbers
    for c in (c for c in numbers if c != PATCH):
        with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity is NaN
            delta = (numbers[PATCH] - numbers[c]).astype(np.float32)
        columns[f"{metric}/delta" if c == NONE else f"{metric}/delta/{c}"] = delta
    return columns


def _array(value: Tensor) -> np.ndarray:
    """Return the numbers of a metric in float32 or better."""
    return widen(value).detach().cpu().numpy()


def row_digests(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the sha256 of each row's values, as hex; it shows edits too small to change an image."""
    names = sorted(columns)
    rows = zip(*(columns[name] for name in names), strict=True)
    return np.array([digest(b"".join(value.tobytes() for value in row)) for row in rows])


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's values, as hex."""
    kept = tensor.detach().cpu().contiguous()
    kept = kept.view(torch.int16) if kept.dtype == torch.bfloat16 else kept  # numpy has no bfloat16
    return digest(kept.numpy().tobytes())
