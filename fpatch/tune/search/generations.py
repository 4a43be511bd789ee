"""Population-based training in generations: the weakest members continue as changed copies of the strongest.

A generation is a group of trials that train for `every` steps each. A trial starts with the exact state
(parameters, optimizer, step and key) of its parent. A member that is never replaced therefore trains bit for
bit as one long run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.tune.search.proposers import Observation, propose_random
from fpatch.tune.search.space import Choice, Settings, Space

_SHARE = 0.25
"""Share of a generation that is replaced, and share that it is replaced from."""
_REDRAW = 0.25
"""Probability that a setting is redrawn instead of changed."""


@dataclass(frozen=True)
class Population:
    """Size and length of the generations of population-based training.

    Attributes:
        size: Members of a generation, at least 4.
        every: Training steps of a generation.

    Example:
        >>> from fpatch.tune import Population, Sweep
        >>> sweep = Sweep(search="population", num_trials=24, population=Population(size=8, every=100))
        >>> sweep.num_trials // sweep.population.size
        3
    """

    size: int
    every: int

    def __post_init__(self) -> None:
        check_number("sweep.population.size", self.size, 4)
        check_number("sweep.population.every", self.every, 1)


class Child(NamedTuple):
    """A proposed member of the next generation.

    Attributes:
        settings: Values by dotted name.
        parent: Number of the trial whose last state it starts with; None: a new initial state.
        generation: Number of its generation, from 0.
    """

    settings: Settings
    parent: int | None
    generation: int


def propose_child(
    rule: Population, space: Space, observations: Sequence[Observation], key: Tensor
) -> Child | None:
    """Propose the next member; None while the previous generation is incomplete.

    Members of the last quarter by value, and members without a value, copy a member of the first quarter.
    Copied numbers are multiplied by 0.8 or 1.2 within their interval; choices are kept. Each setting is drawn
    anew with probability 0.25.

    References:
        Jaderberg et al. (2017), Population based training of neural networks, section 4.1.1 (truncation
        selection, perturbation by 0.8 or 1.2).
    """
    generation, member = divmod(len(observations), rule.size)
    if generation == 0:
        return Child(propose_random(space, observations, key), None, 0)
    first = (generation - 1) * rule.size
    before = range(first, first + rule.size)
    if any(observations[number].value is None for number in before):
        return None
    ranked = sorted(
        (n for n in before if observations[n].measured), key=lambda n: (-(observations[n].value or 0.0), n)
    )
    if not ranked:
        return Child(propose_random(space, observations, key), None, generation)
    few = max(1, int(_SHARE * rule.size))
    weak = (set(before) - set(ranked)) | set(ranked[max(few, rule.size - few) :])
    own = first + member
    if own not in weak:
        return Child(observations[own].settings, own, generation)
    key = random.fold_in(random.fold_in(key, "population"), len(observations))
    strong = ranked[:few]
    parent = strong[int(random.randint(random.fold_in(key, "parent"), (), 0, len(strong)))]
    return Child(explore(space, observations[parent].settings, key), parent, generation)


def explore(space: Space, settings: Settings, key: Tensor) -> Settings:
    """Return changed settings: each number multiplied by 0.8 or 1.2, some settings drawn anew."""
    fresh = space.draw(random.fold_in(key, "afresh"), 1)[0]
    moved: Settings = {}
    for name, kind in space.varied.items():
        if not space.active(name, moved):
            continue
        own = random.fold_in(key, name)
        anew = float(random.uniform(random.fold_in(own, "anew"), ())) < _REDRAW
        if name not in settings or (anew and name in fresh):
            anywhere = float(random.uniform(random.fold_in(own, "any"), ()))
            moved[name] = fresh.get(name, kind.at(anywhere))
        elif isinstance(kind, Choice):
            moved[name] = settings[name]
        else:
            factor = 1.2 if bool(random.bernoulli(random.fold_in(own, "up"), 0.5)) else 0.8
            value = min(max(settings[name] * factor, kind.low), kind.high)
            moved[name] = round(value) if kind.integer else value
    return moved
