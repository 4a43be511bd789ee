"""Rates and differences with intervals, every one with its denominator."""

import functools
import math
from typing import NamedTuple

import numpy as np

from fpatch import random
from fpatch.core.checks import check_number

FEW_PHOTOGRAPHS = 20
"""Fewer photographs than this: an interval comes with a warning."""
TOO_FEW_PHOTOGRAPHS = 5
"""Fewer than this: there is none."""
Z = 1.959964
"""Normal quantile of a 95 % interval."""


class Rate(NamedTuple):
    """An estimate in 0..1 (or a difference in -1..1) with a 95 % interval.

    Attributes:
        value: The estimate; NaN when nothing was counted.
        low: Lower bound, or NaN for no interval.
        high: Upper bound, or NaN for no interval.
        count: Rows in the denominator.
        photographs: Different photographs among them.
    """

    value: float
    low: float
    high: float
    count: int
    photographs: int

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "none counted"
        bounds = "no interval" if np.isnan(self.low) else f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f} % {bounds} of {self.count} rows, {self.photographs} photographs"


def wilson(successes: np.ndarray, image_id: np.ndarray, z: float = Z) -> Rate:
    """A single rate with Wilson's score interval, which is honest at 0 of n.

    Rows of one photograph may all share its fate, so n in the formula is not the number of rows but that of
    photographs; or less where some have more rows than others, and so more of a say in the rate.

    Args:
        successes: [n] bool.
        image_id: [n], the photograph of each row.
        z: Normal quantile; the default gives 95 %.

    Returns:
        The rate and its interval; there is none under five photographs.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
        Kish (1965), Survey Sampling, section 11.7 (the effective number of unequal weights).
    """
    rows, (_, sizes) = len(successes), np.unique(image_id, return_counts=True)
    groups = len(sizes)
    if rows == 0:
        return Rate(float("nan"), float("nan"), float("nan"), 0, 0)
    p = float(np.mean(successes))
    if groups < TOO_FEW_PHOTOGRAPHS:
        return Rate(p, float("nan"), float("nan"), rows, groups)
    n = float(rows**2 / (sizes**2).sum())
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Rate(p, 0.0 if p == 0 else center - half, 1.0 if p == 1 else center + half, rows, groups)


def num_photographs(rate: float, width: float, z: float = Z) -> int:
    """The fewest photographs whose Wilson interval about a rate is no wider than wished.

    Args:
        rate: The rate that is expected, 0..1; 0.5 needs the most.
        width: From the lower to the upper bound, as a share: 0.1 is 5 points up and down.
        z: Normal quantile; the default gives 95 %.

    Returns:
        At least five, under which there is no interval; as many rows are taken of each.
    """
    check_number("num_photographs(rate)", rate, 0.0, 1.0)
    check_number("num_photographs(width)", width, 1e-6, 1.0)
    # half the width h solves h^2 (n + z^2)^2 = z^2 (p (1 - p) n + z^2 / 4): a quadratic equation in n
    a, zz, spread = (width / 2) ** 2, z * z, rate * (1 - rate)
    b, c = 2 * a * zz - zz * spread, (a - 0.25) * zz * zz
    needed = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return max(TOO_FEW_PHOTOGRAPHS, math.ceil(needed - 1e-9))


def bootstrap_mean(
    values: np.ndarray, image_id: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> Rate:
    """A mean (of paired differences, say) with a percentile interval, resampling whole photographs.

    Args:
        values: [n], numbers or booleans.
        image_id: [n]; all rows of a photograph are drawn together.
        num_resamples: Bootstrap samples.
        seed: Of the key that they are drawn from.

    Returns:
        The mean and its 95 % interval. There is none under five photographs, nor where all values are equal:
        resampling would give that value with certainty, which n photographs cannot.

    References:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 8.3 (resampling of clusters).
    """
    n, values = len(values), values.astype(np.float64)
    if n == 0:
        return Rate(float("nan"), float("nan"), float("nan"), 0, 0)
    _, group = np.unique(image_id, return_inverse=True)
    groups = int(group.max()) + 1
    sums = np.bincount(group, weights=values)
    counts = np.bincount(group)
    mean = float(values.mean())
    if groups < TOO_FEW_PHOTOGRAPHS or np.ptp(values) == 0:
        return Rate(mean, float("nan"), float("nan"), n, groups)
    picks = resample(groups, num_resamples, seed)
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Rate(mean, float(low), float(high), n, groups)


@functools.lru_cache(maxsize=1)
def resample(groups: int, num_resamples: int, seed: int) -> np.ndarray:
    """The photographs [num_resamples, groups] of bootstrap samples, drawn once for all rates of a table."""
    picks = random.randint(random.key(seed), (num_resamples, groups), 0, groups).numpy()
    picks.setflags(write=False)
    return picks
