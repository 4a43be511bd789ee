"""What a sweep does next, from its journal alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optree

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.schema import decode, encode
from fpatch.graph.functions import Function
from fpatch.study.config import study_from_config, vary
from fpatch.study.dry_run import dry_run
from fpatch.study.setup import set_up
from fpatch.study.study import Study
from fpatch.tune.folder.journal import Entry, Journal, Trial
from fpatch.tune.search.generations import Population, propose_child
from fpatch.tune.search.halving import should_stop
from fpatch.tune.search.noisy_gp import propose_noisy_gp
from fpatch.tune.search.proposers import propose_grid, propose_optuna, propose_random
from fpatch.tune.search.space import Settings, Space, SpaceError, encode_space, parse_space
from fpatch.tune.settings import Sweep


class Plan(NamedTuple):
    """A sweep before it runs.

    Attributes:
        study: What every trial begins with.
        space: What varies.
        sweep: How it is searched.
    """

    study: Study
    space: Space
    sweep: Sweep

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `plan_from_config` makes the same."""
        study = self.study.config | {"pipeline": self.study.pipeline.given_config}
        return {"study": study, "space": encode_space(self.space), "sweep": encode(self.sweep)}


def plan_from_config(config: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> Plan:
    """The plan in `sweep.json`."""
    study = study_from_config(config["study"], Path.cwd(), resources)
    return Plan(study, parse_space(config["space"]), decode(Sweep, config["sweep"], "sweep"))


def trial_study(plan: Plan, trial: Trial, runs: Path, resources: Mapping[str, Any] | None = None) -> Study:
    """The ordinary study of a trial."""
    settings = {"seed": trial.seed, **plan.space.fixed, **trial.settings, "log.runs": str(runs)}
    if trial.micro_batch is not None:
        settings["train.micro_batch"] = trial.micro_batch
    if _on_cpu(plan.sweep):
        settings["device"] = "cpu"
    return vary(plan.study, settings, resources)


def num_steps(plan: Plan, trial: Trial) -> int:
    """Updates of a trial that is not stopped."""
    settings = {"train.num_steps": plan.study.train.num_steps, **plan.space.fixed, **trial.settings}
    return settings["train.num_steps"] if trial.until is None else trial.until


def check_plan(plan: Plan, resources: Mapping[str, Any] | None = None) -> None:
    """Refuse what would fail in every trial, or in those at an end of the space, before anything starts.

    Raises:
        SpaceError: For a name that is no setting, or an end that is no value of it.
        ValueError: For an objective that is no scalar of the validation.
    """
    check_how(plan)
    if plan.study.data.validation is None:
        raise ValueError("a sweep needs a validation split to measure its objective on; set data.validation")
    first, compared = None, False
    for settings in plan.space.extremes():
        varied = _vary(plan, settings, resources)
        compared = compared or _is_compared(plan.sweep, varied)
        _check_weights(varied)
        if varied.train.batch_size < plan.sweep.processes:
            raise ValueError(
                f"sweep.processes = {plan.sweep.processes}: each must have a row of every batch, and there "
                f"are batches of {varied.train.batch_size}; set fewer, or a larger train.batch_size"
            )
        first = first or varied
    assert first is not None
    if not compared:
        raise ValueError(
            f"{plan.sweep.halving} stops no trial: none is evaluated from sweep.halving.first on and before "
            f"its end (train.num_steps = {first.train.num_steps}, evaluate.every = {first.evaluate.every}); "
            "set it lower, or evaluate more often"
        )
    parts, known = dry_run(first)
    if plan.sweep.objective not in known:
        raise ValueError(
            f"sweep.objective: the validation has no scalar {plan.sweep.objective!r}; "
            f"{nearest(plan.sweep.objective, known, count=4)}"
        )
    if plan.sweep.search == "population":
        _check_states(plan, parts.initial, resources)


def check_how(plan: Plan) -> None:
    """Refuse what cannot be run in the way that the sweep says.

    Raises:
        ValueError: For trials of a grid that there are not, generations for which there are no steps, packs
            that cannot be, and processes of a trial that would share a GPU.
    """
    count = plan.sweep.count(plan.space)
    if plan.sweep.population is not None:
        _check_generations(plan, plan.sweep.population, count)
    if plan.sweep.pack not in ("auto", 1) and (why := why_not_packed(plan)) is not None:
        raise ValueError(f"sweep.pack = {plan.sweep.pack}: {why}; leave sweep.pack out, or set it to 1")
    device = plan.space.fixed.get("device", plan.study.device)
    if _on_cpu(plan.sweep) and device.startswith("cuda"):
        raise ValueError(
            f"sweep.processes = {plan.sweep.processes}: with sweep.gpus = 0 the processes of a trial run on "
            f'the CPU, got device = "{device}"; set sweep.gpus = 1, or device = "cpu"'
        )


def _is_compared(sweep: Sweep, study: Study) -> bool:
    """Whether a trial of this study is evaluated where it may be stopped, if any is to be."""
    every = study.evaluate.every
    last_before_end = (study.train.num_steps - 1) // every * every
    return sweep.halving is None or last_before_end >= sweep.halving.first


def _check_generations(plan: Plan, rule: Population, num_trials: int) -> None:
    if "train.num_steps" in plan.space.varied:
        raise SpaceError("space.train.num_steps cannot vary in a population: its members share their steps")
    steps = plan.space.fixed.get("train.num_steps", plan.study.train.num_steps)
    most = rule.size * -(-steps // rule.every)
    if num_trials > most:
        raise ValueError(
            f"sweep.num_trials: {steps} steps (train.num_steps) in generations of {rule.every} "
            f"(sweep.population.every) are {most} trials, {rule.size} in each, got {num_trials}; set fewer "
            "trials, or more steps"
        )


def _vary(plan: Plan, settings: Settings, resources: Mapping[str, Any] | None) -> Study:
    """The study with the fixed settings and these; with the middle of all others, where they need others.

    Raises:
        SpaceError: That blames the last of them, or what is fixed.
    """
    fixed, error = plan.space.fixed, None
    for some in (settings, plan.space.around(settings)):
        try:
            return vary(plan.study, {**fixed, **some}, resources)
        except ValueError as caught:
            error = error or caught
    said = str(error).removeprefix("--")
    try:
        vary(plan.study, fixed, resources)
    except ValueError as caught:
        if str(caught) == str(error):
            raise SpaceError(f"space: {said}") from error
    name = next(reversed(settings))
    raise SpaceError(f"space.{name} = {settings[name]!r}: {said}") from error


def _on_cpu(sweep: Sweep) -> bool:
    """Whether trials must not take a GPU that they find: all processes of one would take the same."""
    return sweep.processes > 1 and not sweep.gpus


def why_not_packed(plan: Plan) -> str | None:
    """Why trials cannot be members of one population; None if they can."""
    sweep, fixed = plan.sweep, plan.space.fixed
    for name in plan.space.varied:
        if name != "seed" and not name.startswith(("optimizer.", "objective.weights.")):
            return f"trials that differ in {name} cannot be trained together"
    if sweep.search == "population" or sweep.halving is not None:
        return "trials that replace or stop one another are not trained together"
    for name in ("train.compile", "train.micro_batch", "log.profile_steps"):
        section, field = name.split(".")
        if fixed.get(name, getattr(getattr(plan.study, section), field)):
            return f"with {name}, trials are trained one by one"
    if sweep.processes > 1:
        return "with sweep.processes, trials are trained one by one"
    if sweep.micro_batch_on_oom:
        return "with sweep.micro_batch_on_oom, trials are trained one by one"
    pipeline = plan.study.pipeline.at("train")
    if any(isinstance(n.stage.config, Function) for n in pipeline.values()):
        return "a plain function in the pipeline expects one patch, not one per row"
    return None


_LARGEST_PACK = 16


def pack_size(plan: Plan, places: int) -> int:
    """Trials that one process trains together, where so many processes have room."""
    if plan.sweep.pack != "auto":
        return plan.sweep.pack
    if plan.sweep.search not in ("random", "grid") or why_not_packed(plan) is not None:
        return 1
    return max(1, min(_LARGEST_PACK, -(-plan.sweep.count(plan.space) // max(1, places))))


def _check_weights(study: Study) -> None:
    terms = study.pipeline.at("train").terms
    for name in study.objective.weights:
        if name not in terms:
            raise SpaceError(
                f"space.weights.{name}: no loss of the study is called that; {nearest(name, terms)}"
            )


def _check_states(plan: Plan, like: Any, resources: Mapping[str, Any] | None) -> None:
    """Members hand on their states, which must fit."""

    def form(state: Any) -> Any:
        tree: Any = (dict(state.params), state.opt_state)
        return optree.tree_structure(tree), [tuple(leaf.shape) for leaf in optree.tree_leaves(tree)]

    for settings in plan.space.extremes():
        made = set_up(_vary(plan, settings, resources)).initial
        if form(made) != form(like):
            name = next(reversed(settings))
            raise SpaceError(
                f"space.{name} changes the form of the optimizer or of the patch, so that members of a "
                "population could not go on from one another; fix it, or choose another search"
            )


# -- the next trial ----------------------------------------------------------------------------------------


def next_trial(plan: Plan, entries: list[Entry]) -> Trial | None:
    """What to try after all that was begun; None if there is nothing more, or nothing yet."""
    sweep, number = plan.sweep, len(entries)
    if number >= sweep.count(plan.space):
        return None
    seen = [entry.seen(sweep.sign) for entry in entries]
    key = random.fold_in(random.key(sweep.seed), "search")
    name = f"{number:04d}"
    seed = trial_seed(plan.study.seed, name)
    if sweep.search == "population":
        assert sweep.population is not None
        child = propose_child(sweep.population, plan.space, seen, key)
        if child is None:
            return None
        trial = Trial(name, child.settings, seed)
        until = min((child.generation + 1) * sweep.population.every, num_steps(plan, trial))
        if child.parent is None:
            return trial._replace(until=until)
        parent = entries[child.parent].trial
        return trial._replace(seed=parent.seed, parent=parent.name, until=until)
    proposers = {
        "random": propose_random,
        "grid": propose_grid(sweep.grid_points),
        "tpe": propose_optuna("tpe"),
        "optuna_gp": propose_optuna("gp"),
        "noisy_gp": propose_noisy_gp,
    }
    return Trial(name, proposers[sweep.search](plan.space, seen, key), seed)


def trial_seed(seed: int, name: str) -> int:
    """The seed of a trial: 53 bits that its name and the study's seed decide alone."""
    first, second = random.fold_in(random.fold_in(random.key(seed), "trial"), name).tolist()
    return ((first & 0x1FFFFF) << 32) + second


def is_behind(plan: Plan, name: str, entries: list[Entry]) -> bool:
    """Whether a trial should end after its present evaluation."""
    rule, sign = plan.sweep.halving, plan.sweep.sign
    if rule is None:
        return False
    points = {e.trial.name: [(p.step, sign * p.value) for p in e.points] for e in entries}
    own = points.pop(name)
    (trial,) = (e.trial for e in entries if e.trial.name == name)
    return bool(own) and should_stop(rule, num_steps(plan, trial), own, points)


def best_entry(journal: Journal, plan: Plan) -> Entry | None:
    """The trial with the best objective at its last evaluation, of those that finished."""
    done = [
        e for e in journal.entries() if e.outcome and e.outcome.status == "finished" and e.value == e.value
    ]
    return max(done, key=lambda e: plan.sweep.sign * e.value, default=None)
