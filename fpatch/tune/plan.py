"""The plan of a sweep: what it varies, how it searches, and the checks before it runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optree

from fpatch.core.checks import nearest
from fpatch.core.schema import decode, encode
from fpatch.evaluation.rates import RIGHT
from fpatch.study.config import of_any_version, study_from_config, vary
from fpatch.study.dry_run import dry_run
from fpatch.study.setup import set_up
from fpatch.study.study import Study
from fpatch.tune.folder.journal import Entry, Journal, Trial
from fpatch.tune.search.generations import Population
from fpatch.tune.search.parsing import encode_space, parse_space
from fpatch.tune.search.space import Settings, Space, SpaceError
from fpatch.tune.settings import Sweep


class Plan(NamedTuple):
    """All that defines a sweep.

    Attributes:
        study: The study that every trial varies.
        space: The search space.
        sweep: The settings of the search.
    """

    study: Study
    space: Space
    sweep: Sweep

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `plan_from_config` makes the same plan."""
        study = self.study.config | {"pipeline": self.study.pipeline.given_config}
        return {"study": study, "space": encode_space(self.space), "sweep": encode(self.sweep)}


def make_plan(study: Study, space: Space, sweep: Sweep) -> Plan:
    """Make a plan; the default objective of a study without a patch is what its networks get right."""
    if not study.makes_patch and sweep.objective == Sweep.objective:
        sweep = dataclasses.replace(sweep, objective=RIGHT)
    return Plan(study, space, sweep)


