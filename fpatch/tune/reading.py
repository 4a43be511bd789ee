"""Read a sweep: its plan, its trials, and the study of a trial."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpatch.core.checks import nearest
from fpatch.core.errors import in_file
from fpatch.core.schema import to_toml
from fpatch.log.records import find_scalar
from fpatch.runs.checks import check_study
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.tune.folder.journal import Entry, Journal
from fpatch.tune.plan import Plan, best_entry, plan_from_config, trial_study


def read_plan(journal: Journal, resources: Mapping[str, Any] | None = None) -> Plan:
    """Read the plan of a sweep from its folder.

    Args:
        journal: The folder of the sweep.
        resources: Live objects by "path/setting" of the pipeline.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.tune import Journal, Sweep, parse_space, read_plan
        >>> from fpatch.tune.plan import Plan
        >>> folder = tempfile.mkdtemp()
        >>> space = parse_space({"seed": (0, 9, "int")})
        >>> plan = Plan(tiny_study(folder), space, Sweep(num_trials=24))
        >>> journal = Journal.create(f"{folder}/sweep", "tiny", plan.config)
        >>> read_plan(journal).space.varied
        {'seed': Interval(low=0, high=9, log=False, integer=True)}
    """
    try:
        return plan_from_config(journal.config, resources)
    except RunError:
        raise
    except ValueError as error:
        raise RunError(in_file(journal.folder / "sweep.json", error)) from error


def find_entry(journal: Journal, plan: Plan, name: str | None = None) -> Entry:
    """Return a trial by name, or the best finished trial.

    Args:
        journal: The folder of the sweep.
        plan: Its plan.
        name: Name of the trial; None: the best.

    Raises:
        RunError: If no such trial exists, or none has finished; or if the journal does not agree with the
            run folder of the trial, or of any finished one if the best is asked for.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.tune import Journal, Sweep, find_entry, parse_space
        >>> from fpatch.tune.folder.journal import Outcome, Point, Trial
        >>> from fpatch.tune.plan import Plan
        >>> folder = tempfile.mkdtemp()
        >>> space = parse_space({"optimizer.learning_rate": (0.02, 0.4)})
        >>> plan = Plan(tiny_study(folder), space, Sweep(num_trials=24))
        >>> journal = Journal.create(f"{folder}/sweep", "tiny", plan.config)
        >>> for name, value in (("0000", 0.25), ("0001", 0.75)):
        ...     journal.add(Trial(name, {"optimizer.learning_rate": 0.1}, seed=7))
        ...     journal.add_point(name, Point(100, value, 0.02))
        ...     journal.add_outcome(name, Outcome("finished", 0.0, 0.0))
        >>> entry = find_entry(journal, plan)
        >>> entry.trial.name, entry.value
        ('0001', 0.75)
    """
    if name is None:
        if (best := best_entry(journal, plan)) is None:
            raise RunError(f"{journal.folder}: no trial has finished with a value; resume the sweep")
        for entry in journal.entries():
            _check_value(journal, plan, entry)
    elif name not in journal.names():
        raise RunError(f"{journal.folder} has no trial {name!r}; {nearest(name, journal.names())}")
    else:
        _check_value(journal, plan, best := journal.entry(name))
    _check_settings(journal, plan, best)
    return best


def _check_value(journal: Journal, plan: Plan, entry: Entry) -> None:
    """Check that the value of a finished trial is the one that its run recorded; its folder may be gone."""
    folder, name = journal.run_folder(entry.trial.name), entry.trial.name
    is_finished = entry.outcome is not None and entry.outcome.status == "finished"
    if not (is_finished and entry.points and (folder / "records.jsonl").is_file()):
        return
    point = entry.points[-1]
    recorded = find_scalar(folder, f"validation/{plan.sweep.objective}", point.step)
    is_other = recorded is None or (math.isfinite(recorded) and recorded != point.value)
    if is_other:
        was = "nothing" if recorded is None else f"{recorded:g}"
        raise RunError(
            f"{journal.folder}/journal/{name}.points.jsonl: {plan.sweep.objective} at step {point.step} is "
            f"{point.value:g}, but the run trials/{name} recorded {was}; restore the file"
        )


def _check_settings(journal: Journal, plan: Plan, entry: Entry) -> None:
    """Check that the settings of a trial fit the space, and are those of its run."""
    name, settings = entry.trial.name, entry.trial.settings
    if (foreign := plan.space.foreign_setting(settings)) is not None:
        raise RunError(
            f"{journal.folder}/journal/{name}.json: the space does not hold {foreign} = "
            f"{settings.get(foreign)!r}; restore the file"
        )
    folder = journal.run_folder(name)
    if not (folder / "config.json").is_file():
        return
    try:
        check_study(Run.open(folder), trial_study(plan, entry.trial, folder.parent))
    except RunError as error:
        raise RunError(
            f"{journal.folder}/journal/{name}.json is not the record of its run: {error}"
        ) from error


def export_trial(
    folder: str | Path, name: str | None = None, resources: Mapping[str, Any] | None = None
) -> str:
    """Return the study of a trial in TOML; `fpatch train` makes the trial's patch from it, bit for bit.

    Args:
        folder: Folder of the sweep.
        name: Name of the trial; None: the best.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        RunError: If no such trial exists.
        ValueError: If the trial started with the state of another one, as in a population.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.tune import Journal, Sweep, export_trial, parse_space
        >>> from fpatch.tune.folder.journal import Trial
        >>> from fpatch.tune.plan import Plan
        >>> folder = tempfile.mkdtemp()
        >>> space = parse_space({"optimizer.learning_rate": (0.02, 0.4)})
        >>> plan = Plan(tiny_study(folder), space, Sweep(num_trials=24))
        >>> journal = Journal.create(f"{folder}/sweep", "tiny", plan.config)
        >>> journal.add(Trial("0000", {"optimizer.learning_rate": 0.25}, seed=7))
        >>> text = export_trial(journal.folder, "0000")
        >>> [line for line in text.splitlines() if line.startswith(("seed", "learning_rate"))]
        ['seed = 7', 'learning_rate = 0.25']
    """
    journal = Journal.open(folder)
    plan = read_plan(journal, resources)
    entry = find_entry(journal, plan, name)
    if entry.trial.parent is not None:
        raise ValueError(
            f"trial {entry.trial.name} started with the state of trial {entry.trial.parent}, so no study "
            f"alone makes its patch; take the patch itself: {journal.run_folder(entry.trial.name) / 'patch'}"
        )
    study = trial_study(plan, entry.trial, Path(plan.study.log.runs), resources)
    return to_toml(study.config | {"pipeline": study.pipeline.given_config})
