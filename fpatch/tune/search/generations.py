"""Population-based training in generations: the weak go on from a copy of the strong, with other settings.

A generation is a row of trials of so many steps each. A trial begins with the exact state (parameters,
optimizer, step and key) that its parent ended with, so that a member that is never replaced trains bit for
bit as one long run would.
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
"""Of a generation that is replaced, and that it is replaced from."""
_AFRESH = 0.25
"""Chance that a setting is drawn anew instead of moved."""


@dataclass(frozen=True)
class Population:
    """How many train side by side.

    Attributes:
        size: Members of a generation.
        every: Steps of a generation.
    """

    size: int
    every: int

    def __post_init__(self) -> None:
        check_number("sweep.population.size", self.size, 4)
        check_number("sweep.population.every", self.every, 1)


class Child(NamedTuple):
    """The next trial.

    Attributes:
        settings: Its values by dotted name.
        parent: Number of the trial whose last state it starts with; None: its own beginning.
        generation: From 0.
    """

    settings: Settings
    parent: int | None
    generation: int


def propose_child(rule: Population, space: Space, seen: Sequence[Observation], key: Tensor) -> Child | None:
    """The next member; None while the generation before is not complete.

    The last quarter by value, and whoever has none, copies one of the first quarter; its numbers are
    multiplied by 0.8 or 1.2 within their interval, its choices kept, and each is now and then drawn anew.

    References:
        Jaderberg et al. (2017), Population based training of neural networks, section 4.1.1 (truncation
        selection, perturbation by 0.8 or 1.2).
    """
    generation, member = divmod(len(seen), rule.size)
    if generation == 0:
        return Child(propose_random(space, seen, key), None, 0)
    first = (generation - 1) * rule.size
    before = range(first, first + rule.size)
    if any(seen[number].value is None for number in before):
        return None
    ranked = sorted((n for n in before if seen[n].measured), key=lambda n: (-(seen[n].value or 0.0), n))
    if not ranked:
        return Child(propose_random(space, seen, key), None, generation)
    few = max(1, int(_SHARE * rule.size))
    weak = (set(before) - set(ranked)) | set(ranked[max(few, rule.size - few) :])
    own = first + member
    if own not in weak:
        return Child(seen[own].settings, own, generation)
    key = random.fold_in(random.fold_in(key, "population"), len(seen))
    strong = ranked[:few]
    parent = strong[int(random.randint(random.fold_in(key, "parent"), (), 0, len(strong)))]
    return Child(explore(space, seen[parent].settings, key), parent, generation)


def explore(space: Space, settings: Settings, key: Tensor) -> Settings:
    """Settings near these."""
    fresh = space.draw(random.fold_in(key, "afresh"), 1)[0]
    moved: Settings = {}
    for name, kind in space.varied.items():
        if not space.active(name, moved):
            continue
        own = random.fold_in(key, name)
        anew = float(random.uniform(random.fold_in(own, "anew"), ())) < _AFRESH
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