def plan_from_config(config: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> Plan:
    """Make a plan from the JSON values in `sweep.json`."""
    study = study_from_config(of_any_version(config["study"]), Path.cwd(), resources)
    return make_plan(study, parse_space(config["space"]), decode(Sweep, config["sweep"], "sweep"))


def trial_study(plan: Plan, trial: Trial, runs: Path, resources: Mapping[str, Any] | None = None) -> Study:
    """Make the study of a trial."""
    settings = {"seed": trial.seed, **plan.space.fixed, **trial.settings, "log.runs": str(runs)}
    if trial.micro_batch is not None:
        settings["train.micro_batch"] = trial.micro_batch
    if _on_cpu(plan.sweep):
        settings["device"] = "cpu"
    return vary(plan.study, settings, resources)


def num_steps(plan: Plan, trial: Trial) -> int:
    """The training steps of a trial that is not stopped early."""
    settings = {"train.num_steps": plan.study.train.num_steps, **plan.space.fixed, **trial.settings}
    return settings["train.num_steps"] if trial.until is None else trial.until


def check_plan(plan: Plan, resources: Mapping[str, Any] | None = None) -> None:
    """Check a plan before anything starts: try the study at every end of the space.

    Raises:
        SpaceError: If a name is no setting, or an end of an interval is not allowed.
        ValueError: If the objective is no scalar of the validation, or a setting of the sweep does not fit.
    """
    check_resources(plan)
    if plan.study.data.validation is None:
        raise ValueError("a sweep needs a validation split to measure its objective on; set data.validation")
    first, compared = None, False
    for settings in plan.space.extremes():
        varied = _vary(plan, settings, resources)
        compared = compared or _is_compared(plan.sweep, varied)
        _check_weights(varied)
        if varied.train.batch_size < plan.sweep.processes:
            raise ValueError(
                f"sweep.processes = {plan.sweep.processes}: each process needs a row of every batch, got "
                f"train.batch_size = {varied.train.batch_size}; lower sweep.processes, or raise "
                "train.batch_size"
            )
        first = first or varied
    assert first is not None
    if not compared:
        raise ValueError(
            f"{plan.sweep.halving} stops no trial: no evaluation is between sweep.halving.first and the end "
            f"(train.num_steps = {first.train.num_steps}, evaluate.every = {first.evaluate.every}); lower "
            "sweep.halving.first or evaluate.every"
        )
    parts, known = dry_run(first)
    if plan.sweep.objective not in known:
        raise ValueError(
            f"sweep.objective: the validation has no scalar {plan.sweep.objective!r}; "
            f"{nearest(plan.sweep.objective, known, count=4)}"
        )
    if plan.sweep.search == "population":
        _check_states(plan, parts.initial, resources)


def check_resources(plan: Plan) -> None:
    """Check the settings of a sweep that may change when it resumes: trials, packs, processes and GPUs.

    Raises:
        ValueError: If a grid has too few points, generations need more steps than a trial has, trials cannot
            be packed, or the processes of a trial would share a GPU.
    """
    count = plan.sweep.count(plan.space)
    if plan.sweep.population is not None:
        _check_generations(plan, plan.sweep.population, count)
    if plan.sweep.pack not in ("auto", 1) and (why := why_not_packed(plan)) is not None:
        raise ValueError(f"sweep.pack = {plan.sweep.pack}: {why}; leave sweep.pack out, or set it to 1")
    device = plan.space.fixed.get("device", plan.study.device)
    if _on_cpu(plan.sweep) and device.startswith("cuda"):
        raise ValueError(
            f"sweep.processes = {plan.sweep.processes}: the processes of a trial run on the CPU with "
            f'sweep.gpus = 0, got device = "{device}"; set sweep.gpus = 1, or device = "cpu"'
        )


def _is_compared(sweep: Sweep, study: Study) -> bool:
    """Return whether an evaluation of this study is at or after the first rung; True without halving."""
    every = study.evaluate.every
    last_before_end = (study.train.num_steps - 1) // every * every
    return sweep.halving is None or last_before_end >= sweep.halving.first


def _check_generations(plan: Plan, rule: Population, num_trials: int) -> None:
    if "train.num_steps" in plan.space.varied:
        raise SpaceError(
            "space.train.num_steps must be fixed with search = 'population', whose members share their steps"
        )
    steps = plan.space.fixed.get("train.num_steps", plan.study.train.num_steps)
    most = rule.size * -(-steps // rule.every)
    if num_trials > most:
        raise ValueError(
            f"sweep.num_trials must be at most {most}, got {num_trials}: train.num_steps = {steps} in "
            f"generations of {rule.size} trials and sweep.population.every = {rule.every} steps; lower "
            "num_trials, or raise num_steps"
        )


def _vary(plan: Plan, settings: Settings, resources: Mapping[str, Any] | None) -> Study:
    """Vary the study by the fixed settings and by these; add the middle of all others where they need it.

    Raises:
        SpaceError: If that fails; the message names the last setting, or the fixed ones.
    """
    fixed, error = plan.space.fixed, None
    for some in (settings, plan.space.around(settings)):
        try:
            return vary(plan.study, {**fixed, **some}, resources)
        except ValueError as caught:
            error = error or caught
    message = str(error).removeprefix("--")
    try:
        vary(plan.study, fixed, resources)
    except ValueError as caught:
        if str(caught) == str(error):
            raise SpaceError(f"space: {message}") from error
    name = next(reversed(settings))
    raise SpaceError(f"space.{name} = {settings[name]!r}: {message}") from error


def _on_cpu(sweep: Sweep) -> bool:
    """Return whether trials stay off the GPU, since all processes of a trial would take the same one."""
    return sweep.processes > 1 and not sweep.gpus


def why_not_packed(plan: Plan) -> str | None:
    """Return why trials cannot be members of one population; None if they can."""
    sweep, fixed = plan.sweep, plan.space.fixed
    for name in plan.space.varied:
        if name != "seed" and not name.startswith(("optimizer.", "objective.weights.")):
            return f"trials that differ in {name} cannot be trained together"
    if sweep.search == "population" or sweep.halving is not None:
        return "trials that replace or stop each other cannot be trained together"
    for name in ("train.compile", "train.micro_batch", "log.profile_steps"):
        section, field = name.split(".")
        if fixed.get(name, getattr(getattr(plan.study, section), field)):
            return f"{name} needs trials that are trained one by one"
    if sweep.processes > 1:
        return "sweep.processes needs trials that are trained one by one"
    if sweep.micro_batch_on_oom:
        return "sweep.micro_batch_on_oom needs trials that are trained one by one"
    return None


_LARGEST_PACK = 16


def pack_size(plan: Plan, num_concurrent: int) -> int:
    """The number of trials in a pack, if `num_concurrent` packs run at once."""
    if plan.sweep.pack != "auto":
        return plan.sweep.pack
    if plan.sweep.search not in ("random", "grid") or why_not_packed(plan) is not None:
        return 1
    return max(1, min(_LARGEST_PACK, -(-plan.sweep.count(plan.space) // max(1, num_concurrent))))


def _check_weights(study: Study) -> None:
    terms = study.pipeline.at("train").terms
    for name in study.objective.weights:
        if name not in terms:
            raise SpaceError(
                f"space.weights.{name}: the study has no loss of that name; {nearest(name, terms)}"
            )


def _check_states(plan: Plan, like: Any, resources: Mapping[str, Any] | None) -> None:
    """Check that all members have states of the same form, which they inherit from each other."""

    def form(state: Any) -> Any:
        tree: Any = (dict(state.params), state.opt_state)
        return optree.tree_structure(tree), [tuple(leaf.shape) for leaf in optree.tree_leaves(tree)]

    for settings in plan.space.extremes():
        made = set_up(_vary(plan, settings, resources)).initial
        if form(made) != form(like):
            name = next(reversed(settings))
            raise SpaceError(
                f"space.{name} changes the form of the optimizer or of the patch, so members of a population "
                "cannot inherit states; fix it, or choose another search"
            )


def best_entry(journal: Journal, plan: Plan) -> Entry | None:
    """The finished trial with the best objective at its last evaluation; None if no trial has one."""
    done = [
        e for e in journal.entries() if e.outcome and e.outcome.status == "finished" and e.value == e.value
    ]
    return max(done, key=lambda e: plan.sweep.sign * e.value, default=None)
