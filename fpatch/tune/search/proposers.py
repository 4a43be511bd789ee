"""What to try next: pure functions of what has been tried.

A search keeps no state, so that a sweep that was killed goes on from its table of trials alone.
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
"""Trials at random before a model is asked."""


class Observation(NamedTuple):
    """What a search knows of a trial.

    Attributes:
        settings: Its values by dotted name.
        value: Its objective, greater is better; None while it runs, NaN if there is none.
        error: Standard error of the value; NaN if that is unknown.
    """

    settings: Settings
    value: float | None = None
    error: float = math.nan

    @property
    def measured(self) -> bool:
        """Whether it has a value."""
        return self.value is not None and math.isfinite(self.value)


Propose = Callable[[Space, Sequence[Observation], Tensor], Settings]
"""(space, trials in their order, key) -> the settings of the next trial, whose number is their count."""


def propose_random(space: Space, seen: Sequence[Observation], key: Tensor) -> Settings:
    """Independent draws; trial n is the same whatever was tried before."""
    return space.draw(random.fold_in(key, len(seen)), 1)[0]


def propose_grid(points: int) -> Propose:
    """Every combination in turn."""

    def propose(space: Space, seen: Sequence[Observation], key: Tensor) -> Settings:
        return next(settings for i, settings in enumerate(space.grid(points)) if i == len(seen))

    return propose


def propose_optuna(sampler: str) -> Propose:
    """Optuna's tree-structured Parzen estimator ("tpe") or its Gaussian process ("gp").

    Neither knows how uncertain a value is. Trials that run count as they do in Optuna.

    References:
        Bergstra et al. (2011), Algorithms for hyper-parameter optimization, section 4 (tpe).
    """

    def propose(space: Space, seen: Sequence[Observation], key: Tensor) -> Settings:
        optuna = import_optuna()
        seed = int(random.bits(random.fold_in(key, len(seen))))
        with _quiet(optuna):
            if sampler == "tpe":
                chosen = optuna.samplers.TPESampler(
                    n_startup_trials=NUM_RANDOM, constant_liar=True, multivariate=True, group=True, seed=seed
                )
            else:
                chosen = optuna.samplers.GPSampler(n_startup_trials=NUM_RANDOM, seed=seed)
            study = optuna.create_study(direction="maximize", sampler=chosen)
            for trial in seen:
                study.add_trial(_to_optuna(optuna, space, trial))
            trial = study.ask()
            settings: Settings = {}
            for name, kind in space.varied.items():
                if space.active(name, settings):
                    settings[name] = _suggest(trial, name, kind)
        return settings

    return propose


def import_optuna() -> Any:
    """Optuna.

    Raises:
        ImportError: Without the extra `sweep`.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("this search needs optuna: pip install 'fpatch[sweep]'") from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Any:
    """Neither its log nor its notes that an option is experimental."""
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
