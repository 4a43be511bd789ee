"""Asynchronous successive halving: stop trials that fall behind the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fpatch.core.checks import check_number


@dataclass(frozen=True)
class Halving:
    """Rungs of asynchronous successive halving.

    Attributes:
        first: Step of the first rung; each next rung is at `factor` times the step of the previous one.
        factor: At each rung, a trial must be among the best 1/factor of those that reached it.

    Example:
        >>> from fpatch.tune import Halving
        >>> from fpatch.tune.search.halving import should_stop
        >>> others = {"0000": [(100, 0.9)], "0001": [(100, 0.7)]}
        >>> should_stop(Halving(first=100), 300, [(100, 0.2)], others)
        True
        >>> should_stop(Halving(first=100), 300, [(100, 0.95)], others)
        False
    """

    first: int
    factor: float = 3.0

    def __post_init__(self) -> None:
        check_number("sweep.halving.first", self.first, 1)
        check_number("sweep.halving.factor", self.factor, 1.000001)


Points = Sequence[tuple[int, float]]
"""The (step, value) pairs of a trial's evaluations, by step; greater is better."""


def should_stop(rule: Halving, num_steps: int, points: Points, others: Mapping[str, Points]) -> bool:
    """Return whether a trial falls behind at a rung that its last evaluation is the first to reach.

    The first trial at a rung is never stopped there. A later trial is compared with all that reached the rung
    before it.

    Args:
        rule: The rungs.
        num_steps: Steps of a whole trial; the end of a trial is no rung.
        points: Evaluations of this trial.
        others: Known evaluations of all other trials, by name.

    Returns:
        True if the trial should end now.

    References:
        Li et al. (2020), A system for massively parallel hyperparameter tuning, algorithm 2, in the form that
        stops trials instead of promoting them (as `ray.tune.schedulers.ASHAScheduler`).
    """
    step, value = points[-1]
    before = points[-2][0] if len(points) > 1 else 0
    rung = rule.first
    passed: list[float] = []
    while rung < num_steps:
        if before < rung <= step:
            passed.append(rung)
        rung = rung * rule.factor
    if not passed or step >= num_steps:
        return False
    arrived = [next((v for s, v in other if s >= passed[-1]), None) for other in others.values()]
    known = [v for v in arrived if v is not None and np.isfinite(v)]
    if not known:
        return False
    return not value >= np.percentile(known, 100.0 * (1.0 - 1.0 / rule.factor))
