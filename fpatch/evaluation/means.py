"""The numbers of an evaluation for a log: rates, and means of columns with their standard errors."""

import numpy as np

from fpatch.evaluation.columns import LABEL, REACHED, is_finite_column, numbers_of
from fpatch.evaluation.conditions import NONE
from fpatch.evaluation.evaluation import Evaluation
from fpatch.evaluation.rates import Success, Table, of_objects, success
from fpatch.ops.intervals import TOO_FEW_IMAGES, Z

_HAS_OBJECT = f"has_object/{NONE}"
"""Whether a row has an object, in the group of its metric."""


def scalars(result: Evaluation, metric: str = "found") -> dict[str, float]:
    """Return flat numbers for a log: success of rows and objects, means of metrics, and summaries.

    The means are over the rows with an object, where a metric writes `has_object`. A number that rests on a
    row that is not finite is NaN. The rows of a condition that are not finite are counted as
    `success/not_finite/<condition>`.
    """
    flat = success(result.table, metric).scalars()
    objects = of_objects(result.objects, metric)
    flat |= {} if objects is None else {f"objects/{n}": v for n, v in objects.scalars().items()}
    flat |= column_means(result.table)
    return flat | {f"{n}/{c}": v for c, numbers in result.summaries.items() for n, v in numbers.items()}


def column_means(table: Table) -> dict[str, float]:
    """Return the means of the metrics of a table, over the rows with an object.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.means import column_means
        >>> has_object = np.array([True, True, False])
        >>> table = {"image_id": np.arange(3), "has_object/none": has_object, "found/none": has_object}
        >>> column_means(table)["found/none"]
        1.0
    """
    return {
        n: float(np.mean(numbers_of(table, n)[rows])) if rows.any() else float("nan")
        for n, c in table.items()
        if "/" in n and not n.startswith(("sample/", "digest/", "key/")) and c.dtype.kind in "fb"
        if not is_finite_column(n)
        for rows in (rows_with_object(table, n),)
    }


def rows_with_object(table: Table, column: str) -> np.ndarray:
    """Mark the rows over which a column is averaged: those with an object, if a metric tells which they are.

    The metric is that of the column's own group. Without one there it is any, since several victims have the
    same objects. A goal there does not count: it leaves out objects of one victim.
    """
    every = np.ones(len(table[column]), bool)
    told = [n.removesuffix(_HAS_OBJECT) for n in table if n.endswith(_HAS_OBJECT)]
    if not told or f"/{column}".rpartition("/has_object/")[1]:
        return every
    own = max((group for group in told if column.startswith(group)), key=len, default=None)
    if own is not None and _is_of_group(column, own):
        return table[own + _HAS_OBJECT].astype(bool)
    nearest = [own] if own is not None else []
    plain = [group for group in (*nearest, *told) if f"{group}{REACHED}/{NONE}" not in table]
    if plain:
        return table[plain[0] + _HAS_OBJECT].astype(bool)
    label = f"{(*nearest, *told)[0]}{LABEL}"
    return table[label] >= 0 if label in table else every


def _is_of_group(column: str, group: str) -> bool:
    """Return whether a column is `<group><metric>/<condition>`, or `<group><metric>/delta/<control>`."""
    parts = column.removeprefix(group).split("/")
    return len(parts) == 2 or (len(parts) == 3 and parts[1] == "delta")


def standard_errors(result: Evaluation, metric: str = "found") -> dict[str, float]:
    """Return standard errors of the numbers of `scalars`, by name; an unknown one is absent.

    For rates and bootstrapped means the error is the half width of the 95 % interval over 1.96. It is too
    large for rates with several rows per image, since Wilson's interval counts images. For means of columns
    it is the spread over images, with all rows of an image together. It is NaN under five images, and for a
    mean of equal values.
    """
    found = _interval_errors(success(result.table, metric))
    if (objects := of_objects(result.objects, metric)) is not None:
        found |= {f"objects/{n}": v for n, v in _interval_errors(objects).items()}
    for name in (n for n in scalars(result, metric) if n in result.table):
        rows = rows_with_object(result.table, name)
        found[name] = _mean_error(numbers_of(result.table, name)[rows], result.table["image_id"][rows])
    return found


def _interval_errors(rates: Success) -> dict[str, float]:
    errors = {
        n: {c: (rate.high - rate.low) / (2.0 * Z) for c, rate in entries.items()}
        for n, entries in rates._asdict().items()
        if isinstance(entries, dict) and n != "not_finite"
    }
    clean = rates.clean._replace(value=(rates.clean.high - rates.clean.low) / (2.0 * Z))
    renamed = {
        n: {c: getattr(rates, n)[c]._replace(value=error) for c, error in entries.items()}
        for n, entries in errors.items()
    }
    return rates._replace(clean=clean, not_finite={}, **renamed).scalars()


def _mean_error(values: np.ndarray, image_id: np.ndarray) -> float:
    """Compute the standard error of a mean whose rows come in groups, to first order in their sizes."""
    _, group = np.unique(image_id, return_inverse=True)
    groups, values = len(np.unique(group)), values.astype(np.float64)
    if groups < TOO_FEW_IMAGES or not np.isfinite(values).all() or np.ptp(values) == 0:
        return float("nan")
    sums = np.bincount(group, weights=values - values.mean())
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / len(values))
