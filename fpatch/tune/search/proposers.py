"""Proposers: pure functions from the observed trials to the settings of the next one.

A search keeps no state, so a killed sweep resumes from its journal alone.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from fpatch import random
from fpatch.tune.search.space import Choice, Settings, Space

NUM_RANDOM = 8
"""Random trials before a model proposes."""


class Observation(NamedTuple):
    """A trial as a search sees it.

    Attributes:
        settings: Values by dotted name.
        value: The objective, greater is better; None while the trial runs, NaN if it has none.
        error: Standard error of the value; NaN if unknown.
    """

    settings: Settings
    value: float | None = None
    error: float = math.nan

    @property
    def measured(self) -> bool:
        """True if the value is known and finite."""
        return self.value is not None and math.isfinite(self.value)


Propose = Callable[[Space, Sequence[Observation], Tensor], Settings]
"""(space, observations in order, key) -> settings of the next trial, whose number is their count."""


def propose_random(space: Space, observations: Sequence[Observation], key: Tensor) -> Settings:
    """Propose an independent draw; trial n does not depend on the trials before it."""
    return space.draw(random.fold_in(key, len(observations)), 1)[0]


def propose_grid(points: int) -> Propose:
    """Make a proposer that tries every grid point in turn."""

    def propose(space: Space, observations: Sequence[Observation], key: Tensor) -> Settings:
        return next(settings for i, settings in enumerate(space.grid(points)) if i == len(observations))

    return propose


def propose_optuna(sampler: str) -> Propose:
    """Make a proposer of Optuna: tree-structured Parzen estimator ("tpe") or Gaussian process ("gp").

    Neither takes the standard error of a value. Running trials count as they do in Optuna.

    References:
        Bergstra et al. (2011), Algorithms for hyper-parameter optimization, section 4 (tpe).
    """

    def propose(space: Space, observations: Sequence[Observation], key: Tensor) -> Settings:
        optuna = import_optuna()
        seed = int(random.bits(random.fold_in(key, len(observations))))
        with _quiet(optuna):
            if sampler == "tpe":
                chosen = optuna.samplers.TPESampler(
                    n_startup_trials=NUM_RANDOM, constant_liar=True, multivariate=True, group=True, seed=seed
                )
            else:
                chosen = optuna.samplers.GPSampler(n_startup_trials=NUM_RANDOM, seed=seed)
            study = optuna.create_study(direction="maximize", sampler=chosen)
            for trial in observations:
                study.add_trial(_to_optuna(optuna, space, trial))
            trial = study.ask()
            settings: Settings = {}
            for name, kind in space.varied.items():
                if space.active(name, settings):
                    settings[name] = _suggest(trial, name, kind)
        return settings

    return propose


def import_optuna() -> Any:
    """Import Optuna.

    Raises:
        ImportError: If the extra `sweep` is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("this search needs optuna: pip install 'fpatch[sweep]'") from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Any:
    """Silence Optuna's log and its warnings about experimental options."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _suggest(trial: Any, name: str, kind: Any) -> Any:
    if isinstance(kind, Choice):
        return kind.options[trial.suggest_categorical(name, range(len(kind.options)))]
    suggest = trial.suggest_int if kind.integer else trial.suggest_float
    return suggest(name, kind.low, kind.high, log=kind.log)


def _to_optuna(optuna: Any, space: Space, trial: Observation) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {}
    kinds: dict[bool, Any] = {True: IntDistribution, False: FloatDistribution}
    params: dict[str, Any] = {}
    for name, value in trial.settings.items():
        kind = space.varied[name]
        if isinstance(kind, Choice):
            distributions[name] = CategoricalDistribution(range(len(kind.options)))
            params[name] = kind.options.index(value)
        else:
            distributions[name] = kinds[kind.integer](kind.low, kind.high, log=kind.log)
            params[name] = value
    states = optuna.trial.TrialState
    state = states.RUNNING if trial.value is None else states.COMPLETE if trial.measured else states.FAIL
    made = optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=distributions,
        value=trial.value if trial.measured else None,
    )
    return made
