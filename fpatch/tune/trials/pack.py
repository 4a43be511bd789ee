"""A pack of trials: one process trains them as one population, each in its own run folder."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from fpatch.core.types import Batch
from fpatch.data import Loader
from fpatch.optim.population import make_population_step
from fpatch.optim.step import StepInfo, TrainState
from fpatch.runs.folder import Run
from fpatch.runs.training import Steps, train_in
from fpatch.runtime.device import deterministic_algorithms
from fpatch.study.setup import Setup, set_up
from fpatch.study.study import Study
from fpatch.tune.folder.journal import Journal
from fpatch.tune.plan import plan_from_config, trial_study
from fpatch.tune.trials.trial import Evaluation, failure, follow, record_outcome, run_trial, wait_for

_ROWS_AT_ONCE = 64
"""Rows in the graph at a time, at least those of one trial; the last bits depend on this number."""


def run_trials(
    folder: str | Path, name: str, resources: Mapping[str, Any] | None = None
) -> Generator[Evaluation, None, None]:
    """Start or resume the trials of a pack; a single trial runs as by `run_trial`.

    A trial that raises fails alone. An error in the shared step fails all of them.

    Args:
        folder: Folder of the sweep.
        name: Name of any trial of the pack.
        resources: Live objects by "path/setting" of the pipeline.

    Yields:
        The name of a trial and its point at each evaluation, which the journal already holds.
    """
    journal = Journal.open(folder)
    names = [n for n in journal.entry(name).trial.together if n in journal.names()]
    if len(names) == 1:
        yield from run_trial(folder, name, resources)
        return
    start = time.monotonic()
    try:
        yield from _run_pack(journal, names, resources)
    except Exception as error:
        error.add_note("sweep.pack = 1 trains the trials one by one")
        for one in names:
            if journal.entry(one).outcome is None:
                journal.add_outcome(one, failure(error, time.monotonic() - start))


def _run_pack(
    journal: Journal, names: Sequence[str], resources: Mapping[str, Any] | None
) -> Generator[Evaluation, None, None]:
    plan, entries = plan_from_config(journal.config, resources), [journal.entry(name) for name in names]
    folders = [journal.run_folder(name) for name in names]
    for folder in folders:
        wait_for(folder)
    studies = with_one_pipeline(
        [trial_study(plan, entry.trial, journal.folder / "trials", resources) for entry in entries]
    )
    first = set_up(studies[0])
    pack = Pack(studies, [first, *(set_up(study, first) for study in studies[1:])])
    living = {
        i: record_outcome(
            journal,
            name,
            follow(
                journal,
                plan,
                name,
                train_in(folders[i], studies[i], parts=pack.parts[i], steps=pack.steps_of(i)),
            ),
        )
        for i, name in enumerate(names)
        if entries[i].outcome is None
    }
    begun = [Run(folder) for folder in folders if (folder / "environment.json").is_file()]
    # members end in another order than they start, so process-wide settings must enclose all of them
    recreated = begun[0].execution.recreated() if begun else nullcontext()
    with recreated, deterministic_algorithms(studies[0].train.deterministic):
        try:
            while living:
                for i, member in list(living.items()):
                    for point in member:
                        if point is None:
                            break
                        yield names[i], point
                    else:
                        del living[i]
                if living:
                    pack.step()
        finally:
            for member in living.values():
                member.close()


def with_one_pipeline(studies: Sequence[Study]) -> list[Study]:
    """Give all studies the pipeline of the first, whose networks are copied to the device once."""
    first = studies[0]
    shared = [replace(study, pipeline=first.pipeline) for study in studies]
    for study in shared:
        vars(study)["placed"] = first.placed  # the cache of the property `Study.placed`
    return shared


class Pack:
    """Trainings that take their steps together.

    Each member requests a step and pauses. A step always computes all members: for an ended member it repeats
    the last request and drops the result. So the bits of the others do not depend on when it ended.
    """

    def __init__(self, studies: Sequence[Study], parts: Sequence[Setup]) -> None:
        """Join studies that differ in seed, optimizer and weights, with their setups."""
        self.parts = parts
        train = studies[0].train
        self._step = make_population_step(
            [p.objective for p in parts],
            [p.optimizer for p in parts],
            transform=studies[0].objective.transform,
            members_at_once=max(1, _ROWS_AT_ONCE // train.batch_size),
            rho=train.rho,
        )
        self._states = [p.initial for p in parts]
        self._batches: list[Batch | None] = [None] * len(parts)
        self._infos: list[StepInfo | None] = [None] * len(parts)

    def steps_of(self, i: int) -> Steps:
        """The steps of a member: yields None when it needs a call of `step`."""

        def steps(
            state: TrainState, loader: Loader, num_steps: int
        ) -> Iterator[tuple[TrainState, StepInfo] | None]:
            batches = loader.batches(state.step)
            try:
                self._states[i] = state
                while self._states[i].step < num_steps:
                    self._batches[i], self._infos[i] = next(batches), None
                    yield None
                    info = self._infos[i]
                    assert info is not None
                    yield self._states[i], info
            finally:
                batches.close()  # type: ignore[attr-defined]

        return steps

    def step(self) -> None:
        """Compute one step of all members, for those that requested one."""
        some = next(batch for batch in self._batches if batch is not None)
        batches = [some if batch is None else batch for batch in self._batches]
        moved, infos = self._step(self._states, batches)
        for i, info in enumerate(infos):
            if self._infos[i] is None:
                self._states[i], self._infos[i] = moved[i], info
