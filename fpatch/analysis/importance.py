"""Permutation importance of the sampled values for a metric, on held-out images."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fpatch.core.checks import check_number, nearest
from fpatch.evaluation.columns import finite_mask
from fpatch.evaluation.means import rows_with_object
from fpatch.metrics import Rate
from fpatch.ops.intervals import FEW_IMAGES, resample

_NUM_FOLDS = 5
_MAX_CATEGORIES = 10
"""Integers with at most this number of values are categories: an index, not an amount."""

_PREFIX = "sample/"
_NUM_RESAMPLES = 2000


class NothingToExplain(ValueError):
    """The metric, the images or the sampled values of a table allow no importance."""


class Importance(NamedTuple):
    """The fall of the score when one column is shuffled.

    Attributes:
        column: The name of the column in the table.
        mean: The mean fall of the score over the repeats.
        std: Its standard deviation over the repeats: the noise of the shuffling, not of the choice of images.

    Example:
        >>> from fpatch import analysis
        >>> analysis.Importance("sample/exposure/stops", mean=0.4, std=0.02).column
        'sample/exposure/stops'
    """

    column: str
    mean: float
    std: float


class Importances(NamedTuple):
    """The importance of the sampled values for a metric, and the score of the forest.

    Attributes:
        metric: The column explained.
        score: The share of the metric's variance that the forest predicts on held-out images, with a 95 %
            interval over images. 1 is all of it; 0 or less is no better than the mean of the other images.
        columns: From the most important to the least; `mean` is in units of the score.
        constant: Sampled columns left out because all rows have one value.
        dropped: The number of rows left out because the metric is not finite or the row has no object.
        warnings: Reasons not to trust the numbers, a sentence each.

    Example:
        >>> from fpatch import analysis, metrics
        >>> columns = (analysis.Importance("sample/blur/px", 0.4, 0.02),)
        >>> print(analysis.Importances("loss", metrics.Rate(0.5, 0.4, 0.6, 90, 30), columns, (), 0, ()))
        loss: held-out score 0.500 [0.400, 0.600] (90 rows, 30 images)
          sample/blur/px   0.400 +- 0.020
    """

    metric: str
    score: Rate
    columns: tuple[Importance, ...]
    constant: tuple[str, ...]
    dropped: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(c.column) for c in self.columns)
        low, high = self.score.low, self.score.high
        counted = f"{self.score.count} rows, {self.score.photographs} images"
        lines = [
            f"{self.metric}: held-out score {self.score.value:.3f} [{low:.3f}, {high:.3f}] ({counted})",
            *(f"  {c.column:<{width}}  {c.mean:6.3f} +- {c.std:.3f}" for c in self.columns),
            *(f"warning: {sentence}" for sentence in self.warnings),
        ]
        return "\n".join(lines)


def permutation_importance(
    table: Mapping[str, np.ndarray], metric: str, *, num_repeats: int = 10, seed: int = 0
) -> Importances:
    """Measure how much a metric depends on each sampled value.

    A random forest learns the metric from the columns `sample/...`. Its score is measured on held-out images,
    in five folds that keep the rows of an image together. The importance of a column is the fall of the score
    when its values are shuffled among the held-out rows. Integers with few values are learned as dummy
    variables and shuffled as one column. Keys and constant columns are left out.

    Correlated columns share their importance, so each may seem to have little.

    Args:
        table: Columns of equal length, such as `Evaluation.table` or the result of `Run.load_table`.
        metric: The column to explain: booleans (as 0 and 1) or numbers, such as "found/delta".
        num_repeats: The number of times that every column is shuffled.
        seed: The seed of the forest, the folds and the shuffling.

    Returns:
        The columns from the most important to the least, the score, and warnings.

    Raises:
        ImportError: If the extra `analysis` is not installed.
        ValueError: If the metric is unknown or holds no numbers. The subclass `NothingToExplain`: if the
            metric is constant, there are fewer than five images, or no sampled value varies.

    References:
        Breiman (2001), Random forests, section 10 (the importance of a variable).
        Fisher, Rudin, Dominici (2019), All models are wrong, but many are useful, section 3.

    Example:
        >>> import numpy as np
        >>> from fpatch import analysis
        >>> stops, image_id = np.linspace(-1, 1, 30), np.arange(30)
        >>> table = {"image_id": image_id, "sample/exposure/stops": stops, "sample/blur/px": image_id % 3 / 2}
        >>> table["found/patch"] = stops > 0  # the brightness decides
        >>> analysis.permutation_importance(table, "found/patch", num_repeats=1).columns[0].column
        'sample/exposure/stops'
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "permutation importance needs scikit-learn: pip install 'fpatch[analysis]'"
        ) from error
    check_number("permutation_importance(num_repeats)", num_repeats, 1)
    explained, kept = _metric_values(table, metric)
    images = table["image_id"][kept]
    num_images = len(np.unique(images))
    if num_images < _NUM_FOLDS:
        raise NothingToExplain(
            f"permutation_importance: {metric} must be finite on at least {_NUM_FOLDS} images, got "
            f"{num_images}; evaluate more"
        )
    names, constant = _sampled_columns(table, kept)
    features = np.stack([table[name][kept].astype(np.float64) for name in names], axis=1)
    categories = [i for i, name in enumerate(names) if _is_category(table[name][kept])]

    error_of_mean, error_of_forest, rise = _cross_validate(
        features, explained, images, categories, num_repeats, seed
    )
    score = _score(error_of_forest, error_of_mean, images, seed)
    falls = rise / error_of_mean.sum()
    columns = [
        Importance(name, float(fall.mean()), float(fall.std()))
        for name, fall in zip(names, falls, strict=True)
    ]
    return Importances(
        metric,
        score,
        tuple(sorted(columns, key=lambda c: -c.mean)),
        constant,
        int((~kept).sum()),
        tuple(_warnings(metric, score)),
    )


