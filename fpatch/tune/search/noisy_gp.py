"""Bayesian search with the noise of each value: a Gaussian process and noisy expected improvement.

An objective that is measured on few images is noisy, and the noise differs between trials. The squared
standard error of a value is its noise variance in the process, so one lucky trial does not attract the
search. The expected improvement is averaged over draws of the unknown best value.

`benchmarks/search.py` compares it with Optuna. Its late trials are better where the errors differ between
trials, and worse where they are equal, so it is not the default.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fpatch import random
from fpatch.tune.search.proposers import NUM_RANDOM, Observation, propose_random
from fpatch.tune.search.space import Interval, Settings, Space

_NUM_CANDIDATES = 1024
_NUM_NEAR = 256
_NEAR = 0.1
"""Standard deviation of candidates around the best trials, in units of the cube."""
_NUM_DRAWS = 64
_JITTER = 1e-6


def propose_noisy_gp(space: Space, observations: Sequence[Observation], key: Tensor) -> Settings:
    """Propose the candidate with the greatest noisy expected improvement.

    The first eight measured trials are random. Running trials are points without a value: their outcome is
    averaged over, too.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, algorithm 2.1; Letham et al.
        (2019), Constrained Bayesian optimization with noisy experiments, section 3 (noisy expected
        improvement).
    """
    measured = [trial for trial in observations if trial.measured]
    if len(measured) < NUM_RANDOM:
        return propose_random(space, observations, key)
    key = random.fold_in(key, len(observations))
    pending = [trial for trial in observations if trial.value is None]
    candidates = _candidates(space, measured, key)
    x = np.stack([space.encode(t.settings) for t in candidates])
    scores = noisy_expected_improvement(
        np.stack([space.encode(t.settings) for t in measured]),
        np.array([t.value for t in measured]),
        np.array([t.error for t in measured]),
        np.stack([space.encode(t.settings) for t in pending]) if pending else np.zeros((0, x.shape[1])),
        x,
        random.normal(random.fold_in(key, "values"), (len(measured) + len(pending), _NUM_DRAWS)).numpy(),
    )
    return candidates[int(np.argmax(scores))].settings


def noisy_expected_improvement(
    x: np.ndarray, y: np.ndarray, error: np.ndarray, pending: np.ndarray, at: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """The expected improvement of places over the best point, in standard deviations of y.

    Args:
        x: [n, d], points of the unit cube.
        y: [n], their values, greater is better.
        error: [n], standard errors of the values; NaN: the mean of the others, or 0 if all are NaN.
        pending: [m, d], points without a value so far.
        at: [k, d], places to score.
        draws: [n + m, s], standard normal numbers.

    Returns:
        [k], at least 0.
    """
    scale = float(np.std(y)) or 1.0
    noise = _fill_missing(error) / scale
    kernel = fit_kernel(x, (y - y.mean()) / scale, noise)
    points = np.concatenate([x, pending])
    # posterior of the noiseless values at all points
    among, between = kernel(x) + np.diag(noise**2 + _JITTER), kernel(x, points)
    weights = np.linalg.solve(among, between)
    mean = weights.T @ ((y - y.mean()) / scale)
    covariance = kernel(points) - between.T @ weights
    values = mean[:, None] + _matrix_root(covariance) @ draws  # [n + m, s]
    # for each draw of these values: the expected improvement over its best
    exact = kernel(points) + _JITTER * np.eye(len(points))
    across = np.linalg.solve(exact, kernel(points, at))  # [n + m, k]
    means = across.T @ values  # [k, s]
    variance = kernel.diag(at) - np.einsum("nk,nk->k", across, kernel(points, at))
    spread = np.sqrt(np.maximum(variance, 1e-12))[:, None]
    z = (means - values.max(axis=0)) / spread
    improvement = spread * (z * _normal_cdf(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
    return np.maximum(improvement, 0.0).mean(axis=1)


def fit_kernel(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> Any:
    """Fit a Matern kernel (5/2, one length for each column) to standardized values by maximum likelihood.

    Raises:
        ImportError: If the extra `sweep` is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern
    except ImportError as error:
        raise ImportError("search = 'noisy_gp' needs scikit-learn: pip install 'fpatch[sweep]'") from error
    lengths: Any = np.full(x.shape[1], 0.5)
    alpha: Any = noise**2 + _JITTER
    kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern(lengths, (0.05, 10.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=alpha, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a length at its bound: the setting has no effect
        return process.fit(x, y).kernel_


def _candidates(space: Space, measured: Sequence[Observation], key: Tensor) -> list[Observation]:
    """Draw candidates from the whole space and near the three best trials."""
    drawn = space.draw(random.fold_in(key, "anywhere"), _NUM_CANDIDATES)
    best = sorted(measured, key=lambda t: -(t.value or 0.0))[:3]
    names = list(space.varied)
    near = random.normal(random.fold_in(key, "near"), (_NUM_NEAR, len(names))).mul(_NEAR).tolist()
    fresh = random.uniform(random.fold_in(key, "fresh"), (_NUM_NEAR, len(names))).tolist()
    for i in range(_NUM_NEAR):
        about = best[i % len(best)].settings
        units = {n: _move(space, n, about, near[i][j], fresh[i][j]) for j, n in enumerate(names)}
        drawn.append(space.at(units))
    return [Observation(settings) for settings in drawn]


def _move(space: Space, name: str, about: Settings, by: float, fresh: float) -> float:
    """Return a position near that of a setting; an option stays in four of five cases."""
    kind = space.varied[name]
    if name not in about:
        return fresh
    if isinstance(kind, Interval):
        return min(max(kind.unit(about[name]) + by, 0.0), 1.0)
    return kind.unit(about[name]) if fresh < 0.8 else (fresh - 0.8) * 5.0


def _fill_missing(error: np.ndarray) -> np.ndarray:
    """Replace NaN by the mean of the other values, or by 0 if all are NaN."""
    known = np.isfinite(error)
    return np.where(known, error, error[known].mean() if known.any() else 0.0)


def _matrix_root(covariance: np.ndarray) -> np.ndarray:
    """Return A with A A^T = covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return ndtr(z)
