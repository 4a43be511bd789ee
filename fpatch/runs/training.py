"""Train in a run folder: the loop with its log, validations and checkpoints.

`train` starts a run, and `resume` continues one. `train_in` does either, and pauses at validations.
"""

import json
import logging
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from fpatch.core.progress import Progress, silent
from fpatch.evaluation.conditions import make_patches
from fpatch.evaluation.means import scalars, standard_errors
from fpatch.log import Log
from fpatch.optim.loop import find_bad_patch, find_bad_row
from fpatch.optim.step import StepInfo, TrainState
from fpatch.runs.checks import check_data, check_study, data_digests, warn_if_inexact
from fpatch.runs.figures import log_stage_views, view_first_block
from fpatch.runs.folder import Run, describe_environment
from fpatch.runs.logging import (
    describe_uncounted,
    log_study,
    open_study_log,
    own_log,
    remember_log,
    step_scalars,
)
from fpatch.runs.opening import open_run, recorded_execution
from fpatch.runs.steps import Steps, follow_steps, take_steps
from fpatch.runtime.device import deterministic_algorithms
from fpatch.runtime.parallel import ALONE, Ranks, joined
from fpatch.study.counting import find_uncounted
from fpatch.study.dry_run import dry_run_setup
from fpatch.study.goals import judge_goals
from fpatch.study.setup import Setup, make_loader, set_up
from fpatch.study.splits import evaluate_split
from fpatch.study.study import Study

_logger = logging.getLogger(__name__)


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


Training = Generator[Measured | None, bool | None, None]
"""Training that pauses after every validation, before the state is saved.

Sent True, it ends there as after the last step. It also pauses, with None, where its steps pause."""


def train_in(
    folder: str | Path,
    study: Study,
    start: TrainState | None = None,
    until: int | None = None,
    on_progress: Progress = silent,
    *,
    parts: Setup | None = None,
    steps: Steps | None = None,
    ranks: Ranks = ALONE,
) -> Training:
    """Train in a given folder, or resume the run there; pause at every validation.

    Args:
        folder: A run folder; it is made if absent.
        study: The study to train; an existing folder must have been made from it.
        start: The first state; None: the study's own.
        until: The number of updates after which to end; None: `train.num_steps`. Schedules always count to
            `train.num_steps`.
        on_progress: Called with the progress.
        parts: The objects made from the study, if they exist already.
        steps: A replacement for `fit`; None: `fit` itself.
        ranks: The processes that train together, each of which calls this function. Process 0 writes the
            folder and pauses; the others take its steps until it ends.

    Raises:
        RunError: As for `resume`, and if the folder was made from another study.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.training import train_in
        >>> folder = Path(tempfile.mkdtemp())
        >>> study = tiny_study(folder, {"evaluate.every": 2})
        >>> for measured in train_in(folder / "run", study):
        ...     print(measured.step, measured.scalars["success/clean"])
        2 1.0
        4 1.0
    """
    parts = parts or set_up(study)
    digests = data_digests(study, parts.dataset)
    if not ranks.rank and not (Path(folder) / "config.json").is_file():
        Run.create_at(folder, study.config, _environment(study, digests, ranks))
    ranks.check_same("the data", json.dumps(digests).encode())  # after it the folder exists for all processes
    run = Run.open(folder)
    remember_log(study, run)
    check_data(run, digests)
    changed = check_study(run, study)
    yield from _continue(run, study, parts, on_progress, ranks, changed, start, until, steps)


