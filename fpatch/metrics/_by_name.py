"""Evaluations by what they are of: the name of a task to the metric that is usual for it."""

from typing import Any

from fpatch.core.checks import nearest
from fpatch.core.registry import lookup
from fpatch.graph.stage import Definition, Stage

EVALUATIONS = {"detection": "metrics.mean_average_precision"}


def by_name(name: str, **settings: Any) -> Stage:
    """The metric of a task.

    Args:
        name: "detection" (mean average precision, and recall at a score).
        **settings: Of that metric.

    Raises:
        ValueError: For an unknown name, with the nearest.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"no evaluation {name!r}; {nearest(name, EVALUATIONS)}")
    return lookup(EVALUATIONS[name], Definition, "metrics.by_name")(**settings)
