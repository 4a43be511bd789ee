"""Train in a run folder: the loop with its log, validations and checkpoints.

`train` starts a run, and `resume` continues one. `train_in` does either, and pauses at validations.
"""

import json
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fpatch.core.checks import check_kind
from fpatch.core.display import shown
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress, silent
from fpatch.optim.finite import find_bad_patch, find_bad_row
from fpatch.optim.step import TrainState
from fpatch.runs.checks import check_config, check_data, check_study, source_differences, warn_if_inexact
from fpatch.runs.folder import Run, describe_environment
from fpatch.runs.locks import RunError
from fpatch.runs.logging import (
    log_study,
    opened_log,
    own_log,
    remember_log,
    say_uncounted,
    step_scalars,
)
from fpatch.runs.opening import open_run, recorded_execution
from fpatch.runs.places import suggest_data_root
from fpatch.runs.record import describe_data, describe_sources, edited_sources, images_file
from fpatch.runs.saving import Saver
from fpatch.runs.standing import begin_again, check_standing, go_back
from fpatch.runs.steps import Steps, follow_steps, take_steps
from fpatch.runs.validating import Measured, validate, write_best
from fpatch.runtime.device import deterministic_algorithms
from fpatch.runtime.parallel import ALONE, Ranks, joined
from fpatch.study.counting import find_uncounted
from fpatch.study.dry_run import dry_run_setup
from fpatch.study.goals import judge_best, judge_goals
from fpatch.study.leaks import find_leaks
from fpatch.study.setup import Setup, make_loader, make_training_step, set_up
from fpatch.study.study import Study

_logger = logging.getLogger(__name__)


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
    digests = describe_data(study, parts.dataset)
    if not ranks.rank and not (Path(folder) / "config.json").is_file():
        Run.create_at(folder, study.config, *_describe(study, parts, digests, ranks))
    ranks.check_same("the data", json.dumps(digests).encode())  # after it the folder exists for all processes
    run = Run.open(folder)
    remember_log(study, run)
    check_data(run, study, parts.dataset)
    changed = [*check_study(run, study), *source_differences(run, study)]
    yield from _continue(run, study, parts, on_progress, ranks, changed, start, until, steps)


@plain_torch(grad=True)
def train(study: Study, on_progress: Progress | None = None) -> Run:
    """Train a study in a new run folder.

    Under torchrun, or in the workers of Ray Train, all processes train one patch together, and process 0
    writes the folder.

    Args:
        study: The study.
        on_progress: Called with the progress. None: bars or lines on standard error; `silent` of
            `fpatch.core.progress`: nothing.

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
    check_kind("train(study)", study, Study, "load one by fpatch.load_study(path)")
    with joined(device=study.device) as ranks, deterministic_algorithms(study.train.deterministic):
        ranks.check_same("the study", json.dumps(study.config).encode())
        parts = set_up(study)
        make_loader(study, parts, ranks)  # refuses a batch with fewer rows than processes
        make_training_step(study, parts, ranks)  # refuses statistics over the rows of a process
        dry_run_setup(study, parts)
        said = (*judge_goals(study), *judge_best(study), *find_leaks(study, parts.dataset))
        for where, what in () if ranks.rank else said:
            _logger.warning("%s: %s", where, what)
        if ranks.rank:
            run = Run(ranks.tell(""))  # which this process may not see
            _wait_for_folder(ranks)
            follow_steps(study, parts, parts.initial, ranks)
            return run
        for what in (*edited_sources(study), *find_uncounted(study, parts)):
            _logger.warning("%s", what)
        described = _describe(study, parts, describe_data(study, parts.dataset), ranks)
        run = Run.create(study.log.runs, study.name, study.config, *described)
        remember_log(study, run)
        ranks.tell(str(run.folder))
        with shown(on_progress) as on_progress:
            on_progress("run folder", 1, 1, str(run.folder))
            _finish(_continue(run, study, parts, on_progress, ranks))
    return run


@plain_torch(grad=True)
def resume(
    folder: str | Path,
    on_progress: Progress | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    checkpoint: str | None = None,
    mlflow: str | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> Run:
    """Resume a stopped run from its last checkpoint; the patch equals that of an uninterrupted run.

    Args:
        folder: The run folder.
        on_progress: As for `train`.
        resources: Live objects by "path/setting" of the pipeline.
        checkpoint: A checkpoint to go back to, such as "step-00000050"; later files are moved into `aside/`.
            "last" accepts a folder whose records or checkpoints were cut. Edited settings are accepted, too.
            None: the last one, which must agree with the records, the other checkpoints and the config.
        mlflow: A tracking URI for the records; None: the recorded one, if this user has sent records there.
        data_root: As for `evaluate_run`.
        device: The device to train on, such as "cpu"; None: the recorded one. Another gives other last bits.

    Raises:
        RunError: If the folder is incomplete, has the format of another version or is locked by another
            process; if its settings or data have changed since the run started; or if its checkpoints and
            records disagree.

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
    run, study = open_run(folder, resources, data_root, device)
    with joined(device=study.device) as ranks:
        changed = check_config(run, accept=checkpoint is not None)
        study = study if ranks.rank else own_log(study, run, mlflow)
        with suggest_data_root():
            parts = set_up(study)
        check_data(run, study, parts.dataset)
        changed += source_differences(run, study)
        with nullcontext(silent) if ranks.rank else shown(on_progress) as on_progress:
            _finish(_continue(run, study, parts, on_progress, ranks, changed, checkpoint=checkpoint or ""))
    return run