def train(study: Study, on_progress: Progress = silent) -> Run:
    """Train a study in a new run folder.

    Under torchrun, or in the workers of Ray Train, all processes train one patch together, and process 0
    writes the folder.

    Returns:
        The run, with `last`, `best` and numbered checkpoints.

    Raises:
        ValueError: If anything is wrong in the study, before the folder is made; or if a loss or the patch is
            not finite, after the state before it is saved. The message names the term, the row and its
            sample, or the patch.
        ConnectionError: If another process of the run has ended.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> run.checkpoint_steps(), tuple(run.load_params("last")["tag"].shape)
        ([0, 4], (3, 6, 6))
    """
    with joined(device=study.device) as ranks, deterministic_algorithms(study.train.deterministic):
        ranks.check_same("the study", json.dumps(study.config).encode())
        parts = set_up(study)
        make_loader(study, parts, ranks)  # refuses a batch with fewer rows than processes
        dry_run_setup(study, parts)
        for where, what in () if ranks.rank else judge_goals(study):
            _logger.warning("%s: %s", where, what)
        if ranks.rank:
            run = Run(ranks.tell(""))  # which this process may not see
            follow_steps(study, parts, parts.initial, ranks)
            return run
        for uncounted in find_uncounted(study, parts):
            _logger.warning("%s", uncounted)
        environment = _environment(study, data_digests(study, parts.dataset), ranks)
        run = Run.create(study.log.runs, study.name, study.config, environment)
        remember_log(study, run)
        ranks.tell(str(run.folder))
        _finish(_continue(run, study, parts, on_progress, ranks))
    return run


def resume(
    folder: str | Path,
    on_progress: Progress = silent,
    resources: Mapping[str, Any] | None = None,
    *,
    mlflow: str | None = None,
) -> Run:
    """Resume a stopped run from its last checkpoint; the patch equals that of an uninterrupted run.

    Args:
        folder: The run folder.
        on_progress: Called with the progress.
        resources: Live objects by "path/setting" of the pipeline.
        mlflow: A tracking URI for the records; None: the recorded one, if this user has sent records there.

    Raises:
        RunError: If the folder is incomplete, has the format of another version or is locked by another
            process, or the data have changed since the run started.

    Example:
        A finished run stays as it is:

        >>> import tempfile
        >>> from fpatch import resume, train
        >>> from fpatch.demo.tiny import tiny_study
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> again = resume(run.folder)
        >>> again.folder == run.folder, again.checkpoint_steps()
        (True, [0, 4])
    """
    run, study = open_run(folder, resources)
    with joined(device=study.device) as ranks:
        study = study if ranks.rank else own_log(study, run, mlflow)
        parts = set_up(study)
        check_data(run, data_digests(study, parts.dataset))
        _finish(_continue(run, study, parts, on_progress, ranks))
    return run


def _environment(study: Study, digests: Mapping[str, str], ranks: Ranks) -> dict[str, Any]:
    """Return the content of `environment.json` of a new run."""
    environment = describe_environment(study.seed, study.execution(0))
    return environment | {"data": digests, "processes": ranks.size}


def _continue(
    run: Run,
    study: Study,
    parts: Setup,
    on_progress: Progress,
    ranks: Ranks,
    changed: Sequence[str] = (),
    start: TrainState | None = None,
    until: int | None = None,
    steps: Steps | None = None,
) -> Training:
    """Train in an existing folder from its last checkpoint, or from `start` if it has none.

    Args:
        run: The folder; process 0 locks it.
        study: The study that it was made from.
        parts: The objects made from it.
        on_progress: Called with the progress.
        ranks: The processes that train together.
        changed: Differences from the recorded study, which make the run inexact.
        start: The first state; None: the study's own.
        until: The number of updates after which to end; None: all.
        steps: A replacement for `fit`.
    """
    held = nullcontext() if ranks.rank else run.locked()
    with held, recorded_execution(run.execution, study) as differences:
        warn_if_inexact(run, [*changed, *differences], ranks.size)
        state, facts, resume_step = start or parts.initial, {}, None
        if run.has_checkpoint("last"):
            state, facts = run.load_checkpoint("last", parts.initial)
            resume_step = state.step
        elif (run.folder / "records.jsonl").exists():
            resume_step = state.step
        if ranks.rank:
            follow_steps(study, parts, state, ranks, until)
        else:
            yield from _train(study, parts, run, state, facts, resume_step, on_progress, ranks, until, steps)


def _finish(training: Training) -> None:
    for _ in training:
        pass


