"""Asynchronous successive halving: which trials are not worth their remaining steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fpatch.core.checks import check_number


@dataclass(frozen=True)
class Halving:
    """Where trials are compared.

    Attributes:
        first: Step of the first comparison; the next are at `factor` times the one before.
        factor: At each, a trial must be among the best 1/factor of those that came so far.
    """

    first: int
    factor: float = 3.0

    def __post_init__(self) -> None:
        check_number("sweep.halving.first", self.first, 1)
        check_number("sweep.halving.factor", self.factor, 1.000001)


Points = Sequence[tuple[int, float]]
"""(step, value) of the evaluations of a trial, by step; greater is better."""


def should_stop(rule: Halving, num_steps: int, points: Points, others: Mapping[str, Points]) -> bool:
    """Whether the last evaluation of a trial is the first at or after a comparison that it loses.

    Who comes first at a comparison is never stopped by it. What arrives there late is compared with all that
    came before it.

    Args:
        rule: Where trials are compared.
        num_steps: Of a whole trial, which is not stopped at its end.
        points: Of this trial.
        others: Of all other trials, by name, as far as they are known.

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
