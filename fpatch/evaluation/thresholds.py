"""Success rates at other score thresholds than that of the victim."""

import math
from collections.abc import Sequence

import numpy as np

from fpatch.evaluation.columns import numbers_of
from fpatch.evaluation.conditions import NONE
from fpatch.evaluation.rates import Table
from fpatch.metrics import Rate, wilson


def threshold_curve(
    table: Table, thresholds: Sequence[float], condition: str, metric: str = "best_score"
) -> list[Rate]:
    """Compute success rates at other score thresholds.

    A row counts if its score without a patch reaches the threshold; the attack succeeds on it if its score
    under the condition does not. All rates are NaN if a row is not finite.
    """
    rates = []
    names = (f"{metric}/{condition}", f"{metric}/{NONE}")
    scores, without = (numbers_of(table, name) for name in names)
    for threshold in thresholds:
        counted = without >= threshold
        rate = wilson(scores[counted] < threshold, table["image_id"][counted])
        if not (np.isfinite(scores).all() and np.isfinite(without).all()):
            rate = Rate(math.nan, math.nan, math.nan, 0, 0)
        rates.append(rate)
    return rates
