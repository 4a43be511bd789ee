"""The results of an evaluation by class: success rates, and what the victim calls the objects of a class."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fpatch.data.classes import name_class
from fpatch.evaluation.columns import ANSWER, FINITE, GOAL, LABEL, REACHED, finite_mask, split_group
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.evaluation.rates import Table, conditions_of, plain_success
from fpatch.metrics import Rate

NO_DETECTION, NOT_FINITE = "(no detection)", "(not finite)"
"""Answers that are no class: the detector finds nothing there; the row is not finite."""


class ClassResult(NamedTuple):
    """The results of the objects of one class.

    Attributes:
        clean: The share of the rows with such an object in which it is found without a patch.
        rates: The success rate of each condition but "none", over the rows found without a patch; empty
            without a patch.
        not_finite: The number of rows that are not finite, by condition; their rates are NaN.
        answers: The number of rows by answer, the most frequent first, for each condition. Rows that are not
            finite are counted as `NOT_FINITE`. Empty without a metric of answers.
    """

    clean: Rate
    rates: dict[str, Rate]
    not_finite: dict[str, int]
    answers: dict[str, dict[str, int]]

    @property
    def shown(self) -> dict[str, Rate]:
        """The success rates; without a patch, the share that is right, under "none"."""
        return self.rates or {NONE: self.clean}

    @property
    def main(self) -> Rate:
        """The patch's success rate, or that of the first condition; without a patch, what is right."""
        return self.shown.get(PATCH) or next(iter(self.shown.values()))


class ByClass(NamedTuple):
    """The results by class.

    Attributes:
        classes: The results by name of the true class, in the order of the labels; classes with objects only.
        goal: As in `Success`.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.by_class import by_class
        >>> label, found = np.array([0, 0, 1]), np.array([True, True, True])
        >>> table = {"image_id": np.arange(3), "label": label, "found/none": found, "answer/none": label}
        >>> table |= {"found/patch": np.array([False, True, True]), "answer/patch": np.array([2, 0, 1])}
        >>> stop, turn = by_class(table, "found", ("stop", "turn", "bird")).classes.values()
        >>> stop.rates["patch"].value, stop.answers["patch"], turn.rates["patch"].value
        (0.5, {'bird': 1, 'stop': 1}, 0.0)
    """

    classes: dict[str, ClassResult]
    goal: str | None = None

    @property
    def attacked(self) -> bool:
        """Whether a patch was shown, so that there are success rates."""
        return any(found.rates for found in self.classes.values())

    def largest(self, count: int) -> list[str]:
        """Return the names of the classes with the most rows that count, those with the most first."""
        order = sorted(
            self.classes, key=lambda n: (-self.classes[n].main.count, -self.classes[n].clean.count)
        )
        return order[:count]

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON values, by class."""
        return {
            name: {
                "clean": found.clean._asdict(),
                "rates": {c: rate._asdict() for c, rate in found.rates.items()},
                "not_finite": found.not_finite,
                "answers": found.answers,
            }
            for name, found in self.classes.items()
        }


def by_class(table: Table, metric: str, class_names: Sequence[str]) -> ByClass | None:
    """Compute the results by class of a table of rows or of objects.

    Args:
        table: Columns by name, the `label` of the true class among them.
        metric: As for `success`.
        class_names: The names of the classes; one beyond them is called by its number.

    Returns:
        The results; None for a table without labels.
    """
    group, _ = split_group(metric)
    name = next((n for n in (f"{group}{LABEL}", *_others(table)) if n in table), None)
    if name is None:
        return None
    labels = table[name]
    conditions = conditions_of(table, metric)
    needed = ["image_id", f"{group}{GOAL}", *(f"{metric}/{c}" for c in conditions)]
    needed += [f"{group}{n}/{c}" for n in ("has_object", REACHED, FINITE) for c in conditions]
    columns = {n: table[n] for n in needed if n in table}
    found: dict[str, ClassResult] = {}
    goal = None
    for label in np.unique(labels[labels >= 0]).tolist():
        rows = labels == label
        rates = plain_success({n: column[rows] for n, column in columns.items()}, metric)
        goal = rates.goal
        answers = {c: _answers(table, group, c, rows, class_names) for c in conditions}
        found[name_class(class_names, label)] = ClassResult(
            rates.clean,
            rates.rates,
            {c: bad.count for c, bad in rates.not_finite.items()},
            {c: counts for c, counts in answers.items() if counts},
        )
    return ByClass(found, goal)


def from_json(classes: Mapping[str, Any], goal: str | None = None) -> ByClass:
    """Return results from the values of `ByClass.to_json`; null is NaN.

    Example:
        >>> from fpatch.evaluation.by_class import ByClass, ClassResult, from_json
        >>> from fpatch.metrics import Rate
        >>> rate = Rate(0.5, 0.2, 0.8, 10, 10)
        >>> found = ByClass({"stop": ClassResult(rate, {"patch": rate}, {}, {})})
        >>> from_json(found.to_json()) == found
        True
    """

    def rate(entry: Mapping[str, Any]) -> Rate:
        value, low, high = (math.nan if entry[n] is None else entry[n] for n in ("value", "low", "high"))
        return Rate(value, low, high, entry["count"], entry["photographs"])

    return ByClass(
        {
            name: ClassResult(
                rate(entry["clean"]),
                {c: rate(value) for c, value in entry["rates"].items()},
                dict(entry["not_finite"]),
                {c: dict(counts) for c, counts in entry["answers"].items()},
            )
            for name, entry in classes.items()
        },
        goal,
    )


def _others(table: Table) -> list[str]:
    """Return the labels that metrics of other groups wrote: several victims have the same objects."""
    return [n for n in table if split_group(n)[1] == LABEL]


def _answers(
    table: Table, group: str, condition: str, rows: np.ndarray, class_names: Sequence[str]
) -> dict[str, int]:
    """Count the answers of some rows under a condition."""
    column = f"{group}{ANSWER}/{condition}"
    if column not in table:
        return {}
    finite = finite_mask(table, column)
    labels, counts = np.unique(table[column][rows & finite], return_counts=True)
    found = {
        NO_DETECTION if label < 0 else name_class(class_names, label): count
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
    }
    bad = int((rows & ~finite).sum())
    found |= {NOT_FINITE: bad} if bad else {}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
