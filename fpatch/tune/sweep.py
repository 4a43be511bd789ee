"""Sweeps: many runs of one study with other settings, searched for the best."""

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fpatch.core.checks import nearest
from fpatch.core.progress import Progress
from fpatch.core.schema import decode, flatten, to_toml
from fpatch.runs.locks import RunError
from fpatch.study.config import assign, read_toml, study_from_config, vary
from fpatch.study.study import Study
from fpatch.tune.folder.journal import Entry, Journal
from fpatch.tune.folder.mirror import mirrored
from fpatch.tune.folder.stores import check_storage
from fpatch.tune.output.sweep_log import SweepLog
from fpatch.tune.plan import Plan, best_entry, check_how, check_plan, plan_from_config, trial_study
from fpatch.tune.search.space import Space, parse_space
from fpatch.tune.settings import Sweep
from fpatch.tune.trials.ray_driver import drive, find_ray


def sweep(
    study: Study,
    space: Mapping[str, Any] | Space,
    objective: str = "success/patch",
    mode: str = "max",
    *,
    on_progress: Progress = lambda *_: None,
    resources: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Journal:
    """Search the settings of a study for the best objective; every trial is an ordinary run.

    Args:
        study: What every trial begins with.
        space: Settings by dotted name: a scalar is fixed; (low, high), (low, high, "log") and (low, high,
            "int") are intervals; a list is a choice; see `fpatch.tune.search.space.parse_space`.
        objective: A scalar of the validation, measured at the last evaluation of a trial.
        mode: "max" or "min".
        on_progress: Told of progress.
        resources: Live objects by "path/setting" of the pipeline.
        **settings: Those of `fpatch.tune.Sweep`: num_trials, search, halving, cpus, gpus and so on.

    Returns:
        The folder of the sweep, with its table of trials, figures, and a run folder for each trial.

    Raises:
        SpaceError: For anything wrong in the space, before anything is started.
        ValueError: The same for the study and the settings.
        ImportError: Without the extra `sweep`.
    """
    parsed = space if isinstance(space, Space) else parse_space(space)
    raw = {"objective": objective, "mode": mode, **settings}
    plan = Plan(study, parsed, decode(Sweep, {n: v for n, v in raw.items() if v is not None}, "sweep"))
    return run_plan(plan, on_progress, resources)


def load_plan(
    path: str | Path, overrides: Mapping[str, Any] | None = None, resources: Mapping[str, Any] | None = None
) -> Plan:
    """Read a study in TOML that has the sections `[space]` and `[sweep]`, too.

    Args:
        path: The file.
        overrides: Values of the study and of `sweep.NAME` by dotted name.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: With file, dotted name, value and what was expected.
    """
    path = Path(path)
    raw = read_toml(path)
    try:
        sections = [*(field.name for field in dataclasses.fields(Study)), "space", "sweep"]
        for name in raw:
            if name not in sections:
                raise ValueError(f"unknown section {name!r}; {nearest(name, sections)}")
        for name in ("space", "sweep"):
            if not isinstance(raw.get(name), Mapping):
                raise ValueError(f"a sweep needs the section [{name}]; add it")
        space, settings = raw.pop("space"), raw.pop("sweep")
        others = dict(overrides or {})
        for name in [name for name in others if name.startswith("sweep.")]:
            own = name.removeprefix("sweep.")
            _make_tables(settings, own)
            assign(settings, own, others.pop(name))
        study = study_from_config(raw, path.parent.resolve(), resources)
        study = vary(study, others, resources) if others else study
        return Plan(study, parse_space(space, toml=True), decode(Sweep, settings, "sweep"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _make_tables(table: dict[str, Any], name: str) -> None:
    """Make the tables on the way to a dotted name that do not exist yet."""
    for parent in name.split(".")[:-1]:
        if not isinstance(table.get(parent), dict):
            table[parent] = {}
        table = table[parent]


def run_plan(plan: Plan, on_progress: Progress, resources: Mapping[str, Any] | None = None) -> Journal:
    """Check a plan, make its folder, and run it.

    Raises:
        ValueError: For anything wrong, before the folder is made.
        OSError: If the folder cannot be written, or there is no cluster at `sweep.address`.
    """
    find_ray(plan)  # before anything is made
    journal = create_sweep(plan, resources)
    _run(journal, plan_from_config(journal.config, resources), on_progress, resources)
    return journal


def create_sweep(plan: Plan, resources: Mapping[str, Any] | None = None) -> Journal:
    """Check a plan and make its folder, for `resume_sweep` to run.

    Raises:
        ValueError: For anything wrong, before the folder is made.
        OSError: If the folder cannot be written.
    """
    check_plan(plan, resources)
    if plan.sweep.storage is not None:
        check_storage(plan.sweep.storage)
    runs = Path(plan.study.log.runs).resolve()
    own = {"log.runs": str(runs)}
    if plan.study.log.mlflow is True:
        own["log.mlflow"] = f"sqlite:///{runs / 'mlflow.db'}"
    plan = plan._replace(study=vary(plan.study, own, resources))
    return Journal.create(runs, plan.study.name, plan.config)


def resume_sweep(
    folder: str | Path,
    on_progress: Progress = lambda *_: None,
    *,
    plan: Plan | None = None,
    num_trials: int | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Journal:
    """Go on with a sweep that was stopped: every trial from its last checkpoint, then what is not begun.

    Args:
        folder: Of the sweep.
        on_progress: Told of progress.
        plan: What the sweep is expected to be; where it finds something else, that is an error. How it is
            run (`num_trials`, `cpus`, `storage` and so on) is taken from it, and recorded.
        num_trials: Another number of trials, to make a finished sweep longer.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        RunError: If the folder is no sweep, is held by another process, or is of another space or study.
        ValueError: If it cannot be run so.
        OSError: If a new storage cannot be written.
    """
    journal = Journal.open(folder)
    recorded = plan_from_config(journal.config, resources)
    _check_same(journal, recorded, plan)
    how = {} if plan is None else {name: getattr(plan.sweep, name) for name in _HOW}
    how |= {} if num_trials is None else {"num_trials": num_trials}
    taken = recorded._replace(sweep=dataclasses.replace(recorded.sweep, **how))
    check_how(taken)
    if taken.sweep.storage not in (None, recorded.sweep.storage):
        check_storage(taken.sweep.storage)
    _run(journal, taken, on_progress, resources)
    return journal


_HOW = (
    *("num_trials", "cpus", "gpus", "pack", "max_concurrent", "retries", "micro_batch_on_oom", "address"),
    "storage",
)
"""Settings of a sweep that may change: they say how it is run, not what it finds."""


def _check_same(journal: Journal, recorded: Plan, expected: Plan | None) -> None:
    for entry in journal.entries():
        if (name := recorded.space.foreign_setting(entry.trial.settings)) is not None:
            raise RunError(
                f"{journal.folder}: the space has changed: trial {entry.trial.name} has {name} = "
                f"{entry.trial.settings.get(name)!r}; restore sweep.json, or start a new sweep"
            )
    if expected is None:
        return
    own = {"log.runs": recorded.study.log.runs, "log.mlflow": recorded.study.log.mlflow}
    expected = expected._replace(study=vary(expected.study, own))
    theirs, ours = flatten(expected.config), flatten(recorded.config)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name) and name.removeprefix("sweep.") not in _HOW:
            raise RunError(
                f"{journal.folder}: {name} was {ours.get(name)!r} when the sweep was started and is now "
                f"{theirs.get(name)!r}; restore it, or start a new sweep"
            )


def _run(journal: Journal, plan: Plan, on_progress: Progress, resources: Mapping[str, Any] | None) -> None:
    with ExitStack() as held:
        held.enter_context(journal.locked())
        if not plan.config.items() <= journal.config.items():
            journal.replace_config(plan.config)
        held.enter_context(mirrored(journal, plan.sweep.storage))
        log = SweepLog(journal, plan, on_progress)
        finished = False
        try:
            drive(journal, plan, log.notify, resources)
            finished = True
        except BaseException as error:
            error.add_note(f"what was done is kept; go on with: fpatch sweep resume {journal.folder}")
            raise
        finally:
            log.close(finished)


# -- looking at one ----------------------------------------------------------------------------------------


def read_plan(journal: Journal, resources: Mapping[str, Any] | None = None) -> Plan:
    """What a sweep is made from."""
    return plan_from_config(journal.config, resources)


def find_entry(journal: Journal, plan: Plan, name: str | None = None) -> Entry:
    """A trial by its name, or the best that finished.

    Raises:
        RunError: If there is none.
    """
    if name is None:
        if (best := best_entry(journal, plan)) is None:
            raise RunError(f"{journal.folder}: no trial has finished with a value yet")
        return best
    if name not in journal.names():
        raise RunError(f"{journal.folder} has no trial {name!r}; {nearest(name, journal.names())}")
    return journal.entry(name)


def export_trial(
    folder: str | Path, name: str | None = None, resources: Mapping[str, Any] | None = None
) -> str:
    """The study of a trial in TOML: `fpatch train` of it gives the trial's patch bit for bit.

    Args:
        folder: Of the sweep.
        name: Of the trial; None: the best.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        RunError: If there is no such trial.
        ValueError: If it began with the state of another, as in a population.
    """
    journal = Journal.open(folder)
    plan = read_plan(journal, resources)
    entry = find_entry(journal, plan, name)
    if entry.trial.parent is not None:
        raise ValueError(
            f"trial {entry.trial.name} went on from {entry.trial.parent}, so that no single study makes its "
            f"patch; take the patch itself: {journal.run_folder(entry.trial.name) / 'patch'}"
        )
    study = trial_study(plan, entry.trial, Path(plan.study.log.runs), resources)
    return to_toml(study.config | {"pipeline": study.pipeline.given_config})
