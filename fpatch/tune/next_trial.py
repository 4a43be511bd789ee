"""The next trial of a sweep, and whether a running one should stop.

Both are functions of the plan and of the journal's entries alone, so a killed sweep decides the same again.
"""

from fpatch import random
from fpatch.tune.folder.journal import Entry, Trial
from fpatch.tune.plan import Plan, num_steps
from fpatch.tune.search.generations import propose_child
from fpatch.tune.search.halving import should_stop
from fpatch.tune.search.noisy_gp import propose_noisy_gp
from fpatch.tune.search.proposers import propose_grid, propose_optuna, propose_random


def next_trial(plan: Plan, entries: list[Entry]) -> Trial | None:
    """Propose the next trial; None if the sweep is complete, or its search must wait."""
    sweep, number = plan.sweep, len(entries)
    if number >= sweep.count(plan.space):
        return None
    observations = [entry.observation(sweep.sign) for entry in entries]
    key = random.fold_in(random.key(sweep.seed), "search")
    name = f"{number:04d}"
    seed = trial_seed(plan.study.seed, name)
    if sweep.search == "population":
        assert sweep.population is not None
        child = propose_child(sweep.population, plan.space, observations, key)
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
    return Trial(name, proposers[sweep.search](plan.space, observations, key), seed)


def trial_seed(seed: int, name: str) -> int:
    """The seed of a trial: 53 bits that depend on its name and the study's seed only."""
    first, second = random.fold_in(random.fold_in(random.key(seed), "trial"), name).tolist()
    return ((first & 0x1FFFFF) << 32) + second


def is_behind(plan: Plan, name: str, entries: list[Entry]) -> bool:
    """Return whether a trial should stop after its last evaluation."""
    rule, sign = plan.sweep.halving, plan.sweep.sign
    if rule is None:
        return False
    points = {e.trial.name: [(p.step, sign * p.value) for p in e.points] for e in entries}
    own = points.pop(name)
    (trial,) = (e.trial for e in entries if e.trial.name == name)
    return bool(own) and should_stop(rule, num_steps(plan, trial), own, points)
