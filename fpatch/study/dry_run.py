"""Try a study on a few images, so that faults show before a folder is made."""

import torch

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.names import safe_name
from fpatch.core.tree import to_device
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.rates import scalars
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.loop import find_bad_row
from fpatch.optim.objective import check_terms
from fpatch.optim.step import StepInfo
from fpatch.runtime.device import deterministic_algorithms
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
        ValueError: If a loss term is not one finite number per row, or the validation lacks the scalar of
            `evaluate.best`.
    """
    key = random.fold_in(parts.initial.key, "rehearsal")
    dataset = parts.dataset.split(study.data.train)
    batch = dataset.batch(dataset.image_ids[:3], device=study.place)
    sample = parts.objective.pipeline.sample(key, batch)
    gradient = value_and_grad(parts.objective)
    _, loss = gradient(parts.initial.params, *to_device((sample, batch), study.place))
    rows = len(batch["image_id"])
    if all(term.shape == (rows,) for term in loss.terms.values()):
        info = StepInfo(loss.value, loss.terms, torch.zeros(()), sample, dict(batch))
        if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
            raise ValueError(f"before training, on the first images: {bad}")
    check_terms(loss.terms, rows)
    if study.data.validation is None:
        return {}
    check_metric(study, "validation")
    dataset = parts.dataset.split(study.data.validation)
    few = dataset.select(dataset.image_ids[:2])
    pipeline, pictures = study.placed.at("validation"), study.evaluate.pictures
    result = evaluate(pipeline, parts.initial.params, few, key, block=2, pictures=pictures)
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
    return known
