"""A trial: an ordinary run in the folder of a sweep, in as many processes as it takes."""

import math
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from fpatch.runs import HeldError, Run
from fpatch.study import Measured, Study, Training, make_parts, train_in
from fpatch.tune.journal import Journal, Outcome, Point, Trial
from fpatch.tune.plan import Plan, plan_from_config, trial_study

_PATIENCE_S = 60.0
"""How long to wait for a killed worker to let go of its run."""


def run_trial(
    folder: str | Path, name: str, resources: Mapping[str, Any] | None = None
) -> Generator[Point, None, None]:
    """Train a trial from wherever it stands; pauses after each evaluation, and notes how it ended.

    Whether it should end early is read from the journal after each pause. What is wrong with it does not
    leave it: the outcome holds the error, and the sweep goes on.

    Args:
        folder: Of the sweep.
        name: Of the trial.
        resources: Live objects by "path/setting" of the pipeline.

    Yields:
        The objective at each evaluation, which already stands in the journal.
    """
    journal = Journal.open(folder)
    start = time.monotonic()
    try:
        plan = plan_from_config(journal.config, resources)
        stopped = yield from _train(journal, plan, journal.entry(name).trial, resources)
    except Exception as error:
        sentence = f"{type(error).__name__}: {error}"
        outcome = Outcome("failed", time.time(), time.monotonic() - start, sentence, traceback.format_exc())
    else:
        outcome = Outcome("stopped" if stopped else "finished", time.time(), time.monotonic() - start)
    journal.add_outcome(name, outcome)


def _train(
    journal: Journal, plan: Plan, trial: Trial, resources: Mapping[str, Any] | None
) -> Generator[Point, None, bool]:
    """Train; returns whether it was stopped early."""
    folder, deadline = journal.run_folder(trial.name), time.monotonic() + _PATIENCE_S
    while True:
        study = trial_study(plan, trial, folder.parent, resources)
        try:
            with closing(train_in(folder, study, _start(journal, trial, study), trial.until)) as training:
                return (yield from _follow(journal, plan, trial, training))
        except HeldError:  # by a worker before this one, which is being killed
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        except (torch.OutOfMemoryError, MemoryError) as error:
            rows = study.train.micro_batch or study.train.batch_size
            if not plan.sweep.micro_batch_on_oom or rows == 1:
                error.add_note(
                    "sweep.micro_batch_on_oom = true would go on with fewer rows in memory at a time"
                )
                raise
            trial = trial._replace(micro_batch=rows // 2)
            journal.add(trial)
            if (folder / "config.json").is_file():
                Run(folder).write_json(
                    "config.json", trial_study(plan, trial, folder.parent, resources).config
                )


def _start(journal: Journal, trial: Trial, study: Study) -> Any:
    """The state that the parent ended with, if there is one."""
    if trial.parent is None:
        return None
    parent = Run.open(journal.run_folder(trial.parent))
    return parent.load_checkpoint("last", make_parts(study).initial)[0]


def _follow(journal: Journal, plan: Plan, trial: Trial, training: Training) -> Generator[Point, None, bool]:
    """Note every evaluation, and end early if the journal says so."""
    objective, stop = plan.sweep.objective, False
    try:
        measured: Measured = next(training)
        while True:
            error = measured.errors.get(objective, math.nan)
            point = Point(measured.step, measured.scalars[objective], error)
            journal.add_point(trial.name, point)
            yield point
            stop = journal.is_stopped(trial.name)
            measured = training.send(stop)
    except StopIteration:
        return stop
