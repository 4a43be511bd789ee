"""Judgements on a study: one finding for each fault."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from fpatch.core.types import Values
from fpatch.data import TargetSet
from fpatch.doctor.findings import Finding
from fpatch.doctor.observations import (
    Saturation,
    StageFacts,
    Trace,
    Views,
    count_pixels,
    count_placed,
    is_placed,
)
from fpatch.evaluation.blocks import blocks
from fpatch.optim.objective import Loss
from fpatch.study.counting import find_uncounted
from fpatch.study.setup import Setup
from fpatch.study.study import Study

CLIPPED_FRAC = 0.5
"""A larger share of the patch's values at 0 or 1 gives a warning: no gradient passes them."""


COVERED_FRAC = 0.005
"""A patch that covers a smaller share of an image (median) gives a warning."""


KEPT_FRAC = 0.5
"""A stage after which a smaller share of the patch's pixels shows gives a warning."""


FEW_FRAC = 0.1
"""A check that finds no more places than this share of the training images gives a note, not a warning."""


MAX_SHOWN = 3
"""Places that a finding lists."""


def judge_weights(study: Study) -> Iterator[Finding]:
    """Warn about negative weights, which may be a slip."""
    for name, weight in study.objective.weights.items():
        if weight < 0:
            effect = "training makes a term of negative weight larger"
            what = f"{name} = {weight:g}: {effect}; give a positive weight unless that is meant"
            yield Finding("warning", "objective.weights", what)


def judge_counts(study: Study, parts: Setup) -> Iterator[Finding]:
    """Report the share of the training images that a weighted term does not count."""
    try:
        for uncounted in find_uncounted(study, parts):
            level = "warning" if uncounted.num > FEW_FRAC * uncounted.total else "note"
            yield Finding(level, uncounted.term, str(uncounted))
    except ValueError as error:
        yield Finding("error", "objective.weights", str(error).removeprefix("objective.weights: "))


def judge_numbers(
    stages: dict[str, StageFacts], loss: Loss, gradients: Mapping[str, Tensor]
) -> Iterator[Finding]:
    """Find loss terms and gradients that are not finite."""
    for name, term in loss.terms.items():
        if not bool(torch.isfinite(term).all()):
            row = int((~torch.isfinite(term)).nonzero()[0])
            yield Finding(
                "error", name, f"the loss term is {float(term[row])} in row {row} of the test batch"
            )
    for name, gradient in gradients.items():
        if name.startswith("params/") and not bool(torch.isfinite(gradient).all()):
            count = int((~torch.isfinite(gradient)).sum())
            first = next((p for p in reversed(stages) if _is_bad(p, gradients)), "the parameterization")
            what = f"{count} of {gradient.numel()} gradients are not finite, from {first!r} on backwards"
            yield Finding("error", f"patch {name.removeprefix('params/')!r}", what)


def _is_bad(path: str, gradients: Mapping[str, Tensor]) -> bool:
    return any(n.startswith(f"{path}/") and not bool(torch.isfinite(g).all()) for n, g in gradients.items())


