"""The room for answers: a detector that answers fewer boxes than an image has objects misses some of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fpatch.core.tree import to_device
from fpatch.graph.pipeline import Pipeline
from fpatch.study.elsewhere import find_elsewhere
from fpatch.study.setup import Setup
from fpatch.study.splits import evaluation_key
from fpatch.study.study import Study
from fpatch.study.thresholds import find_cut_scores

_logger = logging.getLogger(__name__)

_COUNTED_BY = {"dense": "logits", "final": "valid"}
"""The part of each entry of detections whose axis 1 counts the answers."""


def find_crowded(
    study: Study, parts: Setup, phases: Sequence[str] = ("validation", "test")
) -> Iterator[tuple[str, str]]:
    """Yield the nodes with room for fewer answers than an image has objects, each with a sentence.

    The nodes of each evaluated phase run on its most crowded image, without a gradient.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.room import find_crowded
        >>> from fpatch.study.setup import set_up
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> list(find_crowded(study, set_up(study)))
        []
    """
    splits = {"validation": study.data.validation, "test": study.data.test}
    for phase in phases:
        split = splits[phase]
        if split is None or parts.dataset.m < 2:
            continue
        view = parts.dataset.split(split)
        counts = view.tables["box_valid"][view.image_ids].sum(1)
        batch = view.batch(view.image_ids[counts.argmax()][None], device=study.place)
        for path, room in _rooms(study, parts, study.placed.at(phase), phase, batch).items():
            crowded = int((counts > room).sum())
            if crowded:
                what = (
                    f"has room for {room} answers, but {crowded} of {len(counts)} {split} images have more "
                    f"objects, {int(counts.max())} at most; objects beyond the room count as not found: "
                    "raise num_detections of infer.suppress, or take a victim that answers more"
                )
                yield path, what


def warn_of_crowded(study: Study, parts: Setup, phases: Sequence[str] = ("validation", "test")) -> None:
    """Log a warning for each node with too little room, and each metric that asks about something else."""
    said = (*find_cut_scores(study, phases), *find_elsewhere(study, parts.dataset, phases))
    for path, what in dict.fromkeys(said):
        _logger.warning("node %r: %s", path, what)
    for path, what in dict.fromkeys(find_crowded(study, parts, phases)):
        _logger.warning("node %r %s", path, what)


def _rooms(study: Study, parts: Setup, pipeline: Pipeline, phase: str, batch: Any) -> dict[str, int]:
    """Return the number of answers per image of each node that makes an entry of detections."""
    makers = [p for p, n in pipeline.items() if "detections" in n.stage.definition.writes]
    if not makers:
        return {}
    pipeline = pipeline.upto(makers[-1])
    sample = pipeline.sample(evaluation_key(study, phase), batch)
    with torch.no_grad():
        trace = pipeline.trace(parts.initial.all_params, *to_device((sample, batch), study.place))
    rooms: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for path in makers:
        name = pipeline[path].writes["detections"]
        entries = trace[path][name]
        for entry, part in _COUNTED_BY.items():
            found = entries.get(entry) if isinstance(entries, Mapping) else None
            if found is not None and part in found and (name, entry) not in seen:
                seen.add((name, entry))
                rooms[path] = int(found[part].shape[1])
    return rooms
