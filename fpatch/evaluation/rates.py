"""Success rates of an evaluation, with denominators, controls and intervals.

There are two denominators. For *success* a row counts if the victim finds the object without any patch. The
attack succeeds if the victim does not find it with the patch: the object is *displaced* if a box of its class
answers beside it, and *gone* otherwise. For *missed* every row with an object counts, so that the victim's
own failures, the entry "none", stand beside those that a patch causes.

A *targeted* attack has a goal: the class that the victim shall answer. It succeeds if the victim answers it
with the patch. Rows whose own class is the goal do not count.

A row is an image under a draw; in the table of objects, one object of such an image.

Where no patch is shown there is no attack, and no success: `clean` and `missed` are all that is computed.

A rate is given only if all that it rests on is finite. A condition with a row that is not finite has NaN for
every rate. If that condition is "none", all conditions have: it decides which rows count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fpatch.core.checks import nearest
from fpatch.evaluation.columns import GOAL, GOAL_SCORE, REACHED, finite_mask, numbers_of, split_group
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.metrics import Rate, bootstrap_mean, wilson

RIGHT = "right"
"""The scalar of an evaluation without a patch: the share of the rows with an object where it is found."""

Table = Mapping[str, np.ndarray]
"""Columns of equal length by name, one entry per row."""

SCORES = ("best_score", "score", "confidence")
"""Metrics of the victim's confidence in the object, by priority."""


class NotFinite(NamedTuple):
    """The rows of a condition that are not finite.

    Attributes:
        count: The number of these rows.
        total: The number of all rows.
        first: The file of the first of them, or the number of its image.
    """

    count: int
    total: int
    first: str


def question(goal: str | None) -> str:
    """Return the meaning of a success: "not found with the patch", or the goal is answered with it."""
    return "not found with the patch" if goal is None else f"answered {goal!r} with the patch"


def axis_label(goal: str | None, attacked: bool = True) -> str:
    """Return the label of an axis of success rates, for matplotlib; without an attack, of what is right."""
    if not attacked:
        return f"{RIGHT} (%)"
    return "attack success (%)" if goal is None else f"{question(goal)} (%)".replace("$", r"\$")


class Success(NamedTuple):
    """Success rates of one evaluation.

    Attributes:
        rates: The success rate of each condition but "none", over the rows found without a patch, with
            Wilson intervals over images; empty without a patch.
        displaced: The part of each rate with a box beside the object; empty without that metric, and for a
            targeted attack.
        gone: The rest of each rate.
        over: The patch's rate minus that of each control, paired, bootstrapped over images.
        clean: The share of rows with an object where it is found without a patch: the denominator.
        missed: The share of *all* rows with an object where it is not found, per condition, "none" last.
        drop: The mean loss of the victim's score per condition but "none", over the rows found without a
            patch, bootstrapped over images; empty without such a metric.
        not_finite: The conditions whose rates are NaN because an image, an answer or a metric is not finite.
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
    not_finite: dict[str, NotFinite] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    gain: dict[str, Rate] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    goal: str | None = None

    @property
    def main(self) -> Rate:
        """The patch's success rate; without a patch, the share of rows where the object is found."""
        return self.rates[PATCH] if self.rates else self.clean

    @property
    def shown(self) -> dict[str, Rate]:
        """The success rates; without a patch, the share that is right, under "none"."""
        return self.rates or {NONE: self.clean}

    @property
    def question(self) -> str:
        """The meaning of a success, such as "not found with the patch"."""
        return question(self.goal)

    def __str__(self) -> str:
        if not self.rates:
            return "\n".join([*self.warnings(), f"{RIGHT}  {self.clean}"])
        lines = self.rates | {f"{PATCH} minus {c}": rate for c, rate in self.over.items()}
        width = max(map(len, lines))
        told = [*self.warnings(), *(f"{name:<{width}}  {rate}" for name, rate in lines.items())]
        return "\n".join(told)

    def warnings(self) -> list[str]:
        """Return a sentence for every condition that is not finite."""
        return [
            f"condition {c!r}: {bad.count} of {bad.total} rows are not finite, first {bad.first}; image, "
            "answer or metric holds NaN or infinity"
            + (
                "; it decides which rows count, so there is no rate at all"
                if c == NONE and self.rates
                else ""
            )
            for c, bad in self.not_finite.items()
        ]

    def scalars(self) -> dict[str, float]:
        """Return the rates as flat numbers for a log; without a patch, what is right alone."""
        if not self.rates:
            bad = {f"not_finite/{c}": float(entry.count) for c, entry in self.not_finite.items()}
            return bad | {RIGHT: self.clean.value}
        flat = {f"success/{c}": rate.value for c, rate in self.rates.items()}
        flat |= {f"success/{c}/displaced": rate.value for c, rate in self.displaced.items()}
        flat |= {f"success/over/{c}": rate.value for c, rate in self.over.items()}
        flat |= {f"success/missed/{c}": rate.value for c, rate in self.missed.items()}
        flat |= {f"success/drop/{c}": rate.value for c, rate in self.drop.items()}
        flat |= {f"success/gain/{c}": rate.value for c, rate in self.gain.items()}
        flat |= {f"success/not_finite/{c}": float(bad.count) for c, bad in self.not_finite.items()}
        return flat | {"success/clean": self.clean.value}

    def to_json(self) -> dict[str, Any]:
        """Return every rate with its interval and counts, and the goal if there is one, as JSON values."""
        targeted = ("gain", "goal") if self.goal is None else ()
        flat = {n: v for n, v in self._asdict().items() if isinstance(v, dict) and n not in targeted}
        rates = {n: {c: entry._asdict() for c, entry in entries.items()} for n, entries in flat.items()}
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
    plain, counted, fooled = count_rates(table, metric)
    names, group = list(fooled), split_group(metric)[0]
    groups = table["image_id"][counted]
    has_displaced = plain.goal is None and all(f"{group}displaced/{c}" in table for c in names)
    beside = {c: table[f"{group}displaced/{c}"].astype(bool)[counted] for c in names if has_displaced}
    score = _score(table, metric)
    scores = {c: numbers_of(table, f"{score}/{c}")[counted] for c in (*names, NONE) if score}
    found = plain._replace(
        displaced={c: wilson(fooled[c] & hit, groups) for c, hit in beside.items()},
        gone={c: wilson(fooled[c] & ~hit, groups) for c, hit in beside.items()},
        over={
            c: bootstrap_mean(fooled[PATCH].astype(float) - fooled[c], groups)
            for c in names
            if c != PATCH and PATCH in fooled
        },
        drop={c: bootstrap_mean(scores[NONE] - scores[c], groups) for c in names if score},
        gain={} if plain.goal is None else _gains(table, group, names, counted),
    )
    return _refuse_rates(found, _find_not_finite(table, metric, (*names, NONE)))


