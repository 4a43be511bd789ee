"""Success rates of an evaluation, with denominators, controls and intervals.

There are two denominators. For *success* a row counts if the victim finds the object without any patch. The
attack succeeds if the victim does not find it with the patch: the object is *displaced* if a box of its class
answers beside it, and *gone* otherwise. For *missed* every row with an object counts, so that the victim's
own failures, the entry "none", stand beside those that a patch causes.

A *targeted* attack has a goal: the class that the victim shall answer. It succeeds if the victim answers it
with the patch. Rows whose own class is the goal do not count.

A row is an image under a draw; in the table of objects, one object of such an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fpatch.evaluation.columns import GOAL, GOAL_SCORE, REACHED, split_group
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.evaluation.evaluation import Evaluation
from fpatch.metrics import Rate, bootstrap_mean, wilson
from fpatch.ops.intervals import TOO_FEW_IMAGES, Z

Table = Mapping[str, np.ndarray]
"""Columns of equal length by name, one entry per row."""

SCORES = ("best_score", "score", "confidence")
"""Metrics of the victim's confidence in the object, by priority."""


def question(goal: str | None) -> str:
    """Return the meaning of a success: "not found with the patch", or the goal is answered with it."""
    return "not found with the patch" if goal is None else f"answered {goal!r} with the patch"


def axis_label(goal: str | None) -> str:
    """Return the label of an axis of success rates, for matplotlib."""
    return "attack success (%)" if goal is None else f"{question(goal)} (%)".replace("$", r"\$")


class Success(NamedTuple):
    """Success rates of one evaluation.

    Attributes:
        rates: The success rate of each condition but "none", over the rows found without a patch, with
            Wilson intervals over images.
        displaced: The part of each rate with a box beside the object; empty without that metric, and for a
            targeted attack.
        gone: The rest of each rate.
        over: The patch's rate minus that of each control, paired, bootstrapped over images.
        clean: The share of rows with an object where it is found without a patch: the denominator.
        missed: The share of *all* rows with an object where it is not found, per condition, "none" last.
        drop: The mean loss of the victim's score per condition but "none", over the rows found without a
            patch, bootstrapped over images; empty without such a metric.
        gain: The mean gain of the goal's score, likewise; empty without a goal.
        goal: The name of the class that a targeted attack wants answered; None: any but the own one.

    Example:
        >>> import numpy as np
        >>> from fpatch import success
        >>> without, patched = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
        >>> rates = success({"image_id": np.arange(5), "found/none": without, "found/patch": patched})
        >>> rates.clean.value, rates.rates["patch"].value, rates.missed["none"].value
        (0.8, 0.75, 0.2)
        >>> rates.scalars()["success/patch"]
        0.75
    """

    rates: dict[str, Rate]
    displaced: dict[str, Rate]
    gone: dict[str, Rate]
    over: dict[str, Rate]
    clean: Rate
    missed: dict[str, Rate]
    drop: dict[str, Rate]
    gain: dict[str, Rate] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    goal: str | None = None

    @property
    def question(self) -> str:
        """The meaning of a success, such as "not found with the patch"."""
        return question(self.goal)

    def __str__(self) -> str:
        lines = self.rates | {f"{PATCH} minus {c}": rate for c, rate in self.over.items()}
        width = max(map(len, lines))
        return "\n".join(f"{name:<{width}}  {rate}" for name, rate in lines.items())

    def scalars(self) -> dict[str, float]:
        """Return the rates as flat numbers for a log."""
        flat = {f"success/{c}": rate.value for c, rate in self.rates.items()}
        flat |= {f"success/{c}/displaced": rate.value for c, rate in self.displaced.items()}
        flat |= {f"success/over/{c}": rate.value for c, rate in self.over.items()}
        flat |= {f"success/missed/{c}": rate.value for c, rate in self.missed.items()}
        flat |= {f"success/drop/{c}": rate.value for c, rate in self.drop.items()}
        flat |= {f"success/gain/{c}": rate.value for c, rate in self.gain.items()}
        return flat | {"success/clean": self.clean.value}

    def to_json(self) -> dict[str, Any]:
        """Return every rate with its interval and counts, and the goal if there is one, as JSON values."""
        targeted = ("gain", "goal") if self.goal is None else ()
        flat = {n: v for n, v in self._asdict().items() if isinstance(v, dict) and n not in targeted}
        rates = {n: {c: rate._asdict() for c, rate in entries.items()} for n, entries in flat.items()}
        goal = {} if self.goal is None else {"goal": self.goal}
        return rates | {"clean": self.clean._asdict()} | goal