def _describe(
    study: Study, parts: Setup, digests: Mapping[str, str], ranks: Ranks
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the content of `environment.json` of a new run, and its further files."""
    environment = describe_environment(study.seed, study.execution(0))
    facts = {"data": digests, "sources": describe_sources(study), "processes": ranks.size}
    return environment | facts, {"data.json": images_file(parts.dataset)}


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
    checkpoint: str | None = None,
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
        checkpoint: The checkpoint to go back to; "" refuses a folder whose parts disagree, and None goes
            back to the last one there, or begins again without one.
    """
    held = nullcontext() if ranks.rank else run.locked()
    with held, recorded_execution(run.execution, study) as differences:
        if not ranks.rank:
            _stand(run, checkpoint)
        _wait_for_folder(ranks)
        warn_if_inexact(run, [*changed, *differences], ranks.size)
        state, facts, resume_step = start or parts.initial, {}, None
        if run.has_checkpoint("last"):
            state, facts = run.load_checkpoint("last", parts.initial)
            resume_step = state.step
        elif (run.folder / "records.jsonl").exists():
            resume_step = state.step
        if resume_step is not None:
            steps_left = f"from step {resume_step} to {study.train.num_steps if until is None else until}"
            on_progress("resuming", 1, 1, f"{run.folder} {steps_left}")
        if ranks.rank:
            follow_steps(study, parts, state, ranks, until)
        else:
            yield from _train(study, parts, run, state, facts, resume_step, on_progress, ranks, until, steps)


def _wait_for_folder(ranks: Ranks) -> None:
    """Wait until process 0 has found the folder in order."""
    ranks.check_same("the run folder", b"")


def _stand(run: Run, checkpoint: str | None) -> None:
    """Check that the parts of a folder agree, or go back to a checkpoint of it."""
    if checkpoint:
        go_back(run, checkpoint)
        run.write_config(run.read_json("config.json"))  # an edited one is accepted
        return
    try:
        check_standing(run)
    except RunError as error:
        if checkpoint is not None:
            raise
        _logger.warning("%s", error)
        if run.has_checkpoint("last"):
            go_back(run, "last")
        else:
            begin_again(run)


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
    with opened_log(study, run, resume_step) as log:
        log_study(study, run, parts.dataset, log)
        saver = Saver(study, run, log, state, facts)
        if state.step == 0 or not run.has_checkpoint("last"):
            saver.save()
        with saver.saved_at_stop():
            for one in take_steps(study, parts, run, state, num_steps, ranks, steps):
                if one is None:
                    yield None
                    continue
                after, info = one
                bad = find_bad_row(info, parts.dataset.paths) or find_bad_patch(after.params)
                if bad is not None:
                    saver.save()
                    raise ValueError(f"update {state.step + 1}: {bad}; the state before it is kept")
                state = after
                log.scalars(state.step, step_scalars(info))
                uncounted = uncounted or say_uncounted(info, state.step)
                at_end, due = state.step == num_steps, state.step % study.evaluate.every == 0
                is_due = study.data.validation is not None and (at_end or due)
                if not is_due:
                    saver.complete(state, facts)
                on_progress("training", state.step, num_steps, f"loss {float(info.loss):.4f}")
                if is_due:
                    facts, measured = validate(study, parts, run, log, state, facts, on_progress)
                    at_end = bool((yield measured)) or at_end
                    saver.complete(state, facts)
                if at_end or state.step % study.train.checkpoint_every == 0:
                    saver.save()
                if at_end:
                    break
        if study.data.validation is None:
            run.save_checkpoint("best", state, **facts)
        write_best(study, parts, run, log)
