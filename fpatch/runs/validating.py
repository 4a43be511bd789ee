"""Validations during training, and the best checkpoint that they choose."""

import math
from typing import Any, NamedTuple

from fpatch.core.progress import Progress
from fpatch.evaluation.means import scalars, standard_errors
from fpatch.log import Log
from fpatch.optim.step import TrainState
from fpatch.runs.checkpoints import state_digest
from fpatch.runs.figures import log_stage_views, view_first_block
from fpatch.runs.folder import Run
from fpatch.runs.naming import validation_name
from fpatch.runs.saving import write_results
from fpatch.study.setup import Setup
from fpatch.study.splits import evaluate_split
from fpatch.study.study import Study


class Measured(NamedTuple):
    """The result of a validation during training.

    Attributes:
        step: The number of updates so far.
        scalars: The scalars of the validation, by their names in the log.
        errors: Standard errors of scalars; an unknown one is absent.
    """

    step: int
    scalars: dict[str, float]
    errors: dict[str, float]


def validate(
    study: Study,
    parts: Setup,
    run: Run,
    log: Log,
    state: TrainState,
    facts: dict[str, Any],
    on_progress: Progress,
) -> tuple[dict[str, Any], Measured]:
    """Evaluate on the validation split, log the result, and save the best checkpoint and its facts."""
    assert study.data.validation is not None
    dataset = parts.dataset.split(study.data.validation)
    result = evaluate_split(study, state.all_params, dataset, "validation", on_progress)
    digest = state_digest(state)
    measured = {"step": state.step, "state": digest, "num_draws": study.evaluate.num_draws}
    name, execution = validation_name(state.step), study.execution(study.evaluate.block)
    run.save_evaluation(name, result, execution, **measured)
    found = scalars(result, study.evaluate.metric)
    log.scalars(state.step, {f"validation/{n}": v for n, v in found.items()})
    views = view_first_block(study, state.all_params, dataset, result.table, "validation")
    log_stage_views(study, state.step, views, dataset.class_names, log, "validation")
    effects = (found.get(f"success/{n}/patch") for n in ("gain", "drop"))
    now = found[study.evaluate.best], next((e for e in effects if e is not None), math.nan)
    before = facts.get("best", math.nan), facts.get("best_effect", math.nan)
    if not run.has_checkpoint("best") or _is_better(now, before):
        facts = {"best": now[0], "best_effect": now[1], "best_step": state.step, "best_state": digest}
        run.save_checkpoint("best", state, **facts)
    errors = standard_errors(result, study.evaluate.metric)
    return facts, Measured(state.step, found, errors)


def _is_better(later: tuple[float, ...], earlier: tuple[float, ...]) -> bool:
    """Return whether the first difference of two results favors the later one; without one, it is better.

    NaN is below every number.
    """
    for new, old in zip(later, earlier, strict=True):
        if math.isnan(new) != math.isnan(old):
            return math.isnan(old)
        if new != old and not math.isnan(new):
            return new > old
    return True


def write_best(study: Study, parts: Setup, run: Run, log: Log) -> None:
    """Write the patches of the best checkpoint as images, and offer the results to the log."""
    best, _ = run.load_checkpoint("best", parts.initial)
    write_results(study, run, log, best)
