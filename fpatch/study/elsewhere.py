"""Patches that are not at the object that a metric asks about: a rate then counts rows without an attack."""

from collections.abc import Iterator, Sequence

import torch

from fpatch.data import TargetSet
from fpatch.graph.pipeline import Pipeline
from fpatch.ops.geometry import pairwise_iou, quad_bounds
from fpatch.study.study import Study


def find_elsewhere(
    study: Study, dataset: TargetSet, phases: Sequence[str] = ("validation", "test")
) -> Iterator[tuple[str, str]]:
    """Yield each metric of one object per row whose patch may be drawn at another object, with a sentence.

    Args:
        study: The study.
        dataset: The images of all splits.
        phases: The evaluated phases.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.elsewhere import find_elsewhere
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> list(find_elsewhere(study, study.data.open()))  # it fills all placements
        []
    """
    splits = {"validation": study.data.validation, "test": study.data.test}
    for phase in phases:
        pipeline, split = study.pipeline.at(phase), splits[phase]
        choosers = [p for p, n in pipeline.items() if getattr(n.stage.config, "boxes", None) == "one"]
        metrics = _metrics_of_rows(pipeline)
        if split is None or not (choosers and metrics and dataset.m > 1):
            continue
        view = dataset.split(split)
        if not (several := int(_has_patched_objects(view).sum())):
            continue
        what = (
            f"{choosers[0]!r} draws one placement for each row, but this metric asks about one object of an "
            f"image, the same in every row: in {several} of {len(view)} {split} images the patch may lie at "
            "another object, and such a row counts as a failure of the patch; keep one placement per image, "
            "or fill all by boxes = 'all'"
        )
        yield from ((path, what) for path in metrics)


def _metrics_of_rows(pipeline: Pipeline) -> list[str]:
    """Return the metrics that ask about the object at a placement."""
    return [p for p, n in pipeline.items() if n.stage.definition.name == "metrics.detection_hit"]


def _has_patched_objects(view: TargetSet) -> torch.Tensor:
    """Mark the images [n] with placements at two objects or more."""
    tables = {name: table[view.image_ids] for name, table in view.tables.items()}
    overlaps = pairwise_iou(quad_bounds(tables["quads"]), tables["boxes"])
    overlaps = overlaps.masked_fill(~tables["box_valid"][:, None], 0.0)
    best, chosen = overlaps.max(-1)
    there = (best > 0) & tables["quad_valid"]
    patched = torch.zeros_like(tables["box_valid"], dtype=torch.int64).scatter_add(1, chosen, there.long())
    return (patched > 0).sum(1) > 1
