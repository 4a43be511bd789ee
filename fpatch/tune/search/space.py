"""The search space: settings of a study by dotted name, and the values that each may take.

A number has an `Interval`, any other setting a `Choice`. `fpatch.tune.search.parsing` reads both from
Python values and from TOML.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fpatch import random


class SpaceError(ValueError):
    """A search space is malformed, or does not fit the study.

    Example:
        >>> from fpatch.tune import SpaceError, parse_space
        >>> try:
        ...     parse_space({"optimizer.learning_rate": (0.4, 0.02, "log")})
        ... except SpaceError as error:
        ...     print(error)
        space.optimizer.learning_rate: low must be less than high, got (0.4, 0.02); swap the two
    """


@dataclass(frozen=True)
class Interval:
    """A number in [low, high].

    Attributes:
        low: The smallest value.
        high: The largest value.
        log: Whether the logarithm is uniform, instead of the value.
        integer: Whether only whole numbers are drawn.

    Example:
        >>> from fpatch.tune import Interval
        >>> rate = Interval(0.01, 1.0, log=True)
        >>> round(rate.at(0.5), 6), round(rate.unit(0.1), 6)
        (0.1, 0.5)
        >>> Interval(1, 4, integer=True).points(4)
        [1, 2, 3, 4]
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def at(self, unit: float) -> float | int:
        """Return the value at a position in [0, 1], which integers share evenly."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value

    def unit(self, value: float) -> float:
        """Return the position of a value in [0, 1]."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        if self.log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def points(self, count: int) -> list[float | int]:
        """Return `count` evenly spaced values from low to high, or all integers if there are fewer."""
        evenly = np.linspace(0.0, 1.0, count)
        if self.log:
            values = [self.low * (self.high / self.low) ** u for u in evenly]
        else:
            values = [self.low + u * (self.high - self.low) for u in evenly]
        values = [min(max(float(v), self.low), self.high) for v in values]
        return list(dict.fromkeys(round(v) for v in values)) if self.integer else values


@dataclass(frozen=True)
class Choice:
    """One of several values, which share [0, 1] evenly.

    Attributes:
        options: The values.

    Example:
        >>> from fpatch.tune import Choice
        >>> name = Choice(("adam", "bim"))
        >>> name.at(0.7), name.unit("adam")
        ('bim', 0.25)
    """

    options: tuple[Any, ...]

    def at(self, unit: float) -> Any:
        """Return the value at a position in [0, 1]."""
        return self.options[min(int(unit * len(self.options)), len(self.options) - 1)]

    def unit(self, value: Any) -> float:
        """Return the middle of a value's share of [0, 1]."""
        return (self.options.index(value) + 0.5) / len(self.options)

    def points(self, count: int) -> list[Any]:
        """Return all values, whatever `count` is."""
        return list(self.options)


Varied = Interval | Choice
Settings = dict[str, Any]
"""Values by dotted name."""


@dataclass(frozen=True)
class Space:
    """A search space; settings keep the order in which they were written.

    A setting is active if every condition in `when` holds. An inactive setting is absent from a trial.

    Attributes:
        fixed: Values by dotted name, equal in all trials.
        varied: Intervals and choices by dotted name.
        when: Conditions by dotted name: the values of other settings under which this one is active.

    Example:
        >>> from fpatch import random
        >>> from fpatch.tune import parse_space
        >>> space = parse_space({"train.batch_size": 16, "optimizer.name": ["adam", "bim"]})
        >>> space.fixed, list(space.grid(3))
        ({'train.batch_size': 16}, [{'optimizer.name': 'adam'}, {'optimizer.name': 'bim'}])
        >>> space.draw(random.key(0), 2) == space.draw(random.key(0), 2)
        True
    """

    fixed: Mapping[str, Any]
    varied: Mapping[str, Varied]
    when: Mapping[str, Mapping[str, tuple[Any, ...]]]

    def active(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Return whether a setting is active, given those written before it."""
        known = {**self.fixed, **settings}
        return all(parent in known and known[parent] in v for parent, v in self.when.get(name, {}).items())

    def at(self, units: Mapping[str, float]) -> Settings:
        """Return the active settings at positions in [0, 1], one for every varied name."""
        settings: Settings = {}
        for name, kind in self.varied.items():
            if self.active(name, settings):
                settings[name] = kind.at(units[name])
        return settings

    def draw(self, key: Tensor, count: int) -> list[Settings]:
        """Draw `count` independent settings; the draws of a name do not depend on other names."""
        columns = {n: random.uniform(random.fold_in(key, n), (count,)).tolist() for n in self.varied}
        return [self.at({n: column[i] for n, column in columns.items()}) for i in range(count)]

    def grid(self, count: int) -> Iterator[Settings]:
        """Yield every combination of `count` points per interval and all choices, the last name fastest."""

        def below(names: tuple[str, ...], settings: Settings) -> Iterator[Settings]:
            if not names:
                yield settings
                return
            name, *rest = names
            if not self.active(name, settings):
                yield from below(tuple(rest), settings)
                return
            for value in self.varied[name].points(count):
                yield from below(tuple(rest), settings | {name: value})

        return below(tuple(self.varied), {})

    def encode(self, settings: Mapping[str, Any]) -> np.ndarray:
        """Return a point of the unit cube: a column for each number, and one for each option.

        An absent number is 0.5, an absent option 0.
        """
        columns: list[float] = []
        for name, kind in self.varied.items():
            if isinstance(kind, Interval):
                columns.append(kind.unit(settings[name]) if name in settings else 0.5)
            else:
                columns += [float(name in settings and settings[name] == option) for option in kind.options]
        return np.array(columns)

    def foreign_setting(self, settings: Mapping[str, Any]) -> str | None:
        """Return the first name whose value or presence contradicts this space; None if all fit."""
        for name in dict.fromkeys([*self.varied, *settings]):
            kind = self.varied.get(name)
            if kind is None or (name in settings) != self.active(name, settings):
                return name
            if name not in settings:
                continue
            value = settings[name]
            if not (value in kind.options if isinstance(kind, Choice) else _is_within(kind, value)):
                return name
        return None

    def extremes(self) -> Iterator[Settings]:
        """Yield both ends of every interval and every option, each under its conditions."""
        for name, kind in self.varied.items():
            for value in kind.points(2):
                yield self._supported(name) | {name: value}

    def around(self, settings: Mapping[str, Any]) -> Settings:
        """Complete settings: every other active setting takes its middle value."""
        found: Settings = {}
        for name, kind in self.varied.items():
            if name in settings or self.active(name, found):
                found[name] = settings[name] if name in settings else kind.at(0.5)
        return found

    def _supported(self, name: str) -> Settings:
        """Return the first values of other settings under which one is active."""
        settings: Settings = {}
        for parent, values in self.when.get(name, {}).items():
            if parent in self.varied:
                settings |= self._supported(parent) | {parent: values[0]}
        return settings


def combinations(space: Space, count: int) -> int:
    """Return the number of grid points, at most a million."""
    return sum(1 for _ in itertools.islice(space.grid(count), 1_000_000))


def _is_within(interval: Interval, value: object) -> bool:
    """Return whether a recorded value is a number of an interval."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return interval.low <= value <= interval.high
