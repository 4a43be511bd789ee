"""Try a study on a few images, so that faults show before a folder is made."""

import torch

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.files import check_writable
from fpatch.core.names import safe_name
from fpatch.core.tree import to_device
from fpatch.core.types import Batch, Params, Sample
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.means import scalars
from fpatch.evaluation.stage_views import view_stages
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.finite import find_bad_row
from fpatch.optim.gradient import NOT_DIFFERENTIABLE
from fpatch.optim.objective import check_terms
from fpatch.optim.severed import find_severed
from fpatch.optim.step import StepInfo
from fpatch.runtime.device import deterministic_algorithms
from fpatch.study.counting import find_uncounted
from fpatch.study.room import warn_of_crowded
from fpatch.study.setup import Setup, set_up
from fpatch.study.splits import check_metric
from fpatch.study.study import Study


def dry_run(study: Study) -> tuple[Setup, dict[str, float]]:
    """Set up a study, and train and validate on a few images; nothing is written.

    Returns:
        The objects of the study, and the scalars that a validation would log; none without validation.

    Raises:
        ValueError: If anything is wrong in the study.
    """
    with deterministic_algorithms(study.train.deterministic):
        parts = set_up(study)
        return parts, dry_run_setup(study, parts)


def dry_run_setup(study: Study, parts: Setup) -> dict[str, float]:
    """Train and validate on a few images, with the objects of a study.

    Returns:
        The scalars of the validation; none without validation.

    Raises:
        ValueError: If a loss term is not one finite number per row, its gradient ends before the patch, or it
            counts no training image; or if the validation lacks the scalar of `evaluate.best`.
    """
    check_writable("log.runs", study.log.runs)
    for _ in find_uncounted(study, parts):  # refuses a term without any object
        pass
    key = random.fold_in(parts.initial.key, "rehearsal")
    dataset = parts.dataset.split(study.data.train)
    batch = dataset.batch(dataset.image_ids[:3], device=study.place)
    _check_training(study, parts, batch, parts.objective.pipeline.sample(key, batch))
    if study.data.validation is None:
        return {}
    check_metric(study, "validation")
    dataset = parts.dataset.split(study.data.validation)
    few = dataset.select(dataset.image_ids[:2])
    pipeline, pictures = study.placed.at("validation"), study.evaluate.pictures
    result = evaluate(pipeline, parts.initial.all_params, few, key, block=2, pictures=pictures)
    _check_drawings(pipeline, parts.initial.all_params, few.batch(few.image_ids, device=study.place), key)
    known = scalars(result, study.evaluate.metric)
    keys: dict[str, str] = {}
    for name in known:
        if (other := keys.setdefault(safe_name(name), name)) != name:
            raise ValueError(f"metrics: {other!r} and {name!r} would be one key of a log; rename one")
    if study.evaluate.best not in known:
        raise ValueError(
            f"evaluate.best: the validation has no scalar {study.evaluate.best!r}; "
            f"{nearest(study.evaluate.best, known)}"
        )
    warn_of_crowded(study, parts)
    return known


def _check_drawings(pipeline: Pipeline, params: Params, batch: Batch, key: torch.Tensor) -> None:
    """Check that every drawing of the validation draws a few rows."""
    if any(n.stage.definition.role == "drawing" for n in pipeline.values()):
        views = view_stages(pipeline, params, pipeline.sample(key, batch), batch, "validation")
        for path, error in views.failed.items():
            raise ValueError(
                f"before training, on the first images: the drawing {path!r} failed: {type(error).__name__}: "
                f"{error}"
            ) from error


_DETACHED = (
    "objective: no weighted term depends on the networks that are trained by autograd; a stage between "
    "detaches its values"
)


def _check_training(study: Study, parts: Setup, batch: Batch, sample: Sample) -> None:
    """Check the terms of a few rows, and the way of their gradient back to the patch."""
    pipeline = parts.objective.pipeline
    leaves = {name: p.detach().requires_grad_() for name, p in parts.initial.params.items()}
    drawn, placed = to_device((sample, batch), study.place)
    trace = pipeline.trace({**parts.initial.fixed, **leaves}, drawn, placed)
    terms = {name: t for written in trace.values() for name, t in written.items() if name in pipeline.terms}
    loss = parts.objective.weigh(terms)
    if not loss.value.requires_grad:
        raise ValueError(NOT_DIFFERENTIABLE if study.makes_patch else _DETACHED)
    rows = len(batch["image_id"])
    known = {name: term.detach() for name, term in terms.items()}
    if all(term.shape == (rows,) for term in known.values()):
        info = StepInfo(loss.value.detach(), known, torch.zeros(()), sample, dict(batch))
        if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
            raise ValueError(f"before training, on the first images: {bad}")
    check_terms(known, rows)
    for severed in find_severed(parts.objective, trace, leaves, placed):
        raise ValueError(f"before training, on the first images: node {severed.where!r}: {severed.what}")
