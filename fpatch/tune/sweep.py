"""Start and resume sweeps: many runs of one study with varied settings."""

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fpatch.core.checks import check_kind, nearest
from fpatch.core.display import shown
from fpatch.core.errors import in_file, is_stop
from fpatch.core.names import typed
from fpatch.core.progress import Progress
from fpatch.core.schema import decode, flatten
from fpatch.log.destinations import choose_experiment
from fpatch.log.sinks import tracking_uri
from fpatch.runs.locks import RunError
from fpatch.study.config import assign, read_toml, study_from_config, vary
from fpatch.study.goals import judge_goals
from fpatch.study.study import Study
from fpatch.tune.destinations import check_destinations, remember_destinations
from fpatch.tune.folder.journal import Journal
from fpatch.tune.folder.mirror import mirrored
from fpatch.tune.folder.stores import check_storage
from fpatch.tune.output.sweep_log import SweepLog
from fpatch.tune.plan import Plan, check_plan, check_resources, make_plan, plan_from_config
from fpatch.tune.search.parsing import parse_space
from fpatch.tune.search.space import Space
from fpatch.tune.settings import Sweep
from fpatch.tune.trials.ray_cluster import find_ray
from fpatch.tune.trials.ray_driver import drive

_logger = logging.getLogger(__name__)