def conditions_of(table: Table, metric: str = "found") -> list[str]:
    """Return the conditions of a metric in a table, the patch first and "none" last."""
    prefix = f"{metric}/"
    names = [n.removeprefix(prefix) for n in table if n.startswith(prefix)]
    names = [n for n in names if "/" not in n and n != "delta"]
    return sorted(names, key=lambda c: (c != PATCH, c == NONE))


def success(table: Table, metric: str = "found") -> Success:
    """Compute success rates over a table of rows.

    Args:
        table: The `table` or the `objects` of an evaluation: columns by name.
        metric: A boolean metric, True where the victim is right. With several victims the name begins with
            a group, `victims/small/found`; other metrics are read from the same group.

    Raises:
        ValueError: If the table lacks the metric, or it is not boolean.

    Example:
        Four objects are found without a patch; the patch hides three of them:

        >>> import numpy as np
        >>> from fpatch import success
        >>> without, patched = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
        >>> table = {"image_id": np.arange(5), "found/none": without, "found/patch": patched}
        >>> rate = success(table).rates["patch"]
        >>> rate.value, rate.count
        (0.75, 4)
    """
    names = [c for c in conditions_of(table, metric) if c != NONE]
    if f"{metric}/{NONE}" not in table or not names:
        raise ValueError(f"success: the table has no metric {metric!r}; add a metric stage to the pipeline")
    if table[f"{metric}/{NONE}"].dtype != np.bool_:
        raise ValueError(
            f"success: the metric {metric!r} must be boolean, found or right, got "
            f"{table[f'{metric}/{NONE}'].dtype}; choose another, e.g. 'found' of metrics.detection_hit"
        )
    image_id, counted = table["image_id"], table[f"{metric}/{NONE}"].astype(bool)
    fooled = {c: ~table[f"{metric}/{c}"].astype(bool)[counted] for c in names}
    groups = image_id[counted]
    group, _ = split_group(metric)
    has_object = table.get(f"{group}has_object/{NONE}", np.ones_like(counted)).astype(bool)
    goal = _goal(table, metric)
    if goal is not None:
        counted &= has_object
        fooled = {c: table[f"{group}{REACHED}/{c}"].astype(bool)[counted] for c in names}
        groups = image_id[counted]
    has_displaced = goal is None and all(f"{group}displaced/{c}" in table for c in names)
    beside = {c: table[f"{group}displaced/{c}"].astype(bool)[counted] for c in names if has_displaced}
    missed = {c: ~table[f"{metric}/{c}"].astype(bool)[has_object] for c in (*names, NONE)}
    score = _score(table, metric)
    scores = {c: table[f"{score}/{c}"].astype(np.float64)[counted] for c in (*names, NONE) if score}
    return Success(
        rates={c: wilson(hit, groups) for c, hit in fooled.items()},
        displaced={c: wilson(fooled[c] & hit, groups) for c, hit in beside.items()},
        gone={c: wilson(fooled[c] & ~hit, groups) for c, hit in beside.items()},
        over={
            c: bootstrap_mean(fooled[PATCH].astype(float) - fooled[c], groups)
            for c in names
            if c != PATCH and PATCH in fooled
        },
        clean=wilson(counted[has_object], image_id[has_object]),
        missed={c: wilson(hit, image_id[has_object]) for c, hit in missed.items()},
        drop={c: bootstrap_mean(scores[NONE] - scores[c], groups) for c in names if score},
        gain={} if goal is None else _gains(table, group, names, counted),
        goal=goal,
    )


def _goal(table: Table, metric: str) -> str | None:
    """Return the name of the goal of a targeted metric; None for an untargeted one."""
    group, _ = split_group(metric)
    if f"{group}{REACHED}/{PATCH}" not in table:
        return None
    names = table.get(f"{group}{GOAL}")
    return "the goal" if names is None or not len(names) else str(names[0])