def _train(
    study: Study,
    parts: Setup,
    run: Run,
    state: TrainState,
    facts: dict[str, Any],
    resume_step: int | None,
    on_progress: Progress,
    ranks: Ranks,
    until: int | None,
    steps: Steps | None,
) -> Training:
    """Run the loop of process 0: log every step, validate, and save checkpoints."""
    num_steps, uncounted = study.train.num_steps if until is None else until, False
    run.note_processes(state.step, ranks.size)
    with _opened_log(study, run, resume_step) as log:
        log_study(study, parts.dataset, log)
        if state.step == 0 or not run.has_checkpoint("last"):
            _checkpoint(run, log, state, facts)
        for one in take_steps(study, parts, run, state, num_steps, ranks, steps):
            if one is None:
                yield None
                continue
            after, info = one
            if (bad := find_bad_row(info, parts.dataset.paths) or find_bad_patch(after.params)) is not None:
                _checkpoint(run, log, state, facts)
                raise ValueError(f"update {state.step + 1}: {bad}; the state before it is kept")
            state = after
            log.scalars(state.step, step_scalars(info))
            uncounted = uncounted or _say_uncounted(info, state.step)
            on_progress("training", state.step, num_steps, f"loss {float(info.loss):.4f}")
            at_end = state.step == num_steps
            if study.data.validation is not None and (at_end or state.step % study.evaluate.every == 0):
                facts, measured = _validate(study, parts, run, log, state, facts, on_progress)
                at_end = bool((yield measured)) or at_end
            if at_end or state.step % study.train.checkpoint_every == 0:
                _checkpoint(run, log, state, facts)
            if at_end:
                break
        if study.data.validation is None:
            run.save_checkpoint("best", state, **facts)
        _write_best(study, parts, run, log)


def _say_uncounted(info: StepInfo, step: int) -> bool:
    """Say which rows of an update do not count, and return whether there are any."""
    if what := describe_uncounted(info):
        _logger.warning("update %d: %s; the records count them at each update", step, what)
    return bool(what)


@contextmanager
def _opened_log(study: Study, run: Run, resume_step: int | None) -> Iterator[Log]:
    """Open the log of a training; close it as finished, or as failed if the block raises."""
    log = open_study_log(study, run, resume_step)
    finished = False
    try:
        yield log
        finished = True
    except BaseException as error:
        error.add_note(f"finished steps are kept; resume with: fpatch resume {run.folder}")
        raise
    finally:
        log.close(finished=finished)


def _write_best(study: Study, parts: Setup, run: Run, log: Log) -> None:
    """Write the patches of the best checkpoint as images, and offer the results to the log."""
    best, _ = run.load_checkpoint("best", parts.initial)
    run.write_patches(make_patches(study.placed.at("test"), best.params))
    log.artifacts(["config.json", "environment.json", "patch", "checkpoints/last.safetensors"])


def _checkpoint(run: Run, log: Log, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Save the records, then the state, then the commit of the records: a kill between them does no harm."""
    log.flush()
    run.save_checkpoint(f"step-{state.step:08d}", state, **facts)
    run.save_checkpoint("last", state, **facts)
    log.commit(state.step)


def _validate(
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
    result = evaluate_split(study, state.params, dataset, "validation", on_progress)
    run.save_evaluation(f"validation-{state.step:08d}", result, study.execution(study.evaluate.block))
    found = scalars(result, study.evaluate.metric)
    log.scalars(state.step, {f"validation/{n}": v for n, v in found.items()})
    views = view_first_block(study, state.params, dataset, result.table, "validation")
    log_stage_views(study, state.step, views, dataset.class_names, log, "validation")
    value = found[study.evaluate.best]
    effects = (found.get(f"success/{n}/patch") for n in ("gain", "drop"))
    effect = next((e for e in effects if e is not None), math.nan)
    if not facts or _is_better((value, effect), (facts["best"], facts.get("best_effect", math.nan))):
        facts = {"best": value, "best_step": state.step, "best_effect": effect}
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
