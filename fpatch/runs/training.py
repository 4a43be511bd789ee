"""Train in a run folder: the loop, with its log, its validations and its checkpoints, and again from them.

`train` begins a run and `resume` goes on with one; `train_in` does either, and pauses at validations.
"""

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fpatch.core.progress import Progress, silent
from fpatch.data import Loader
from fpatch.evaluation.conditions import make_patches
from fpatch.evaluation.rates import scalars, standard_errors
from fpatch.log import Log
from fpatch.optim.loop import find_bad_row, fit
from fpatch.optim.step import StepInfo, TrainState
from fpatch.runs.checkpoints import state_bytes
from fpatch.runs.checks import check_data, check_study, data_digests, warn_if_inexact
from fpatch.runs.figures import log_stage_views, view_first_block
from fpatch.runs.folder import Run, describe_environment
from fpatch.runs.logging import log_study, open_study_log, step_scalars
from fpatch.runs.opening import open_run, recorded_execution
from fpatch.runtime.device import deterministic_algorithms
from fpatch.runtime.parallel import ALONE, Ranks, joined
from fpatch.study.dry_run import dry_run_setup
from fpatch.study.setup import Setup, make_loader, make_training_step, set_up
from fpatch.study.splits import evaluate_split
from fpatch.study.study import Study


class Measured(NamedTuple):
    """What a validation during training has found.

    Attributes:
        step: Updates made.
        scalars: As they stand in the log, by name.
        errors: Standard errors of them, where they are known.
    """

    step: int
    scalars: dict[str, float]
    errors: dict[str, float]


Training = Generator[Measured | None, bool | None, None]
"""Training that pauses after every validation, before the state is saved; sent True, it ends there as if that
had been the last step. It also pauses, with None, wherever its steps do."""


Steps = Callable[[TrainState, Loader, int], Iterator[tuple[TrainState, StepInfo] | None]]
"""Who takes the steps of a training, as `fit` would: state, loader, number of steps -> the state after each
step and what there is to see of it; None: not yet, ask again."""


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
    """Train in a folder of one's own choosing, or go on with what was begun there, pausing at validations.

    Args:
        folder: A run folder; it is made if absent.
        study: What to train; if the folder is there already, the one that it was made from.
        start: The state to begin with; None: the study's own.
        until: Updates after which to end; None: `train.num_steps`, which schedules count on in any case.
        on_progress: Told of progress.
        parts: Those of the study, where they are there already.
        steps: Who takes the steps; None: this study alone, by `fit`.
        ranks: The processes that train together, each of which calls this. Process 0 writes the folder and
            pauses; the others take part in its steps until they are all done, or it ends.

    Raises:
        RunError: As for `resume`, and if the folder was begun with another study.
    """
    parts = parts or set_up(study)
    digests = data_digests(study, parts.dataset)
    if not ranks.rank and not (Path(folder) / "config.json").is_file():
        Run.create_at(folder, study.config, _environment(study, digests, ranks))
    ranks.check_same("the data", json.dumps(digests).encode())  # and now the folder is there for all
    run = Run.open(folder)
    check_data(run, digests)
    changed = check_study(run, study)
    yield from _continue(run, study, parts, on_progress, ranks, changed, start, until, steps)


def train(study: Study, on_progress: Progress = silent) -> Run:
    """Train, and leave a run folder.

    Started by torchrun, or in the workers of Ray Train, all processes train one patch together, and process 0
    writes the folder; see `fpatch.runtime.parallel`.

    Returns:
        The run, with `last`, `best` and numbered checkpoints.

    Raises:
        ValueError: For anything wrong in the study, before the folder is made; and if a loss is not finite,
            with the term, the row and its sample, after the state before it was saved.
        ConnectionError: If another process of the run has ended.
    """
    with joined(device=study.device) as ranks, deterministic_algorithms(study.train.deterministic):
        ranks.check_same("the study", json.dumps(study.config).encode())
        parts = set_up(study)
        make_loader(study, parts, ranks)  # refuses a batch that is too small for all
        dry_run_setup(study, parts)
        if ranks.rank:
            run = Run(ranks.tell(""))  # which this process need not see
            _follow(study, parts, parts.initial, ranks)
            return run
        environment = _environment(study, data_digests(study, parts.dataset), ranks)
        run = Run.create(study.log.runs, study.name, study.config, environment)
        ranks.tell(str(run.folder))
        _finish(_continue(run, study, parts, on_progress, ranks))
    return run


def resume(
    folder: str | Path, on_progress: Progress = silent, resources: Mapping[str, Any] | None = None
) -> Run:
    """Go on with a run that was stopped, from its last checkpoint; its patch will be the uninterrupted one's.

    Raises:
        RunError: If the folder is incomplete, of another version, or held by another process, or if the data
            are not those that it was started with.
    """
    run, study = open_run(folder, resources)
    with joined(device=study.device) as ranks:
        parts = set_up(study)
        check_data(run, data_digests(study, parts.dataset))
        _finish(_continue(run, study, parts, on_progress, ranks))
    return run