def _cross_validate(
    features: np.ndarray,
    explained: np.ndarray,
    images: np.ndarray,
    categories: list[int],
    num_repeats: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a forest per fold, and shuffle every column among the held-out rows.

    Returns:
        The squared errors of the mean and of the forest on held-out rows, [n] each; the rise of the summed
        squared error for each column and repeat, [columns, num_repeats].
    """
    from sklearn import inspection
    from sklearn.model_selection import GroupKFold

    error_of_mean, error_of_forest = np.zeros(len(explained)), np.zeros(len(explained))
    rise = np.zeros((features.shape[1], num_repeats))
    folds = GroupKFold(_NUM_FOLDS, shuffle=True, random_state=seed)
    for learned, held_out in folds.split(features, explained, images):
        forest = _make_forest(categories, seed).fit(features[learned], explained[learned])
        rows = features[held_out], explained[held_out]
        error_of_mean[held_out] = (explained[held_out] - explained[learned].mean()) ** 2
        error_of_forest[held_out] = (explained[held_out] - forest.predict(rows[0])) ** 2
        shuffled = inspection.permutation_importance(
            forest, *rows, scoring="neg_mean_squared_error", n_repeats=num_repeats, random_state=seed
        )
        rise += shuffled.importances * len(held_out)  # type: ignore[attr-defined]
    return error_of_mean, error_of_forest, rise


def _metric_values(table: Mapping[str, np.ndarray], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite values of a metric in rows with an object, and the mask [n] of these rows.

    A row in which something that the metric rests on is not finite does not count.
    """
    known = [n for n, c in table.items() if c.dtype.kind in "bf" and not n.startswith(_PREFIX)]
    if metric not in known:
        raise ValueError(
            f"permutation_importance: {metric!r} is no metric of the table; {nearest(metric, known)}"
        )
    values = table[metric].astype(np.float64)
    kept = np.isfinite(values) & finite_mask(table, metric) & rows_with_object(table, metric)
    if len(values[kept]) == 0 or np.ptp(values[kept]) == 0:
        found = "nowhere finite" if not kept.any() else f"{values[kept][0]:g} in every row"
        raise NothingToExplain(
            f"permutation_importance: {metric} is {found}: nothing to explain; choose another"
        )
    return values[kept], kept


def _sampled_columns(table: Mapping[str, np.ndarray], kept: np.ndarray) -> tuple[list[str], tuple[str, ...]]:
    """Return the sampled columns that vary, and the constant ones; keys are neither."""
    names = [n for n in table if n.startswith(_PREFIX) and not is_key(n)]
    constant = tuple(n for n in names if (table[n][kept] == table[n][kept][0]).all())
    if len(names) == len(constant):
        raise NothingToExplain(
            "permutation_importance: no sampled value varies among these rows; evaluate with stages that draw"
        )
    return [n for n in names if n not in constant], constant


def is_key(column: str) -> bool:
    """Return whether a column holds half of a random key, or a seed: numbers without an order."""
    return re.search(r"(^|[/_])(keys?|seed)(/\d+)?$", column) is not None


def _is_category(values: np.ndarray) -> bool:
    return values.dtype.kind == "i" and len(np.unique(values)) <= _MAX_CATEGORIES


def _make_forest(categories: list[int], seed: int):
    """Make a forest behind dummy variables, so that a category is shuffled as one column."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    dummies = (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories)
    return make_pipeline(
        make_column_transformer(dummies, remainder="passthrough"),
        RandomForestRegressor(100, min_samples_leaf=5, random_state=seed),
    )


def _score(error: np.ndarray, baseline: np.ndarray, images: np.ndarray, seed: int) -> Rate:
    """Return 1 minus the ratio of two sums of squared errors, bootstrapped over images."""
    _, group = np.unique(images, return_inverse=True)
    sums, sums_baseline = (np.bincount(group, weights=rows) for rows in (error, baseline))
    picks = resample(len(sums), _NUM_RESAMPLES, seed)
    low, high = np.quantile(1 - sums[picks].sum(1) / sums_baseline[picks].sum(1), [0.025, 0.975])
    return Rate(1 - float(error.sum() / baseline.sum()), float(low), float(high), len(error), len(sums))


def _warnings(metric: str, score: Rate) -> list[str]:
    found = []
    if score.low <= 0:
        found.append(
            f"the sampled values do not predict {metric} on held-out images (the score may be 0), so the "
            "importances mean nothing"
        )
    if score.photographs < FEW_IMAGES:
        found.append(f"{score.photographs} images are few; the interval is too narrow")
    return found
