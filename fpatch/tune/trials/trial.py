"""A trial: an ordinary run in the folder of a sweep, in one process or several."""

import math
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from fpatch.runs.folder import Run
from fpatch.runs.locks import LockedError
from fpatch.runs.places import to_relative
from fpatch.runs.training import Training, train_in
from fpatch.runtime.parallel import ALONE, Ranks
from fpatch.study.setup import set_up
from fpatch.study.study import Study
from fpatch.tune.folder.journal import Journal, Outcome, Point, Trial
from fpatch.tune.plan import Plan, plan_from_config, trial_study
from fpatch.tune.settings import Sweep

PATIENCE_S = 60.0
"""Seconds to wait for a killed worker to release its run, or for the error of a lost process."""

Evaluation = tuple[str, Point]
"""The name of a trial and one evaluation of it."""

TrialWork = Generator[Point | None, None, bool]
"""The training of a trial: yields each evaluation, and None while it waits for the step of a pack.

Returns whether the trial was stopped early."""


def run_trial(
    folder: str | Path, name: str, resources: Mapping[str, Any] | None = None
) -> Generator[Evaluation, None, None]:
    """Start or resume a trial, pause after each evaluation, and record its outcome.

    After each pause the journal decides whether the trial stops early. An error is recorded in the outcome
    and not raised, so that the sweep continues.

    Args:
        folder: Folder of the sweep.
        name: Name of the trial.
        resources: Live objects by "path/setting" of the pipeline.

    Yields:
        The name of the trial and its point at each evaluation, which the journal already holds.
    """
    journal = Journal.open(folder)
    for point in record_outcome(journal, name, train_trial(journal, name, resources)):
        if point is not None:
            yield name, point


class LostProcessError(ConnectionError):
    """A process of a trial was killed; the trial should be restarted."""


def record_outcome(journal: Journal, name: str, work: TrialWork) -> Generator[Point | None, None, None]:
    """Do the work on a trial and record its outcome, unless a process was lost."""
    start = time.monotonic()
    try:
        stopped = yield from work
    except LostProcessError:
        raise
    except Exception as error:
        outcome = failure(error, time.monotonic() - start)
    else:
        outcome = Outcome("stopped" if stopped else "finished", time.time(), time.monotonic() - start)
    journal.add_outcome(name, outcome)


def failure(error: Exception, seconds: float) -> Outcome:
    """Make the outcome of a trial that raised."""
    sentence = f"{type(error).__name__}: {error}"
    return Outcome("failed", time.time(), seconds, sentence, "".join(traceback.format_exception(error)))


def wait_for(folder: Path) -> None:
    """Wait until a previous worker, which is being killed, has released a run.

    Raises:
        LockedError: If it does not within a minute.
    """
    deadline = time.monotonic() + PATIENCE_S
    while folder.is_dir():
        try:
            with Run(folder).locked():
                return
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def train_trial(
    journal: Journal, name: str, resources: Mapping[str, Any] | None, ranks: Ranks = ALONE
) -> TrialWork:
    """Train a trial outside a pack, as one of its processes."""
    plan, trial = plan_from_config(journal.config, resources), journal.entry(name).trial
    folder = journal.run_folder(name)
    if not ranks.rank:
        wait_for(folder)
    while True:
        study = trial_study(plan, trial, folder.parent, resources)
        try:
            start = _start(journal, trial, study)
            training = train_in(folder, study, start, trial.until, ranks=ranks)
            return (yield from follow(journal, plan, name, training))
        except (torch.OutOfMemoryError, MemoryError) as error:
            rows = study.train.micro_batch or study.train.batch_size
            if not plan.sweep.micro_batch_on_oom or rows == 1:
                error.add_note(f"{_way_out(plan.sweep)} holds fewer rows in memory at a time")
                raise
            trial = trial._replace(micro_batch=rows // 2)
            journal.add(trial)
            if (folder / "config.json").is_file():
                varied = trial_study(plan, trial, folder.parent, resources)
                Run(folder).write_config(to_relative(varied.config, folder))


def _way_out(sweep: Sweep) -> str:
    """The setting that lets a trial use less memory."""
    return "train.micro_batch" if sweep.processes > 1 else "sweep.micro_batch_on_oom = true"


def _start(journal: Journal, trial: Trial, study: Study) -> Any:
    """Load the last state of the parent; None without a parent."""
    if trial.parent is None:
        return None
    parent = Run.open(journal.run_folder(trial.parent))
    return parent.load_checkpoint("last", set_up(study).initial)[0]


def follow(journal: Journal, plan: Plan, name: str, training: Training) -> TrialWork:
    """Record every evaluation of a trial, and stop early if the journal requests it."""
    objective, stop = plan.sweep.objective, False
    with closing(training):
        try:
            measured = next(training)
            while True:
                if measured is None:
                    yield None
                else:
                    error = measured.errors.get(objective, math.nan)
                    point = Point(measured.step, measured.scalars[objective], error)
                    journal.add_point(name, point)
                    yield point
                    stop = journal.is_stopped(name)
                measured = training.send(stop)
        except StopIteration:
            return stop
