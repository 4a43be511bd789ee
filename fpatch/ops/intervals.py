"""Rates and differences with intervals and their denominators."""

import functools
import math
from typing import NamedTuple

import numpy as np

from fpatch import random
from fpatch.core.checks import check_number

FEW_IMAGES = 20
"""With fewer images, an interval comes with a warning."""
TOO_FEW_IMAGES = 5
"""With fewer images, there is no interval."""
Z = 1.959964
"""The normal quantile of a 95 % interval."""


class Rate(NamedTuple):
    """An estimate in 0..1 (or a difference in -1..1) with a 95 % interval.

    Attributes:
        value: The estimate; NaN if no row counts.
        low: The lower bound; NaN without an interval.
        high: The upper bound; NaN without an interval.
        count: Rows in the denominator.
        photographs: Different images among these rows.

    Example:
        >>> from fpatch.ops.intervals import Rate
        >>> print(Rate(0.755, 0.7, 0.8, 120, 60))
        75.5 % [70.0, 80.0] of 120 rows, 60 images
    """

    value: float
    low: float
    high: float
    count: int
    photographs: int

    def __str__(self) -> str:
        if np.isnan(self.value):
            return f"not finite, of {self.count} rows" if self.count else "none counted"
        bounds = "no interval" if np.isnan(self.low) else f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f} % {bounds} of {self.count} rows, {self.photographs} images"


def wilson(successes: np.ndarray, image_id: np.ndarray, z: float = Z) -> Rate:
    """A rate with Wilson's score interval, which is valid at 0 of n too.

    Rows of one image may be fully correlated, so n in the formula is the number of images, not of rows. It is
    less than that if images have different numbers of rows: Kish's effective number.

    Args:
        successes: [n] bool.
        image_id: [n], the image of each row.
        z: The normal quantile; the default gives 95 %.

    Returns:
        The rate and its interval; below five images the interval is NaN.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
        Kish (1965), Survey Sampling, section 11.7 (the effective number of unequal weights).

    Example:
        >>> import numpy as np
        >>> from fpatch.ops.intervals import wilson
        >>> print(wilson(np.arange(40) < 30, np.arange(40)))
        75.0 % [59.8, 85.8] of 40 rows, 40 images
    """
    rows, (_, sizes) = len(successes), np.unique(image_id, return_counts=True)
    groups = len(sizes)
    if rows == 0:
        return Rate(float("nan"), float("nan"), float("nan"), 0, 0)
    p = float(np.mean(successes))
    if groups < TOO_FEW_IMAGES:
        return Rate(p, float("nan"), float("nan"), rows, groups)
    n = float(rows**2 / (sizes**2).sum())
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Rate(p, 0.0 if p == 0 else center - half, 1.0 if p == 1 else center + half, rows, groups)


def num_photographs(rate: float, width: float, z: float = Z) -> int:
    """The fewest images for a Wilson interval of at most a given width.

    Args:
        rate: The expected rate, 0..1; 0.5 needs the most images.
        width: From the lower to the upper bound, as a fraction: 0.1 means 5 points up and down.
        z: The normal quantile; the default gives 95 %.

    Returns:
        The number of images, at least five; every image has the same number of rows.

    Raises:
        ValueError: For a rate or width out of its range.

    Example:
        >>> from fpatch.ops.intervals import num_photographs
        >>> num_photographs(0.5, 0.1), num_photographs(0.9, 0.1)
        (381, 141)
    """
    check_number("num_photographs(rate)", rate, 0.0, 1.0)
    check_number("num_photographs(width)", width, 1e-6, 1.0)
    # half the width h solves h^2 (n + z^2)^2 = z^2 (p (1 - p) n + z^2 / 4): a quadratic equation in n
    a, zz, spread = (width / 2) ** 2, z * z, rate * (1 - rate)
    b, c = 2 * a * zz - zz * spread, (a - 0.25) * zz * zz
    needed = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return max(TOO_FEW_IMAGES, math.ceil(needed - 1e-9))


def bootstrap_mean(
    values: np.ndarray, image_id: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> Rate:
    """A mean, e.g. of paired differences, with a percentile interval from resampled images.

    Args:
        values: [n], numbers or booleans.
        image_id: [n], the image of each row; all rows of an image are resampled together.
        num_resamples: Bootstrap samples.
        seed: The seed of the resampling.

    Returns:
        The mean and its 95 % interval. The interval is NaN below five images, and if all values are equal:
        their bootstrap interval would have width 0, which no finite sample justifies.

    References:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 8.3 (resampling of clusters).

    Example:
        >>> import numpy as np
        >>> from fpatch.ops.intervals import bootstrap_mean
        >>> rate = bootstrap_mean(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), np.arange(6))
        >>> round(rate.value, 3), rate.low < rate.value < rate.high, rate.photographs
        (0.667, True, 6)
    """
    n, values = len(values), values.astype(np.float64)
    if n == 0:
        return Rate(float("nan"), float("nan"), float("nan"), 0, 0)
    _, group = np.unique(image_id, return_inverse=True)
    groups = int(group.max()) + 1
    sums = np.bincount(group, weights=values)
    counts = np.bincount(group)
    mean = float(values.mean())
    if groups < TOO_FEW_IMAGES or np.ptp(values) == 0:
        return Rate(mean, float("nan"), float("nan"), n, groups)
    picks = resample(groups, num_resamples, seed)
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Rate(mean, float(low), float(high), n, groups)


@functools.lru_cache(maxsize=1)
def resample(groups: int, num_resamples: int, seed: int) -> np.ndarray:
    """The image indices [num_resamples, groups] of bootstrap samples, drawn once for all rates of a table.

    Example:
        >>> from fpatch.ops.intervals import resample
        >>> resample(5, 100, seed=0).shape
        (100, 5)
    """
    picks = random.randint(random.key(seed), (num_resamples, groups), 0, groups).numpy()
    picks.setflags(write=False)
    return picks
