"""Bayesian search that knows how uncertain each value is: a Gaussian process and noisy expected improvement.

An objective measured on few photographs is noisy, and differently so from trial to trial. The process takes
the square of each standard error as the noise of that value, so that one lucky trial does not draw the search
to it; and the best so far, which nobody knows, is averaged over what it may be.
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
"""How far, in units of the cube, candidates lie about the best trials."""
_NUM_DRAWS = 64
_JITTER = 1e-6


def propose_noisy_gp(space: Space, seen: Sequence[Observation], key: Tensor) -> Settings:
    """The candidate with the greatest noisy expected improvement; at random while there are few values.

    Trials that run count as points whose value is not known: their outcome is averaged over, too.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, algorithm 2.1; Letham et al.
        (2019), Constrained Bayesian optimization with noisy experiments, section 3 (noisy expected
        improvement).
    """
    measured = [trial for trial in seen if trial.measured]
    if len(measured) < NUM_RANDOM:
        return propose_random(space, seen, key)
    key = random.fold_in(key, len(seen))
    pending = [trial for trial in seen if trial.value is None]
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
    """How much better than the best of all points a place is expected to be, in units of the spread of y.

    Args:
        x: [n, d], points of the unit cube.
        y: [n], their values, greater is better.
        error: [n], standard errors of the values; NaN: the mean of the others, or 0 without any.
        pending: [m, d], points whose values are not known yet.
        at: [k, d], where to ask.
        draws: [n + m, s], standard normal numbers.

    Returns:
        [k], not negative.
    """
    scale = float(np.std(y)) or 1.0
    noise = _filled(error) / scale
    kernel = fit_kernel(x, (y - y.mean()) / scale, noise)
    points = np.concatenate([x, pending])
    # the values at all points, as far as they are known
    among, between = kernel(x) + np.diag(noise**2 + _JITTER), kernel(x, points)
    weights = np.linalg.solve(among, between)
    mean = weights.T @ ((y - y.mean()) / scale)
    covariance = kernel(points) - between.T @ weights
    values = mean[:, None] + _root(covariance) @ draws  # [n + m, s]
    # were these the values, without noise: expected improvement over the best of them
    exact = kernel(points) + _JITTER * np.eye(len(points))
    across = np.linalg.solve(exact, kernel(points, at))  # [n + m, k]
    means = across.T @ values  # [k, s]
    variance = kernel.diag(at) - np.einsum("nk,nk->k", across, kernel(points, at))
    spread = np.sqrt(np.maximum(variance, 1e-12))[:, None]
    z = (means - values.max(axis=0)) / spread
    improvement = spread * (z * _normal_cdf(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))
    return np.maximum(improvement, 0.0).mean(axis=1)


def fit_kernel(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> Any:
    """The Matern kernel (5/2, a length for every column) under which standardized values are likeliest.

    Raises:
        ImportError: Without the extra `sweep`.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern
    except ImportError as error:
        raise ImportError("this search needs scikit-learn: pip install 'fpatch[sweep]'") from error
    lengths: Any = np.full(x.shape[1], 0.5)
    alpha: Any = noise**2 + _JITTER
    kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern(lengths, (0.05, 10.0), nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=alpha, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a length at its bound: that setting does nothing
        return process.fit(x, y).kernel_


def _candidates(space: Space, measured: Sequence[Observation], key: Tensor) -> list[Observation]:
    """Draws from the space, and from about the three best."""
    drawn = space.draw(random.fold_in(key, "anywhere"), _NUM_CANDIDATES)
    best = sorted(measured, key=lambda t: -(t.value or 0.0))[:3]
    names = list(space.varied)
    near = random.normal(random.fold_in(key, "near"), (_NUM_NEAR, len(names))).mul(_NEAR).tolist()
    fresh = random.uniform(random.fold_in(key, "fresh"), (_NUM_NEAR, len(names))).tolist()
    for i in range(_NUM_NEAR):
        about = best[i % len(best)].settings
        units = {n: _moved(space, n, about, near[i][j], fresh[i][j]) for j, n in enumerate(names)}
        drawn.append(space.at(units))
    return [Observation(settings) for settings in drawn]


def _moved(space: Space, name: str, about: Settings, by: float, fresh: float) -> float:
    """A place near that of a setting; an option stays in four of five cases."""
    kind = space.varied[name]
    if name not in about:
        return fresh
    if isinstance(kind, Interval):
        return min(max(kind.unit(about[name]) + by, 0.0), 1.0)
    return kind.unit(about[name]) if fresh < 0.8 else (fresh - 0.8) * 5.0


def _filled(error: np.ndarray) -> np.ndarray:
    known = np.isfinite(error)
    return np.where(known, error, error[known].mean() if known.any() else 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix whose product with its transpose is the covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return ndtr(z)