def _gains(table: Table, group: str, names: Sequence[str], counted: np.ndarray) -> dict[str, Rate]:
    """Compute the mean gain of the goal's score over the counted rows, per condition."""
    scores = {c: table[f"{group}{GOAL_SCORE}/{c}"].astype(np.float64)[counted] for c in (*names, NONE)}
    return {c: bootstrap_mean(scores[c] - scores[NONE], table["image_id"][counted]) for c in names}


def effects(table: Table, metric: str = "found") -> np.ndarray:
    """Return the effect of the patch in each row: the victim's score without it minus the score with it.

    For a targeted attack it is the goal's score with the patch minus that without it.

    Without a metric of scores beside `metric`, the effect is 1 where an object found without the patch is
    lost.
    """
    if _goal(table, metric) is not None:
        name = f"{split_group(metric)[0]}{GOAL_SCORE}"
        return table[f"{name}/{PATCH}"].astype(np.float64) - table[f"{name}/{NONE}"]
    name = _score(table, metric) or metric
    with_patch, without = (table[f"{name}/{c}"].astype(np.float64) for c in (PATCH, NONE))
    return without - with_patch


def _score(table: Table, metric: str) -> str | None:
    """Return the metric of the victim's confidence beside `metric`; None if there is none."""
    names = (f"{split_group(metric)[0]}{score}" for score in SCORES)
    conditions = conditions_of(table, metric)
    return next((n for n in names if all(f"{n}/{c}" in table for c in conditions)), None)


def of_objects(objects: Table, metric: str = "found") -> Success | None:
    """Compute success over the table of objects; None if no metric of objects stands beside `metric`."""
    found = f"{split_group(metric)[0]}found"
    return success(objects, found) if f"{found}/{NONE}" in objects else None


def scalars(result: Evaluation, metric: str = "found") -> dict[str, float]:
    """Return flat numbers for a log: success of rows and objects, means of metrics, and summaries."""
    flat = success(result.table, metric).scalars()
    objects = of_objects(result.objects, metric)
    flat |= {} if objects is None else {f"objects/{n}": v for n, v in objects.scalars().items()}
    flat |= {
        n: float(np.mean(c.astype(np.float64)))
        for n, c in result.table.items()
        if "/" in n and not n.startswith(("sample/", "digest/", "key/")) and c.dtype.kind in "fb"
    }
    return flat | {f"{n}/{c}": v for c, numbers in result.summaries.items() for n, v in numbers.items()}


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
    names = [n for n in scalars(result, metric) if n in result.table]
    return found | {n: _mean_error(result.table[n], result.table["image_id"]) for n in names}


def _interval_errors(rates: Success) -> dict[str, float]:
    errors = {
        n: {c: (rate.high - rate.low) / (2.0 * Z) for c, rate in entries.items()}
        for n, entries in rates._asdict().items()
        if isinstance(entries, dict)
    }
    clean = rates.clean._replace(value=(rates.clean.high - rates.clean.low) / (2.0 * Z))
    renamed = {
        n: {c: getattr(rates, n)[c]._replace(value=error) for c, error in entries.items()}
        for n, entries in errors.items()
    }
    return rates._replace(clean=clean, **renamed).scalars()


def _mean_error(values: np.ndarray, image_id: np.ndarray) -> float:
    """Compute the standard error of a mean whose rows come in groups, to first order in their sizes."""
    _, group = np.unique(image_id, return_inverse=True)
    groups, values = int(group.max()) + 1, values.astype(np.float64)
    if groups < TOO_FEW_IMAGES or np.ptp(values) == 0:
        return float("nan")
    sums = np.bincount(group, weights=values - values.mean())
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / len(values))


def threshold_curve(
    table: Table, thresholds: Sequence[float], condition: str, metric: str = "best_score"
) -> list[Rate]:
    """Compute success rates at other score thresholds.

    A row counts if its score without a patch reaches the threshold; the attack succeeds on it if its score
    under the condition does not.
    """
    rates = []
    for threshold in thresholds:
        counted = table[f"{metric}/{NONE}"] >= threshold
        rates.append(wilson(table[f"{metric}/{condition}"][counted] < threshold, table["image_id"][counted]))
    return rates
