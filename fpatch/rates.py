"""From the table of an evaluation to success rates, with denominators, controls and intervals.

A row counts in the denominator if the victim finds the object without any patch; the attack succeeds on it if
the object is then not found. Success is *displaced* if a box of the class still answers beside the object,
and *gone* otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fpatch.evaluation import NONE, PATCH
from fpatch.metrics import Rate, bootstrap_mean, wilson

Table = Mapping[str, np.ndarray]


class Success(NamedTuple):
    """Success rates of one evaluation.

    Attributes:
        rates: Per condition but "none", Wilson intervals over photographs.
        displaced: The part of each rate where a box answers beside the object; empty without that metric.
        gone: The rest.
        over: The patch's rate minus that of each control, paired, bootstrapped over photographs.
        clean: Share of the rows with an object in which it is found without a patch: the denominator.
    """

    rates: dict[str, Rate]
    displaced: dict[str, Rate]
    gone: dict[str, Rate]
    over: dict[str, Rate]
    clean: Rate

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log."""
        flat = {f"success/{c}": rate.value for c, rate in self.rates.items()}
        flat |= {f"success/{c}/displaced": rate.value for c, rate in self.displaced.items()}
        flat |= {f"success/over/{c}": rate.value for c, rate in self.over.items()}
        return flat | {"success/clean": self.clean.value}


def conditions_of(table: Table, metric: str = "found") -> list[str]:
    """The conditions that a table holds a metric for, the patch first and "none" last."""
    prefix = f"{metric}/"
    names = [
        n.removeprefix(prefix) for n in table if n.startswith(prefix) and not n.startswith(f"{prefix}delta")
    ]
    return sorted(names, key=lambda c: (c != PATCH, c == NONE))


def success(table: Table, metric: str = "found") -> Success:
    """Success rates over a table of rows.

    Args:
        table: Columns of `fpatch.evaluation.Evaluation`.
        metric: A boolean metric that says whether the victim is right.

    Raises:
        ValueError: If the table has no such metric, or it is not boolean.
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
    has_object = table.get(f"has_object/{NONE}", np.ones_like(counted)).astype(bool)
    has_displaced = all(f"displaced/{c}" in table for c in names)
    beside = {c: table[f"displaced/{c}"].astype(bool)[counted] for c in names if has_displaced}
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
    )


def effects(table: Table) -> np.ndarray:
    """How much of the victim's certainty the patch takes, per row.

    The score without it minus the score with it, where a metric tells scores (`best_score`, `confidence`);
    otherwise 1 where a found object is lost.
    """
    name = next((n for n in ("best_score", "confidence") if f"{n}/{PATCH}" in table), "found")
    with_patch, without = (table[f"{name}/{c}"].astype(np.float64) for c in (PATCH, NONE))
    return without - with_patch


def threshold_curve(
    table: Table, thresholds: Sequence[float], condition: str, metric: str = "best_score"
) -> list[Rate]:
    """Success at other score thresholds.

    Of the objects whose score without a patch reaches each threshold, the share whose score under the
    condition does not.
    """
    rates = []
    for threshold in thresholds:
        counted = table[f"{metric}/{NONE}"] >= threshold
        rates.append(wilson(table[f"{metric}/{condition}"][counted] < threshold, table["image_id"][counted]))
    return rates