def _environment(study: Study, digests: Mapping[str, str], ranks: Ranks) -> dict[str, Any]:
    """The content of `environment.json` of a new run."""
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
        start: The state to begin with; None: the study's own.
        until: Updates after which to end; None: all.
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
            _follow(study, parts, state, ranks, until)
        else:
            yield from _train(study, parts, run, state, facts, resume_step, on_progress, ranks, until, steps)


def _finish(training: Training) -> None:
    for _ in training:
        pass


def _together(
    steps: Iterator[tuple[TrainState, StepInfo]], study: Study, state: TrainState, ranks: Ranks
) -> Iterator[tuple[TrainState, StepInfo]]:
    """The same steps; at the start and at every checkpoint all processes must hold the same state."""
    ranks.check_same(f"the state at step {state.step}", state_bytes(state))
    for after, info in steps:
        if after.step == study.train.num_steps or after.step % study.train.checkpoint_every == 0:
            ranks.check_same(f"the state at step {after.step}", state_bytes(after))
        yield after, info


def _follow(study: Study, parts: Setup, state: TrainState, ranks: Ranks, until: int | None = None) -> None:
    """Take part in the steps of process 0, and stop where it stops."""
    num_steps = study.train.num_steps if until is None else until
    step, loader = make_training_step(study, parts, ranks), make_loader(study, parts, ranks)
    steps = fit(state, step, loader, num_steps)
    for after, info in _together(steps, study, state, ranks):
        if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
            raise ValueError(f"update {after.step}: {bad}")


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
    """The loop of process 0: log every step, validate, and save checkpoints."""
    num_steps = study.train.num_steps if until is None else until
    run.note_processes(state.step, ranks.size)
    log = open_study_log(study, run, resume_step)
    finished = False
    try:
        log_study(study, parts.dataset, log)
        if state.step == 0 or not run.has_checkpoint("last"):
            _checkpoint(run, log, state, facts)
        for one in _take_steps(study, parts, run, state, num_steps, ranks, steps):
            if one is None:
                yield None
                continue
            after, info = one
            if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
                _checkpoint(run, log, state, facts)
                raise ValueError(f"update {state.step + 1}: {bad}; the state before it is kept")
            state = after
            log.scalars(state.step, step_scalars(info))
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
        finished = True
    except BaseException as error:
        error.add_note(f"what was done is kept; go on with: fpatch resume {run.folder}")
        raise
    finally:
        log.close(finished=finished)


def _take_steps(
    study: Study,
    parts: Setup,
    run: Run,
    state: TrainState,
    num_steps: int,
    ranks: Ranks,
    steps: Steps | None,
) -> Iterator[tuple[TrainState, StepInfo] | None]:
    """The steps from a state on: those of `fit` in all processes, or of its replacement."""
    loader = make_loader(study, parts, ranks)
    if steps is not None:
        return steps(state, loader, num_steps)
    own = fit(state, make_training_step(study, parts, ranks), loader, num_steps)
    return _profiled(_together(own, study, state, ranks), study, run)


def _write_best(study: Study, parts: Setup, run: Run, log: Log) -> None:
    """Write the patches of the best checkpoint as images, and offer the results to the log."""
    best, _ = run.load_checkpoint("best", parts.initial)
    run.write_patches(make_patches(study.placed.at("test"), best.params))
    log.artifacts(["config.json", "environment.json", "patch", "checkpoints/last.safetensors"])


def _checkpoint(run: Run, log: Log, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Records first, then the state they lead to, then their commit: right whenever it is cut off."""
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
    """Evaluate on the validation split, log it, and keep the best checkpoint; returns the new facts, too."""
    assert study.data.validation is not None
    dataset = parts.dataset.split(study.data.validation)
    result = evaluate_split(study, state.params, dataset, "validation", on_progress)
    run.save_evaluation(f"validation-{state.step:08d}", result, study.execution(study.evaluate.block))
    found = scalars(result, study.evaluate.metric)
    log.scalars(state.step, {f"validation/{n}": v for n, v in found.items()})
    diagnosis = view_first_block(study, state.params, dataset, result.table, "validation")
    log_stage_views(study, state.step, diagnosis, dataset.class_names, log, "validation")
    value = found[study.evaluate.best]
    if not facts or math.isnan(facts["best"]) or value > facts["best"]:
        facts = {"best": value, "best_step": state.step}
        run.save_checkpoint("best", state, **facts)
    errors = standard_errors(result, study.evaluate.metric)
    return facts, Measured(state.step, found, errors)


def _profiled(
    steps: Iterator[tuple[TrainState, StepInfo]], study: Study, run: Run
) -> Iterator[tuple[TrainState, StepInfo]]:
    """The same steps, some of them recorded for TensorBoard's profile tab, after two to warm up."""
    if study.log.profile_steps:
        yield from islice(steps, 2)
        handler = torch.profiler.tensorboard_trace_handler(str(run.path("tensorboard/x").parent))
        with torch.profiler.profile(on_trace_ready=handler, record_shapes=True, acc_events=True):
            for i in range(2, 2 + study.log.profile_steps):
                with torch.profiler.record_function(f"ProfilerStep#{i}"):  # the name that the tab looks for
                    taken = list(islice(steps, 1))
                yield from taken
    yield from steps