def judge_pictures(views: Views, stages: Mapping[str, StageFacts], explained: set[str]) -> Iterator[Finding]:
    """Find the stages that weaken a patch, except those already explained."""
    for index, name in enumerate(views.dataset.names if views.implants else ()):
        placed = is_placed(views.batch, index)
        unseen = placed & (count_placed(views, name) == 0)
        if bool(unseen.any()) and views.implants[0] not in explained:
            files = [views.dataset.paths[i].name for i in views.batch["image_id"][unseen].tolist()]
            counted = f"{len(files)} of {int(placed.sum())} images that have it"
            what = f"patch {name!r}: changes no pixel in {counted}: {_shorten(files)}"
            yield Finding("warning", views.implants[0], what)
    for path in views.implants:
        if 0 < stages[path].covered < COVERED_FRAC:
            share = f"{100 * stages[path].covered:.2f} %"
            yield Finding("warning", path, f"the patch covers {share} of the image (median); make it larger")
    for before, path in pairwise(views.pictures):
        if path in explained:
            continue
        was, now = count_pixels(views.every[before]), count_pixels(views.every[path])
        kept = float((now / was)[was > 0].median()) if bool((was > 0).any()) else 1.0
        clipped = stages[path].clipped
        if kept < KEPT_FRAC:
            what = (
                f"{100 * (1 - kept):.0f} % of the pixels that the patch changes before it are the same after "
                "it as without a patch; weaken it"
            )
            yield Finding("warning", path, what)
        elif clipped > max(CLIPPED_FRAC, stages[before].clipped + 0.1):
            what = (
                f"{100 * clipped:.0f} % of the patch's values are 0 or 1 after it "
                f"({100 * stages[before].clipped:.0f} % before), where no gradient passes; weaken it"
            )
            yield Finding("warning", path, what)


def judge_saturated(saturated: Mapping[str, Mapping[str, Saturation]]) -> Iterator[Finding]:
    """Report each saturating stage once, for all phases together."""
    for path in dict.fromkeys(p for stages in saturated.values() for p in stages):
        phases = {phase: stages[path] for phase, stages in saturated.items() if path in stages}
        worst = max(phases.values(), key=lambda s: s.now)
        what = (
            f"{100 * worst.now:.0f} % of the image is black or white after it "
            f"({100 * worst.was:.0f} % before), in {', '.join(phases)}; weaken it"
        )
        yield Finding("error" if any(s.everywhere for s in phases.values()) else "warning", path, what)


def judge_terms(study: Study, patched: Trace, without: Trace) -> Iterator[Finding]:
    """Report weighted terms that the patch does not change."""
    moved = {
        name: bool((term != without[path][name]).any())
        for path, written in patched.items()
        for name, term in written.items()
        if name in study.objective.weights
    }
    weighted = [n for n, w in study.objective.weights.items() if w]
    if not any(moved[n] for n in weighted):
        what = (
            f"{', '.join(weighted)}: the same with the patch and without it, in every row; give weight to a "
            "loss of the victim's answer, or check why the patch does not reach it"
        )
        yield Finding("error", "objective.weights", what)


def ask_stages(parts: Setup, dataset: TargetSet, key: Tensor, num_rows: int) -> Iterator[Finding]:
    """Run the stages' own checks on all training images."""
    pipeline = parts.objective.pipeline
    asked = [path for path, n in pipeline.items() if n.stage.definition.check is not None]
    if not asked:
        return
    pipeline = pipeline.upto(asked[-1])
    found: dict[tuple[str, str], list[str]] = {}
    for part in blocks(len(dataset), num_rows):
        batch = dataset.batch(dataset.image_ids[part])
        with torch.no_grad():
            trace = pipeline.trace(parts.initial.all_params, pipeline.sample(key, batch), batch)
        values: Values = dict(batch)
        for path, n in pipeline.items():
            d = n.stage.definition
            if d.check is not None:
                for rule, places in d.check(n.stage.config, n.inputs(values)).items():
                    found.setdefault((path, rule), []).extend(places)
            values.update(trace[path])
    for (path, rule), places in found.items():
        named = [re.sub(r"^image (\d+)", lambda m: dataset.paths[int(m[1])].name, p) for p in places]
        level = "warning" if len(places) > FEW_FRAC * len(dataset) else "note"
        yield Finding(level, path, f"{rule} ({len(places)} times): {_shorten(named)}")


def _shorten(places: list[str]) -> str:
    more = f"; and {len(places) - MAX_SHOWN} more" if len(places) > MAX_SHOWN else ""
    return f"{'; '.join(places[:MAX_SHOWN])}{more}"


def to_sentence(error: Exception) -> str:
    """Return the message of an error with its notes."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])