def plain_success(table: Table, metric: str = "found") -> Success:
    """Compute `rates`, `clean` and `missed` of `success` alone, without the bootstrap.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.rates import plain_success
        >>> without, patched = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 1, 0]], bool)
        >>> rates = plain_success({"image_id": np.arange(5), "found/none": without, "found/patch": patched})
        >>> rates.rates["patch"].value, rates.over
        (0.75, {})
    """
    plain, _, fooled = count_rates(table, metric)
    return _refuse_rates(plain, _find_not_finite(table, metric, (*fooled, NONE)))


def count_rates(table: Table, metric: str) -> tuple[Success, np.ndarray, dict[str, np.ndarray]]:
    """Return the plain rates, the mask of the rows that count, and in which of them the attack succeeds."""
    if not hasattr(table, "keys"):
        way_out = "give its .table" if hasattr(table, "table") else "give that of an evaluation"
        raise ValueError(f"success(table) must hold columns by name, got a {type(table).__name__}; {way_out}")
    names = [c for c in conditions_of(table, metric) if c != NONE]
    if f"{metric}/{NONE}" not in table:
        known = sorted({c.removesuffix(f"/{NONE}") for c in table if c.endswith(f"/{NONE}")})
        way_out = nearest(metric, known) if known else "add a metric stage to the pipeline"
        raise ValueError(f"success: the table has no metric {metric!r}; {way_out}")
    if table[f"{metric}/{NONE}"].dtype != np.bool_:
        raise ValueError(
            f"success: the metric {metric!r} must be boolean, found or right, got "
            f"{table[f'{metric}/{NONE}'].dtype}; choose another, e.g. 'found' of metrics.detection_hit"
        )
    image_id, counted = table["image_id"], table[f"{metric}/{NONE}"].astype(bool)
    group, _ = split_group(metric)
    has_object = table.get(f"{group}has_object/{NONE}", np.ones_like(counted)).astype(bool)
    goal = _goal(table, metric)
    if goal is None:
        fooled = {c: ~table[f"{metric}/{c}"].astype(bool)[counted] for c in names}
    else:
        counted &= has_object
        fooled = {c: table[f"{group}{REACHED}/{c}"].astype(bool)[counted] for c in names}
    missed = {c: ~table[f"{metric}/{c}"].astype(bool)[has_object] for c in (*names, NONE)}
    found = Success(
        rates={c: wilson(hit, image_id[counted]) for c, hit in fooled.items()},
        displaced={},
        gone={},
        over={},
        clean=wilson(counted[has_object], image_id[has_object]),
        missed={c: wilson(hit, image_id[has_object]) for c, hit in missed.items()},
        drop={},
        goal=goal,
    )
    return found, counted, fooled


