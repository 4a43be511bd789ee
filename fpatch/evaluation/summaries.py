"""States of the metrics that gather rows over an evaluation.

Beside the state of each metric stands the number of its rows that are not finite. They are gathered as zeros,
and every number of a metric with such a row is NaN.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.types import Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Summary

_NOT_FINITE = ".not_finite"  # no path of a node has a dot


def init_states(pipeline: Pipeline) -> dict[str, Any]:
    """Make the empty state of every metric with a summary, by path."""
    states: dict[str, Any] = {}
    for path, summary, config in _summaries(pipeline):
        states |= {path: summary.init(config), f"{path}{_NOT_FINITE}": 0}
    return states


def update_states(
    pipeline: Pipeline,
    states: Mapping[str, Any],
    seen: Mapping[str, Values],
    finite: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Add rows to the states; `measure` returns their values under "seen".

    Args:
        pipeline: The pipeline of the metrics.
        states: The states so far.
        seen: The inputs of every metric, by path.
        finite: The masks [b] of the rows whose inputs are finite, by path; None: all.
    """
    updated: dict[str, Any] = {}
    for path, summary, config in _summaries(pipeline):
        bad = ~finite[path] if finite and path in finite else torch.zeros(0, dtype=torch.bool)
        values = _zero_rows(seen[path], bad) if bool(bad.any()) else seen[path]
        updated[f"{path}{_NOT_FINITE}"] = states[f"{path}{_NOT_FINITE}"] + int(bad.sum())
        try:
            updated[path] = summary.update(config, states[path], values)
        except (ValueError, TypeError, RuntimeError) as error:
            error.add_note(f"in node {path!r}: {pipeline[path].stage!r}")
            raise
    return updated


def merge_states(pipeline: Pipeline, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the states of two shards; the rows of `a` come first.

    Example:
        >>> import torch
        >>> from fpatch import metrics, pipeline
        >>> from fpatch.evaluation.summaries import init_states, merge_states, update_states
        >>> test = pipeline({"precision": metrics.mean_average_precision()})
        >>> box, label, yes = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[True]])
        >>> final = {"boxes": box, "scores": torch.tensor([[0.4]]), "labels": label, "valid": yes}
        >>> seen = {"detections": {"final": final}, "boxes": box, "labels": label, "box_valid": yes}
        >>> one = update_states(test, init_states(test), {"precision": seen})
        >>> merge_states(test, one, one)["precision"]["found/scores"]
        [tensor([0.4000, 0.4000])]
    """
    merged: dict[str, Any] = {}
    for path, summary, config in _summaries(pipeline):
        bad = f"{path}{_NOT_FINITE}"
        merged |= {path: summary.merge(config, a[path], b[path]), bad: a[bad] + b[bad]}
    return merged


def compute_states(
    pipeline: Pipeline, states: Mapping[str, Any], class_names: Sequence[str] = ()
) -> dict[str, float]:
    """Compute the summaries of the states: `{path/name: number}`, NaN if a row was not finite.

    A label at the end of a name, as in `map/3`, gives way to the name of its class.
    """
    return {
        f"{path}/{name}": math.nan if states[f"{path}{_NOT_FINITE}"] else float(value)
        for path, summary, config in _summaries(pipeline)
        for name, value in name_classes(summary.compute(config, states[path]), class_names).items()
    }


def name_classes(numbers: Mapping[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """Replace labels at the ends of names by the names of their classes.

    A vector with more entries than there are classes, and a matrix, as `matrix/0/1`, keep their indices. So
    does a label beyond the names.

    Example:
        >>> from fpatch.evaluation.summaries import name_classes
        >>> name_classes({"map/1": 0.5, "roc/0": 0.0, "roc/1": 0.5, "roc/2": 1.0}, ("stop", "turn"))
        {'map/turn': 0.5, 'roc/0': 0.0, 'roc/1': 0.5, 'roc/2': 1.0}
    """
    indices: dict[str, set[int]] = {}
    for own, index in map(_split_index, numbers):
        if index is not None:
            indices.setdefault(own, set()).add(index)
    count = len(class_names)
    vectors = {own for own, found in indices.items() if len(found) > max(count, *found)}

    def named(name: str) -> str:
        own, index = _split_index(name)
        in_matrix = _split_index(own)[1] is not None
        if index is None or index >= count or own in vectors or in_matrix:
            return name
        return f"{own}/{class_names[index]}"

    return {named(name): value for name, value in numbers.items()}


def _split_index(name: str) -> tuple[str, int | None]:
    """Return a name without the index at its end, and the index; None if there is none."""
    own, _, last = name.rpartition("/")
    return (own, int(last)) if own and last.isdecimal() else (name, None)


def _zero_rows(values: Values, bad: Tensor) -> Values:
    """Replace the rows of a mask by zeros."""

    def replace(x: Tensor) -> Tensor:
        return torch.where(bad.reshape(-1, *[1] * (x.ndim - 1)), torch.zeros_like(x), x)

    return optree.tree_map(replace, values)  # type: ignore[return-value]


def _summaries(pipeline: Pipeline) -> Iterator[tuple[str, Summary, Any]]:
    for path in pipeline.summaries:
        stage = pipeline[path].stage
        assert stage.definition.summary is not None
        yield path, stage.definition.summary, stage.config