def sweep(
    study: Study,
    space: Mapping[str, Any] | Space,
    objective: str = "success/patch",
    mode: str = "max",
    *,
    on_progress: Progress | None = None,
    resources: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Journal:
    """Search the settings of a study for the best objective; every trial has an ordinary run folder.

    Args:
        study: The study that every trial varies.
        space: Settings by dotted name: a scalar is fixed; (low, high), (low, high, "log") and (low, high,
            "int") are intervals; a list is a choice; see `fpatch.tune.parse_space`.
        objective: A scalar of the validation, taken from the last evaluation of a trial.
        mode: "max" or "min".
        on_progress: Called with the progress of the sweep and of its trials; None: bars or lines on standard
            error.
        resources: Live objects by "path/setting" of the pipeline.
        **settings: Those of `fpatch.tune.Sweep`: num_trials, search, halving, cpus, gpus and so on.

    Returns:
        The folder of the sweep, with its table of trials, figures, and a run folder for each trial.

    Raises:
        SpaceError: If the space is malformed or does not fit the study; nothing is started.
        ValueError: If the study or a setting of the sweep is wrong; nothing is started.
        ImportError: If the extra `sweep` is not installed.

    Example:
        Settings are checked before anything starts:

        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.tune import sweep
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> try:
        ...     sweep(study, {"optimizer.learning_rate": (0.4, 0.02, "log")}, num_trials=24)
        ... except ValueError as error:
        ...     print(error)
        space.optimizer.learning_rate: low must be less than high, got (0.4, 0.02); swap the two
    """
    check_kind("sweep(study)", study, Study, "load one by fpatch.load_study(path)")
    parsed = space if isinstance(space, Space) else parse_space(space)
    raw = {"objective": objective, "mode": mode, **settings}
    plan = make_plan(study, parsed, decode(Sweep, {n: v for n, v in raw.items() if v is not None}, "sweep"))
    return run_plan(plan, on_progress, resources)


def load_plan(
    path: str | Path, overrides: Mapping[str, Any] | None = None, resources: Mapping[str, Any] | None = None
) -> Plan:
    """Read a study in TOML with the sections `[space]` and `[sweep]`.

    Args:
        path: The file.
        overrides: Values of the study and of `sweep.NAME` by dotted name.
        resources: Live objects by "path/setting" of the pipeline.

    Returns:
        The study, the space and the settings of the sweep.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If a setting is wrong; the message gives file, dotted name, value and rule.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.tune import load_plan
        >>> text = '''
        ... name = "tiny"
        ... data = {placements = "placements.csv", size = [64, 64]}
        ... pipeline.pixels = {stage = "create.pixels", shapes = {a = [3, 8, 8]}}
        ... pipeline.smooth = {stage = "losses.total_variation"}
        ... objective.weights.total_variation = 1.0
        ... space.optimizer.learning_rate = {low = 0.02, high = 0.4, scale = "log"}
        ... sweep.num_trials = 24
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "study.toml")
        ...     _ = file.write_text(text)
        ...     plan = load_plan(file, {"sweep.search": "random"})
        >>> plan.sweep.search, plan.sweep.num_trials, list(plan.space.varied)
        ('random', 24, ['optimizer.learning_rate'])
    """
    check_kind("load_plan(path)", path, (str, Path), "name a study in TOML with [space] and [sweep]")
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
        return make_plan(study, parse_space(space, toml=True), decode(Sweep, settings, "sweep"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(in_file(path, error)) from error


def _make_tables(table: dict[str, Any], name: str) -> None:
    """Make the tables on the way to a dotted name that do not exist yet."""
    for parent in name.split(".")[:-1]:
        if not isinstance(table.get(parent), dict):
            table[parent] = {}
        table = table[parent]


def run_plan(plan: Plan, on_progress: Progress | None, resources: Mapping[str, Any] | None = None) -> Journal:
    """Check a plan, make its folder, and run it.

    Args:
        plan: The sweep.
        on_progress: Called with the progress of the sweep and of its trials; None: bars or lines on standard
            error.
        resources: Live objects by "path/setting" of the pipeline.

    Returns:
        The folder of the sweep.

    Raises:
        ValueError: If the plan is wrong; no folder is made.
        OSError: If the folder cannot be written, or no cluster answers at `sweep.address`.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.tune import Sweep, parse_space, run_plan
        >>> from fpatch.tune.plan import Plan
        >>> space = parse_space({"optimizer.learning_rate": (0.02, 0.4, "log")})
        >>> sweep = Sweep(objective="success/pach", num_trials=8)
        >>> try:
        ...     run_plan(Plan(tiny_study(tempfile.mkdtemp()), space, sweep), lambda *_: None)
        ... except ValueError as error:
        ...     print(error)
        sweep.objective: the validation has no scalar 'success/pach'; did you mean 'success/patch' or ...
    """
    find_ray(plan)  # before the folder is made
    journal = create_sweep(plan, resources)
    _run(journal, plan_from_config(journal.config, resources), on_progress, resources)
    return journal


def create_sweep(plan: Plan, resources: Mapping[str, Any] | None = None) -> Journal:
    """Check a plan and make its folder, which `resume_sweep` can run.

    Raises:
        ValueError: If the plan is wrong; no folder is made.
        OSError: If the folder cannot be written.
    """
    check_plan(plan, resources)
    for where, what in judge_goals(plan.study):
        _logger.warning("%s: %s", where, what)
    if plan.sweep.storage is not None:
        check_storage(plan.sweep.storage)
    runs = Path(plan.study.log.runs).resolve()
    own = {"log.runs": str(runs)}
    if plan.study.log.mlflow is True:
        own["log.mlflow"] = tracking_uri(runs / "any", True)
    own["log.experiment"] = choose_experiment(plan.study.log.experiment)
    plan = plan._replace(study=vary(plan.study, own, resources))
    remember_destinations(plan)
    return Journal.create(runs, plan.study.name, plan.config)


def resume_sweep(
    folder: str | Path,
    on_progress: Progress | None = None,
    *,
    plan: Plan | None = None,
    num_trials: int | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Journal:
    """Resume a stopped sweep: unfinished trials from their last checkpoint, then new ones.

    Args:
        folder: Folder of the sweep.
        on_progress: Called with the progress of the sweep and of its trials; None: bars or lines on standard
            error.
        plan: The expected plan; a recorded plan that differs is an error. Settings of how the sweep runs
            (`num_trials`, `cpus`, `storage` and so on) are taken from it, and recorded.
        num_trials: New number of trials, which extends a finished sweep.
        resources: Live objects by "path/setting" of the pipeline.

    Returns:
        The folder of the sweep.

    Raises:
        RunError: If the folder is no sweep, is locked by another process, records another plan, or would send
            to a destination that this user has not named.
        ValueError: If the new settings are wrong.
        OSError: If a new storage cannot be written.

    Example:
        >>> import tempfile
        >>> from fpatch import resume_sweep
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.tune import Journal, Sweep, parse_space
        >>> from fpatch.tune.plan import Plan
        >>> space = parse_space({"optimizer.learning_rate": (0.02, 0.4, "log")})
        >>> plan = Plan(tiny_study(tempfile.mkdtemp()), space, Sweep(num_trials=8))
        >>> journal = Journal.create(tempfile.mkdtemp(), "lamp", plan.config)
        >>> try:
        ...     resume_sweep(journal.folder, num_trials=0)
        ... except ValueError as error:
        ...     print(error)
        sweep.num_trials must be at least 1, got 0
    """
    journal = Journal.open(folder)
    if Path.cwd().is_relative_to(journal.folder.resolve()):
        raise RunError(
            f"{journal.folder}: Ray searches the working folder for modules, and the sweep may be somebody "
            "else's; start the command in another folder"
        )
    recorded = plan_from_config(journal.config, resources)
    _check_same(journal, recorded, plan)
    new = {} if plan is None else {name: getattr(plan.sweep, name) for name in _MAY_CHANGE}
    new |= {} if num_trials is None else {"num_trials": num_trials}
    if plan is not None:
        remember_destinations(plan)
    changed = recorded._replace(sweep=dataclasses.replace(recorded.sweep, **new))
    check_destinations(journal.folder, changed)
    check_resources(changed)
    if changed.sweep.storage not in (None, recorded.sweep.storage):
        check_storage(changed.sweep.storage)
    _run(journal, changed, on_progress, resources)
    return journal


_MAY_CHANGE = (
    *("num_trials", "cpus", "gpus", "pack", "max_concurrent", "retries", "micro_batch_on_oom", "address"),
    "storage",
)
"""Settings that may change when a sweep resumes: they do not change its results."""


def _check_same(journal: Journal, recorded: Plan, expected: Plan | None) -> None:
    for entry in journal.entries():
        if (name := recorded.space.foreign_setting(entry.trial.settings)) is not None:
            raise RunError(
                f"{journal.folder}: the space does not hold trial {entry.trial.name}, which has {name} = "
                f"{entry.trial.settings.get(name)!r}; restore sweep.json, or start a new sweep"
            )
    if expected is None:
        return
    log = recorded.study.log
    own = {"log.runs": log.runs, "log.mlflow": log.mlflow, "log.experiment": log.experiment}
    expected = expected._replace(study=vary(expected.study, own))
    theirs, ours = flatten(expected.config), flatten(recorded.config)
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name) and name.removeprefix("sweep.") not in _MAY_CHANGE:
            raise RunError(
                f"{journal.folder}: {name} must be {ours.get(name)!r}, as when the sweep started, got "
                f"{theirs.get(name)!r}; restore it, or start a new sweep"
            )


def _run(
    journal: Journal, plan: Plan, on_progress: Progress | None, resources: Mapping[str, Any] | None
) -> None:
    with ExitStack() as stack:
        stack.enter_context(journal.locked())
        if not plan.config.items() <= journal.config.items():
            journal.replace_config(plan.config)
        stack.enter_context(mirrored(journal, plan.sweep.storage))
        show = stack.enter_context(shown(on_progress, lines="trial "))
        log = SweepLog(journal, plan, show)
        finished: bool | None = True
        try:
            drive(journal, plan, log.notify, resources)
        except BaseException as error:
            finished = None if is_stop(error) else False
            error.add_note(
                f"finished steps are kept; resume with: fpatch sweep resume {typed(journal.folder)}"
            )
            raise
        finally:
            log.close(finished)
