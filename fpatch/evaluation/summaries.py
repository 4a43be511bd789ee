"""States of the metrics that gather rows over an evaluation."""

from collections.abc import Iterator, Mapping
from typing import Any

from fpatch.core.types import Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Summary


def init_states(pipeline: Pipeline) -> dict[str, Any]:
    """Make the empty state of every metric with a summary, by path."""
    return {path: summary.init(config) for path, summary, config in _summaries(pipeline)}


def update_states(
    pipeline: Pipeline, states: Mapping[str, Any], seen: Mapping[str, Values]
) -> dict[str, Any]:
    """Add rows to the states; `measure` returns their values under "seen"."""
    updated = {}
    for path, summary, config in _summaries(pipeline):
        try:
            updated[path] = summary.update(config, states[path], seen[path])
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
        >>> len(merge_states(test, one, one)["precision"]["found/scores"])
        2
    """
    return {p: summary.merge(config, a[p], b[p]) for p, summary, config in _summaries(pipeline)}


def compute_states(pipeline: Pipeline, states: Mapping[str, Any]) -> dict[str, float]:
    """Compute the summaries of the states: `{path/name: number}`."""
    return {
        f"{path}/{name}": float(value)
        for path, summary, config in _summaries(pipeline)
        for name, value in summary.compute(config, states[path]).items()
    }


def _summaries(pipeline: Pipeline) -> Iterator[tuple[str, Summary, Any]]:
    for path in pipeline.summaries:
        stage = pipeline[path].stage
        assert stage.definition.summary is not None
        yield path, stage.definition.summary, stage.config
