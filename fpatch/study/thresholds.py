"""Thresholds of metrics below those of the victim's detections: the metric would count at another one."""

from collections.abc import Iterator, Sequence

from fpatch.graph.pipeline import Pipeline
from fpatch.study.study import Study


def find_cut_scores(
    study: Study, phases: Sequence[str] = ("validation", "test")
) -> Iterator[tuple[str, str]]:
    """Yield each metric of detections whose threshold is below that of the node that keeps them.

    Example:
        >>> from fpatch import infer, metrics, pipeline
        >>> from fpatch.study.thresholds import find_cut
        >>> parts = {"suppress": infer.suppress(score=0.3), "hit": metrics.detection_hit(score=0.1)}
        >>> [(path, sentence.partition(";")[0]) for path, sentence in find_cut(pipeline(parts))]
        [('hit', "it counts detections from a score of 0.1, but 'suppress' keeps none below 0.3")]
    """
    splits = {"validation": study.data.validation, "test": study.data.test}
    for phase in phases:
        if splits[phase] is not None:
            yield from find_cut(study.pipeline.at(phase))


def find_cut(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Yield the metrics of one phase; see `find_cut_scores`."""
    keepers: dict[str, tuple[str, float]] = {}
    for path, n in pipeline.items():
        score = getattr(n.stage.config, "score", None)
        name = n.reads.get("detections")
        if not isinstance(score, float | int) or name is None:
            continue
        if n.stage.definition.role == "metric" and name in keepers:
            keeper, least = keepers[name]
            if score < least:
                what = f"it counts detections from a score of {score:g}, but {keeper!r} keeps none below"
                way = f"set pipeline.{keeper}.score = {score:g}, or raise that of the metric"
                yield path, f"{what} {least:g}; so its rates are those of {least:g}: {way}"
        elif written := n.writes.get("detections"):
            keepers[written] = path, float(score)