def _find_not_finite(table: Table, metric: str, conditions: Sequence[str]) -> dict[str, NotFinite]:
    """Find the conditions with rows that are not finite."""
    bad: dict[str, NotFinite] = {}
    for c in conditions:
        rows = np.flatnonzero(~finite_mask(table, f"{metric}/{c}"))
        if len(rows):
            row = int(rows[0])
            first = str(table["path"][row]) if "path" in table else f"image {int(table['image_id'][row])}"
            bad[c] = NotFinite(len(rows), len(table["image_id"]), first)
    return bad


def _refuse_rates(found: Success, bad: dict[str, NotFinite]) -> Success:
    """Replace by NaN every rate that rests on a condition with a row that is not finite."""

    def refuse(name: str, c: str, rate: Rate) -> Rate:
        on = {c, *([] if name == "missed" else [NONE]), *([PATCH] if name == "over" else [])}
        if not on & set(bad):
            return rate
        known = NONE not in bad or name in ("missed", "clean")  # else nobody knows which rows count
        counts = (rate.count, rate.photographs) if known else (0, 0)
        return Rate(math.nan, math.nan, math.nan, *counts)

    by_name = {n: v for n, v in found._asdict().items() if isinstance(v, dict) and n != "not_finite"}
    refused = {n: {c: refuse(n, c, rate) for c, rate in entries.items()} for n, entries in by_name.items()}
    clean = refuse("clean", NONE, found.clean)
    return Success(**refused, clean=clean, not_finite=bad, goal=found.goal)


def _goal(table: Table, metric: str) -> str | None:
    """Return the name of the goal of a targeted metric; None for an untargeted one."""
    group, _ = split_group(metric)
    if f"{group}{REACHED}/{PATCH}" not in table:
        return None
    names = table.get(f"{group}{GOAL}")
    return "the goal" if names is None or not len(names) else str(names[0])


def _gains(table: Table, group: str, names: Sequence[str], counted: np.ndarray) -> dict[str, Rate]:
    """Compute the mean gain of the goal's score over the counted rows, per condition; none without scores."""
    if any(f"{group}{GOAL_SCORE}/{c}" not in table for c in (*names, NONE)):
        return {}
    scores = {c: table[f"{group}{GOAL_SCORE}/{c}"].astype(np.float64)[counted] for c in (*names, NONE)}
    return {c: bootstrap_mean(scores[c] - scores[NONE], table["image_id"][counted]) for c in names}


def effects(table: Table, metric: str = "found") -> np.ndarray:
    """Return the effect of the patch in each row: the victim's score without it minus the score with it.

    For a targeted attack it is the goal's score with the patch minus that without it.

    Without a metric of scores beside `metric`, the effect is 1 where an object found without the patch is
    lost, or the goal is answered with the patch alone. It is NaN in a row that is not finite.
    """
    targeted, group = _goal(table, metric) is not None, split_group(metric)[0]
    name = _score(table, metric) or metric
    if targeted:
        name = next(f"{group}{n}" for n in (GOAL_SCORE, REACHED) if f"{group}{n}/{NONE}" in table)
    with_patch, without = (table[f"{name}/{c}"].astype(np.float64) for c in (PATCH, NONE))
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN
        effect = with_patch - without if targeted else without - with_patch
    return np.where(finite_mask(table, f"{metric}/delta") & np.isfinite(effect), effect, np.nan)


def _score(table: Table, metric: str) -> str | None:
    """Return the metric of the victim's confidence beside `metric`; None if there is none."""
    names = (f"{split_group(metric)[0]}{score}" for score in SCORES)
    conditions = conditions_of(table, metric)
    return next((n for n in names if all(f"{n}/{c}" in table for c in conditions)), None)


def of_objects(objects: Table, metric: str = "found") -> Success | None:
    """Compute success over the table of objects; None if no metric of objects stands beside `metric`."""
    found = object_metric(metric)
    return success(objects, found) if f"{found}/{NONE}" in objects else None


def object_metric(metric: str) -> str:
    """Return the metric of the table of objects that stands beside a metric of rows: `found` of its group."""
    return f"{split_group(metric)[0]}found"
