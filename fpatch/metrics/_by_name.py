"""The usual metric of a task, by the name of the task."""

from typing import Any

from fpatch.core.checks import nearest
from fpatch.core.registry import lookup
from fpatch.graph.stage import Definition, Stage

_EVALUATIONS = {"detection": "metrics.mean_average_precision"}


def by_name(name: str, **settings: Any) -> Stage:
    """Return the usual metric of a task.

    Args:
        name: The task: "detection" (mean average precision, and recall at a score).
        **settings: The settings of that metric.

    Raises:
        ValueError: If the task is unknown; the error names the nearest one.

    Example:
        >>> from fpatch import metrics
        >>> metrics.by_name("detection", score=0.3).config
        MeanAveragePrecision(score=0.3, iou=0.5)
    """
    if name not in _EVALUATIONS:
        raise ValueError(f"no evaluation {name!r}; {nearest(name, _EVALUATIONS)}")
    return lookup(_EVALUATIONS[name], Definition, "metrics.by_name")(**settings)
